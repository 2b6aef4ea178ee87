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
//! | [`stretch`] | the memory that a closed stretch of execution carries |
//! | [`codec`] | header, frames, messages of the logging channel, log files |
//! | [`config`] | the bounds: detection, flushing, lag |
//! | [`view`], [`register`], [`claim`] | views, the test-and-set's server side and its claimant |
//! | [`detector`], [`pace`] | suspicion; lag and slowing |
//! | [`gate`], [`hazards`] | the Output Rule; disk reads that the backup executes itself |
//! | [`replica`], [`primary`], [`backup`] | the roles, which tie it all together; effects |
//! | [`replay`] | how a replay is compared with the log |
//! | [`sim`] | the seeded simulator that runs all of it against faults |

pub mod backup;
pub mod claim;
pub mod codec;
pub mod config;
pub mod detector;
pub mod entry;
pub mod gate;
pub mod hazards;
pub mod ids;
pub mod pace;
pub mod position;
pub mod primary;
pub mod register;
pub mod replay;
pub mod replica;
pub mod sim;
pub mod stretch;
pub mod view;

pub use backup::{Backup, ReplayError};
pub use claim::{ClaimAnswer, ClaimRequest};
pub use codec::{CountUnit, Header, Mismatch, Region};
pub use config::{Config, ConfigError};
pub use detector::Suspicion;
pub use entry::{Control, Entry, EntryKind, Event, MarkKind, digest};
pub use hazards::ReadHazards;
pub use ids::{ReplicaId, VmId};
pub use position::Position;
pub use primary::{AppendError, Primary, Stall};
pub use register::ViewRegister;
pub use replay::{Divergence, Hashes};
pub use replica::{Effect, HaltReason, Phase, Released, Replica};
pub use stretch::{BadPages, PageBlock};
pub use view::View;
