//! A point in the guest's instruction stream.

use serde::{Deserialize, Serialize};

/// A point in the instruction stream of the one vCPU.
///
/// `count` is what the engine counts (the log's header says what that is). RIP and RCX complete the
/// position where the count alone is not exact, and are a check on every replayed event everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    pub count: u64,
    pub rip: u64,
    pub rcx: u64,
}
