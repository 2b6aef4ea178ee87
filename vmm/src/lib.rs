//! Lockstep's virtual machine monitor: the machine around a CPU engine, and what drives it.
//!
//! | module | topic |
//! |---|---|
//! | [`memory`], [`boot`] | the guest's RAM, and how a kernel gets into it |
//! | [`machine`] | vCPU, board and memory as one deterministic state machine |
//! | [`engines`] | which CPU engine it gets |
//! | [`config`] | the machine's configuration: TOML file and flags |
//! | [`link`] | connections to the disk server, the switch and people at consoles |
//! | [`save`] | the whole state in a file |
//! | [`replica`] | one replica: recording, replaying, the protocol carried out |
//! | [`program`], [`errors`] | `ft-vmm` itself; how errors are said |

/// Which Lockstep this is: the version, `+`, and a hash of the sources on which a replay depends.
/// Replicas of different builds refuse each other.
pub const BUILD: &str = concat!(env!("CARGO_PKG_VERSION"), "+", env!("LOCKSTEP_SOURCES"));

pub mod boot;
pub mod config;
pub mod engines;
pub mod errors;
pub mod link;
pub mod machine;
pub mod memory;
pub mod program;
pub mod replica;
pub mod save;
