//! Lockstep's log and replication protocol.
//!
//! Everything here is a value or a sans-IO state machine: no sockets, no threads, no clock. Time
//! comes in as `now`, nanoseconds of the local host's monotonic clock, and what is to be done goes
//! out as effects that a driver carries out. The same machines run in the VMM, in the disk server
//! and in the simulator.
//!
//! | module | topic |
//! |---|---|
//! | [`position`], [`entry`], [`ids`] | points in the instruction stream, records of the log, names |
//! | [`codec`] | header, frames, messages of the logging channel, log files |

pub mod codec;
pub mod entry;
pub mod ids;
pub mod position;

pub use codec::header::{CountUnit, Header, Mismatch, Region};
pub use entry::{Control, Entry, EntryKind, Event, MarkKind, digest};
pub use ids::{ReplicaId, VmId};
pub use position::Position;
