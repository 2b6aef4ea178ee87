//! System-level conformance of a CPU engine: small guests for paging, exceptions, interrupts, port
//! and memory-mapped I/O, self-modifying code, segments and privilege, mode switches, and for
//! stopping at every position.
//!
//! Any [`engine::Engine`] can be put to it: [`run_all`] takes a function that makes one on given
//! memory. What is expected is what the SDM says, and where that leaves a choice, what the design
//! says (page tables and code are coherent at once).

mod calls;
mod code;
mod events;
mod exits;
mod faults;
mod floating;
mod handlers;
mod legacy;
mod modes;
mod needs;
mod outside;
mod paging;
mod positions;
pub mod rig;
mod segments;
mod steps;
mod system;

use std::sync::Arc;

use engine::Engine;
use vm_memory::GuestMemoryMmap;

pub use needs::{Needs, Processor, does, needs};
pub use rig::Rig;

/// Makes an engine on the given memory.
pub type Maker<'a> = &'a dyn Fn(&Arc<GuestMemoryMmap>) -> Box<dyn Engine>;

/// One guest, or a few of a kind. The error says what differs.
pub struct Case {
    pub name: &'static str,
    pub run: fn(Maker) -> Result<(), String>,
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for list in [
        paging::CASES,
        faults::CASES,
        floating::CASES,
        events::CASES,
        outside::CASES,
        code::CASES,
        segments::CASES,
        calls::CASES,
        legacy::CASES,
        modes::CASES,
        system::CASES,
        positions::CASES,
        exits::CASES,
        steps::CASES,
    ] {
        for &(name, run) in list {
            all.push(Case { name, run });
        }
    }
    all
}

/// Runs every case whose name contains `filter`; the failures, as "name: what differs".
pub fn run_all(make: Maker, filter: &str) -> Vec<String> {
    let mut failures = Vec::new();
    for case in cases() {
        if !case.name.contains(filter) {
            continue;
        }
        if let Err(what) = (case.run)(make) {
            failures.push(format!("{}: {what}", case.name));
        }
    }
    failures
}

/// A table of cases in one file.
type Cases = &'static [(&'static str, fn(Maker) -> Result<(), String>)];

/// Fails the case unless both are equal.
macro_rules! same {
    ($got:expr, $want:expr, $($what:tt)+) => {
        match (&$got, &$want) {
            (got, want) => {
                if *got != *want {
                    let what = format!($($what)+);
                    let line = line!();
                    return Err(format!("{what}: got {got:#x?}, want {want:#x?} (line {line})"));
                }
            }
        }
    };
}
pub(crate) use same;

/// Assembles code for `bits` at `ip`.
macro_rules! assemble {
    ($bits:expr, $ip:expr, |$a:ident| $body:block) => {{
        let bytes = || -> Result<Vec<u8>, iced_x86::IcedError> {
            let $a = &mut iced_x86::code_asm::CodeAssembler::new($bits)?;
            $body
            $a.assemble($ip)
        };
        bytes().map_err(|e| format!("assembling failed: {e} (line {})", line!()))?
    }};
}
pub(crate) use assemble;
