//! The system-level conformance guests on the software CPU.
//!
//! `CONFORMANCE=substring cargo test --release -p soft --test conformance` runs some of them.

use std::sync::Arc;

use engine::Engine;
use soft::SoftEngine;
use vm_memory::GuestMemoryMmap;

fn make(memory: &Arc<GuestMemoryMmap>) -> Box<dyn Engine> {
    match SoftEngine::new(memory) {
        Ok(engine) => Box::new(engine),
        Err(e) => panic!("no engine: {e}"),
    }
}

#[test]
fn conformance_guests() {
    let filter = std::env::var("CONFORMANCE").unwrap_or_default();
    let failures = conformance::run_all(&make, &filter);
    assert!(
        failures.is_empty(),
        "{} failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
