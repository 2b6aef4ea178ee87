//! Positions by a branch counter: (retired conditional branches, RIP, RCX), and how a vCPU is
//! brought to one exactly.
//!
//! **Not verified on real hardware.** No machine with VT-x or AMD-V and a PMU was there to run it
//! on. Everything but the system calls of [`PerfCounter`] is tested against fakes: real guests on the
//! software CPU, and on an emulated AMD-V and VT-x with a real KVM, whose branches are counted by decoding and
//! whose counter's interrupts come late by a random amount. An engine that uses this must pass
//! [`self_test`] on the very host before it is used there; the kvm engine does, or counts exits.
//!
//! # How it works
//!
//! A counter's overflow interrupt comes late (skid), so it is asked for a margin short of the
//! target ([`land`]); the rest is done with breakpoints. Breakpoints leave no trace in the guest,
//! single steps do: RFLAGS.TF is seen by every exception frame, PUSHF and SYSCALL, is lost in a
//! handler, and comes back with its IRET. So one instruction is passed by breakpoints at all the
//! places where it can lead ([`advance`]). TF is left for two things: a branch to itself, which
//! cannot fault, and the iterations of a REP string instruction where the target lies in its middle,
//! which never is the case for a settled position.
//!
//! # Which positions name one instant
//!
//! In a loop without conditional branches many instants have one triple (`inc rax; jmp $-3`). A
//! position must therefore be *settled* before it is logged ([`settle`]): the recorder goes on to
//! the first instant after a conditional branch has retired, which is the only first one of its
//! count. There is one more kind, `jmp .`: nothing changes there, so that any instant will do.
//! Other loops without conditional branches have no position; their stretch must be closed by
//! state, as with an engine that counts exits.
//!
//! An engine may add the exits that it has handled to the count (both are deterministic), and take
//! the first instant of each count for its position; then no RIP is needed, and every exit is one,
//! too. The kvm engine does so: it goes from branch to branch with [`settle`] and does not need
//! [`land`], which the self-test does.
//!
//! # What an engine must know
//!
//! - TSX must be hidden from the guest: what an aborted transaction has counted differs.
//! - While breakpoints of the landing are set, KVM does not serve the guest's own (DR7): a guest
//!   that uses hardware breakpoints must be landed elsewhere, or its stretch closed by state.
//! - An injected interrupt must have entered its handler before the vCPU is looked at again: a
//!   breakpoint at [`handler`]'s address stops it there.
//! - A missed landing is not the end: the vCPU is past its position, so the replica is discarded and
//!   protection restored from the primary's state.

mod advance;
mod checks;
mod counter;
mod cpu;
#[cfg(test)]
mod fake;
mod host;
mod land;
mod perf;
mod selftest;
mod settle;
mod stepper;
mod successors;

pub use advance::{Advanced, advance};

pub use checks::{Check, Outcome, checks};
pub use counter::{BranchCounter, CounterError};
pub use cpu::{BranchEvent, Cpu, CpuId, Erratum, UnknownCpu};
pub use host::{Host, Pmu};
pub use land::{LandError, Landing, land};
pub use perf::{PerfCounter, pin_current_thread};
pub use selftest::{Effort, Guest, Refused, Report, Subject, self_test};
pub use settle::{Settled, settle};
pub use stepper::{Motion, Place, Stepper, Stop};
pub use successors::{Current, blocks_debug, code_linear, decode, handler};
