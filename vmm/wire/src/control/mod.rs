//! The control API of an `ft-vmm`: requests and answers as lines of JSON over a Unix socket
//! (mode 0600) or TCP.
//!
//! One request line, one answer line, as often as the client likes. `console` is the exception:
//! after its answer the connection carries the guest's console, raw, in both directions.

mod addr;
pub mod client;
pub mod server;
mod status;

pub use addr::{ControlAddr, ControlAddrError};
pub use client::{ControlClient, ControlError};
pub use status::{
    Failover, LogBytes, PositionStatus, Protection, Quantiles, Role, Status, Stretches,
    UnknownState,
};

use serde::{Deserialize, Serialize};

/// The longest request line, in bytes.
pub const MAX_REQUEST: usize = 16 << 10;
/// The longest answer line, in bytes.
pub const MAX_ANSWER: usize = 256 << 10;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    Status,
    /// The process aborts at once, as if its host had failed. There is no answer.
    Kill,
    /// The machine's state to `path` on this replica's host, while the machine stands still.
    Save {
        path: String,
    },
    /// The process ends in order, without the guest being asked.
    Quit,
    /// This connection becomes the guest's console.
    Console,
    /// The guest's power is cut.
    Poweroff,
    /// The guest's reset button is pressed.
    Reset,
    /// A hash of the machine's state at the position where it is now.
    Hash {
        /// Of all of memory too.
        #[serde(default)]
        memory: bool,
    },
}

/// What an `ft-vmm` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Response {
    Status(Box<Status>),
    /// To `quit`, `console`, `poweroff`, `reset`: accepted.
    Done,
    Saved {
        path: String,
        bytes: u64,
    },
    Hash {
        position: PositionStatus,
        registers: u64,
        memory: Option<u64>,
        devices: u64,
    },
    Error {
        message: String,
    },
}

#[cfg(test)]
mod tests;
