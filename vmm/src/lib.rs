//! Lockstep's virtual machine monitor: the machine around a CPU engine, and what drives it.

pub mod boot;
pub mod memory;
