//! Runs the conformance guests on the engine: `kvm-conformance [FILTER]`. Ends with 1 if one fails.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use engine::Engine;
use kvm::KvmEngine;
use vm_memory::GuestMemoryMmap;

fn main() -> ExitCode {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let make = |memory: &Arc<GuestMemoryMmap>| -> Box<dyn Engine> {
        match KvmEngine::new(memory) {
            Ok(mut engine) => {
                // A guest that should have ended, and runs for ever.
                engine.set_stretch_limit(Some(Duration::from_secs(2)));
                Box::new(engine)
            }
            Err(why) => {
                eprintln!("no engine: {why}");
                std::process::exit(2)
            }
        }
    };
    let (mut run, mut failed) = (0, 0);
    for case in conformance::cases() {
        if !case.name.contains(&filter) {
            continue;
        }
        run += 1;
        match (case.run)(&make) {
            Ok(()) => println!("ok   {}", case.name),
            Err(what) => {
                failed += 1;
                println!("FAIL {}: {what}", case.name);
            }
        }
    }
    println!("{run} run, {failed} failed");
    ExitCode::from(u8::from(failed != 0))
}
