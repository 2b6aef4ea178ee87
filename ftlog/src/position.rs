//! A point in the instruction stream of the one vCPU.
//!
//! What `count` counts is the engine's business and is written in the log's header
//! ([`crate::CountUnit`]): retired instructions for `soft`, deterministic exits for `kvm`, or those and
//! retired conditional branches. Where a count does not name one instruction, RIP
//! and RCX (the iterations that a REP string instruction still has to do) tell the candidates
//! apart. They also check every replayed event.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A point in the instruction stream: `count` events have retired, the next instruction is at
/// `rip`, and RCX holds `rcx`.
///
/// There is deliberately no `Ord`: with a branch counter, two positions of equal count are ordered
/// only by running. Compare counts with [`Position::count_cmp`] and identity with `==`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Events of the engine's unit since power-on; never decreases.
    pub count: u64,
    /// Address of the next instruction.
    pub rip: u64,
    /// RCX before the next instruction.
    pub rcx: u64,
}

impl Position {
    pub const fn new(count: u64, rip: u64, rcx: u64) -> Self {
        Self { count, rip, rcx }
    }

    /// Orders by count only. `Equal` does not mean that the positions are the same.
    pub fn count_cmp(&self, other: &Position) -> Ordering {
        self.count.cmp(&other.count)
    }

    /// Certainly before `other`: its count is smaller.
    pub fn is_before(&self, other: &Position) -> bool {
        self.count < other.count
    }

    /// Certainly after `other`: its count is greater.
    pub fn is_after(&self, other: &Position) -> bool {
        self.count > other.count
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "count {} rip {:#x} rcx {:#x}",
            self.count, self.rip, self.rcx
        )
    }
}
