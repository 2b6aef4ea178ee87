//! The contract between Lockstep and its CPU engines.
//!
//! An engine runs the one vCPU of a machine until it exits or reaches a given position exactly. It
//! knows no devices, no log and no host clock: whatever the guest can see comes from its own
//! execution, from the answers given at [`Entry`], and from the calls of [`Engine`], all of which
//! happen with the vCPU stopped. That is what makes recording and replaying the same loop.

pub mod bits;
mod check;
mod clock;
pub mod cpuid;
mod exit;
mod interface;
pub mod msr;
mod state;

pub use check::check;
pub use clock::ClockBase;
pub use exit::{Boundary, Entry, Exit, PendingRead};
pub use interface::{Engine, EngineError, EngineInfo};
pub use state::{CpuState, DescriptorTable, Msrs, PROCESSOR_SIGNATURE, Segment};
