//! The vCPU as a landing sees it. An engine implements this in a few lines over `KVM_RUN`,
//! `KVM_SET_GUEST_DEBUG` and its registers.

use engine::{CpuState, Exit};

/// How the vCPU goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motion {
    /// At full speed (`KVM_GUESTDBG_USE_HW_BP` if there are breakpoints).
    Run,
    /// With RFLAGS.TF (`KVM_GUESTDBG_SINGLESTEP`): for one instruction or one iteration of REP. The
    /// trap may come later, when a handler has run in between.
    Step,
}

/// Why it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Before the instruction at a breakpoint.
    Breakpoint,
    /// After a step.
    Stepped,
    /// A signal: the counter's, or any other. The vCPU stands between two instructions.
    Kicked,
    /// An exit, at a boundary or pending. The count and the place are those of the exit.
    Exit(Exit),
}

/// What can be told of the vCPU's place without effort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub rip: u64,
    pub rcx: u64,
}

/// A vCPU that can be stopped.
///
/// Every call requires it to stand between two instructions: an exit must have been answered and
/// completed before a landing goes on. No interrupt reaches the guest from within these calls.
pub trait Stepper {
    type Error: std::error::Error + Send + Sync + 'static;

    /// Goes on until something stops it. `breakpoints` are linear addresses, 4 at most; one at the
    /// place where the vCPU stands stops it at once. They hold for this call only.
    fn go(&mut self, motion: Motion, breakpoints: &[u64]) -> Result<Stop, Self::Error>;

    fn place(&mut self) -> Result<Place, Self::Error>;

    /// The whole state; its count is not looked at.
    fn state(&mut self) -> Result<CpuState, Self::Error>;

    /// Reads guest memory at a linear address as the guest's kernel would, without any effect. The
    /// number of bytes read; fewer if the rest is not mapped to RAM.
    fn read(&mut self, linear: u64, into: &mut [u8]) -> usize;
}
