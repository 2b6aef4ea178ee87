//! The view register's messages: test-and-set over a line of JSON.
//!
//! A request is one line, its answer is one line; a connection may carry many in turn. The server
//! (`ft-diskd`) has every change on stable storage, and the old views' disk requests finished or
//! refused, before it answers. A client that gets no answer knows nothing (the design's rule 5):
//! [`client::RegisterError::Unknown`], ask again.

pub mod client;
mod names;

pub use client::{ClaimAnswer, RegisterClient, RegisterError};
pub use ftlog::{ReplicaId, View, VmId};
pub use names::check_name;

use serde::{Deserialize, Serialize};

/// The longest request or response line, in bytes.
pub const MAX_LINE: usize = 64 << 10;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The record of one virtual machine.
    Get { vm: VmId },
    /// Powers a virtual machine on: a view with this pair, and the disks that are its own from
    /// now on. Refused if it is on already, unless `reset`, which fences whatever still runs.
    /// The view's number is 1 at first and one higher than any before later: use the answer's.
    Create {
        vm: VmId,
        primary: ReplicaId,
        backup: Option<ReplicaId>,
        /// Export names (without parameters).
        disks: Vec<String>,
        #[serde(default)]
        reset: bool,
    },
    /// From `from_view` to the next view with `claimant` alone. The same claimant asking again
    /// gets the same answer.
    Claim {
        vm: VmId,
        from_view: u64,
        claimant: ReplicaId,
    },
    /// The virtual machine is powered off: all its connections are refused from now on and its
    /// disks are free for tools again. `view` must be the current one.
    Off { vm: VmId, view: u64 },
    /// A consistent copy of an export's image to `path` on the server's host, taken while no
    /// write is under way.
    Snapshot { export: String, path: String },
    /// What the server serves.
    Info,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Response {
    /// To `get`, `create`, `off`: the record as it is now.
    Record { record: Option<Record> },
    /// To `claim`: the claimant is alone in `view`, on stable storage, and older views are fenced.
    Won { view: View },
    /// To `claim`: somebody else was first, or the claimant is not of that view. `view` is the
    /// current one.
    Lost { view: View },
    /// To `snapshot`.
    Snapshot(SnapshotInfo),
    /// To `info`.
    Info(ServerInfo),
    /// Nothing was decided, since the state could not be stored: as good as no answer, ask again.
    Unavailable { reason: String },
    /// The request was understood and not carried out, for this reason; nothing has changed, and
    /// asking again does not help.
    Refused { reason: String },
}

/// What the register keeps of one virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub vm: VmId,
    pub view: View,
    /// The exports that only this machine's current view may write while it is on.
    pub disks: Vec<String>,
    /// Whether the machine is on.
    pub on: bool,
}

/// A finished snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Bytes of the image.
    pub size: u64,
    /// Bytes of the copy that are not holes.
    pub allocated: u64,
}

/// What a disk server serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInfo {
    pub version: String,
    pub pid: u32,
    /// The NBD server's `HOST:PORT`.
    pub nbd: String,
    pub exports: Vec<ExportStatus>,
    pub records: Vec<Record>,
}

/// One export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportStatus {
    pub name: String,
    /// Bytes.
    pub size: u64,
    pub read_only: bool,
    /// Connections now.
    pub connections: u64,
    /// Since the server started.
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    /// Requests refused because their view had ended, since the server started.
    pub fenced: u64,
}

#[cfg(test)]
mod tests;
