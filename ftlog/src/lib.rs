//! Lockstep log and replication protocol.

mod position;

pub use position::Position;
