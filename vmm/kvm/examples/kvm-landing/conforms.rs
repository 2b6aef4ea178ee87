//! The conformance guests that stop at positions, on the engine that counts branches.

use std::sync::Arc;
use std::time::Instant;

use conformance::Needs;
use engine::Engine;
use kvm::KvmEngine;
use kvm::counted::CountedEngine;
use vm_memory::GuestMemoryMmap;

use crate::truth::{self, Lateness};

/// So near that small guests are run at full speed part of the way, and with kicks that come late.
const LATENESS: Lateness = Lateness {
    bound: 4,
    branches: 3,
    instructions: 1,
};

/// Not for emulators: with breakpoints in a nested guest in real mode QEMU 10.0.2 crashes, and Bochs 2.7
/// passes one without a stop.
const REAL_MODE: &str = "positions: stop everywhere in real mode";

/// Whether all of them pass.
pub fn run() -> bool {
    let make = |memory: &Arc<GuestMemoryMmap>| -> Box<dyn Engine> {
        let made = KvmEngine::new(memory).and_then(|vcpu| {
            let (walked, counter) = truth::of(vcpu, LATENESS, 1);
            CountedEngine::new(walked, counter)
        });
        match made {
            Ok(engine) => Box::new(engine),
            Err(why) => {
                eprintln!("no engine: {why}");
                std::process::exit(2)
            }
        }
    };
    let mut passed = true;
    for case in conformance::cases() {
        if case.name == REAL_MODE && (crate::is_on("qemu") || crate::is_on("bochs")) {
            println!("left out: {}", case.name);
            continue;
        }
        if conformance::needs(case.name) != Needs::Positions {
            continue;
        }
        let begun = Instant::now();
        match (case.run)(&make) {
            Ok(()) => println!("ok   {}, {:.1} s", case.name, begun.elapsed().as_secs_f64()),
            Err(what) => {
                passed = false;
                println!("FAIL {}: {what}", case.name);
            }
        }
    }
    passed
}
