//! Lockstep's CPU engine on KVM, for AMD's processors (AMD-V) and Intel's (VT-x).
//!
//! Positions count exits: port and memory-mapped accesses, HLT, and every instruction that is
//! intercepted (RDTSC, CPUID, MSRs …), each once it has completed. Everything between two exits is a
//! function of the guest's own state, so asynchronous events are put in only there, and two replicas
//! agree without a counter of instructions. A guest that computes for long without an exit is
//! stopped by a timer ([`engine::Exit::Adrift`]); its whole state is then sent along.
//! With a counter of branches positions are closer ([`counted`]).
//!
//! * `trampoline`: a tiny hypervisor in the VM that makes RDTSC trap; `block`, `vmcb`, `vmcs`, `vmx`: the
//!   control block from which it runs the guest.
//! * `vm`, `vcpu`, `kick`: KVM itself, without any decision about the guest.
//! * `engine`, `emulate`, `walk`: the run loop, and the intercepted instructions.
//! * `shadow`: where interrupts may not enter.
//! * `debug`, `counted`: stopping the guest between exits; positions that count branches.
//! * `positions`: which of both kinds are used on a host.
//! * `probe`: whether all this works on a host.
//! * `state`, `segments`, `fpu`: the guest's state, in one form wherever the vCPU stands.

mod block;
pub mod counted;
mod debug;
mod emulate;
mod engine;
mod errors;
mod fpu;
mod host;
mod kick;
mod page;
mod positions;
pub mod probe;
mod ram;
mod segments;
mod shadow;
mod state;
mod trampoline;
mod vcpu;
mod vm;
mod vmcb;
mod vmcs;
mod vmx;
mod walk;

pub use self::engine::KvmEngine;
pub use self::positions::{Positions, by_branches, counted, positions, without_engine};

/// What CPUID calls the processor.
const BRAND: &::engine::cpuid::Brand =
    b"Lockstep KVM CPU @ 1.00GHz\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Advance of the clock for each exit, in nanoseconds: less than what the fastest exit needs.
const NS_PER_EXIT: u64 = 500;

/// Advance of the clock for each branch or exit, in nanoseconds, where branches are counted. A
/// processor retires one in 0.3 to 2 ns; less than 1 cannot be said, so the guest's clock may run
/// ahead of the host's in the tightest loops, until the host has caught up.
const NS_PER_BRANCH: u64 = 1;
