//! Runs the conformance guests on the engine: `kvm-conformance [FILTER]`. Ends with 1 if one fails.
//!
//! Left out, and named in number: what an engine that counts exits cannot do, what the architecture
//! leaves open, and on a processor that QEMU emulates what that does not do. `--all` runs those too.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use conformance::Needs;
use engine::Engine;
use kvm::KvmEngine;
use vm_memory::GuestMemoryMmap;

fn main() -> ExitCode {
    let (options, filters): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|arg| arg == "--all");
    let filter = filters.first().cloned().unwrap_or_default();
    let all = !options.is_empty();
    let silicon = !emulated();
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
    let (mut run, mut failed, mut left_out) = (0, 0, 0);
    for case in conformance::cases() {
        if !case.name.contains(&filter) {
            continue;
        }
        let fits = match conformance::needs(case.name) {
            Needs::Nothing => true,
            Needs::Silicon => silicon,
            Needs::Instructions | Needs::Positions | Needs::Model => false,
        };
        if !fits && !all {
            left_out += 1;
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
    println!("{run} run, {failed} failed, {left_out} left out");
    ExitCode::from(u8::from(failed != 0))
}

/// Whether QEMU's TCG emulates this machine.
fn emulated() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    let words = [leaf.ebx, leaf.ecx, leaf.edx];
    let name: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    name == b"TCGTCGTCGTCG"
}
