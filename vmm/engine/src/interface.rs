//! The engine trait.

use std::ops::Range;
use std::time::Duration;

use ftlog::{CountUnit, Position};

use crate::{ClockBase, CpuState, Entry, Exit};

/// What an engine is; part of the log's header, and what `doctor` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineInfo {
    /// Short name: `soft`, `kvm`.
    pub name: &'static str,
    /// What a position's count counts.
    pub counts: CountUnit,
    /// Advance of the guest's clock for each unit of the count, in nanoseconds.
    pub ns_per_count: u64,
    /// A hash of what CPUID shows to the guest.
    pub cpuid_hash: u64,
    /// A fingerprint of the results of those host instructions that differ between CPU models and
    /// that the engine executes for the guest (RCPPS, RSQRTPS, x87 transcendentals); with `kvm` of
    /// the model itself.
    pub host_math: u64,
}

/// Why an engine could not go on. All of these are the host's or the VMM's fault: whatever the guest
/// does ends in a guest-visible exception or an [`Exit`].
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("run was entered with {entry:?}, but {expected}")]
    WrongEntry {
        entry: Entry,
        expected: &'static str,
    },
    #[error("asked to stop at position {asked}, which lies before the vCPU's position {now}")]
    PositionPassed { asked: u64, now: u64 },
    #[error("state refused: {0}")]
    BadState(String),
    /// What the hypervisor refused or gave up on, in words.
    #[error("{0}")]
    Hypervisor(String),
    #[error("the engine's host resources failed")]
    Host(#[source] std::io::Error),
}

/// The one vCPU of a machine.
///
/// Every call but `run` requires the vCPU to stand at a boundary (the last exit was
/// `Exit::Boundary`, or it has not run yet). After `Exit::Adrift` there are three: `run` goes on,
/// `state` and `take_dirty` say what has become of the guest; `set_state` makes a position of it.
pub trait Engine: Send {
    fn info(&self) -> EngineInfo;

    /// Runs until an exit, or until the position's count is `until` with the next instruction not
    /// begun. Never runs past it. If the vCPU already stands there it returns `Reached` at once.
    ///
    /// An exit of the instruction that retires at `until` comes before `Reached`.
    /// A halted vCPU returns `Halt` again.
    fn run(&mut self, until: Option<u64>, entry: Entry) -> Result<Exit, EngineError>;

    /// Where the vCPU stands. Also right while a read is pending (the count does not include the
    /// instruction that waits).
    fn position(&self) -> Position;

    /// Whether `inject` is possible now: RFLAGS.IF is set and no interrupt shadow (STI, MOV SS).
    fn can_interrupt(&self) -> bool;

    /// With an engine that counts exits: how long `run` lets the vCPU run without one before it
    /// returns `Adrift`; `None` (at first): for ever. Other engines stop at any position and do not
    /// need it.
    fn set_stretch_limit(&mut self, _limit: Option<Duration>) {}

    /// Delivers an external interrupt: pushes the frame and enters the handler before the next
    /// instruction. Wakes a halted vCPU. Does not change the position's count.
    fn inject(&mut self, vector: u8) -> Result<(), EngineError>;

    /// While on, `run` returns `Window` at the first boundary at which `can_interrupt` holds.
    fn request_window(&mut self, on: bool);

    /// Whether the vCPU waits in HLT.
    fn halted(&self) -> bool;

    /// Sets what the clock reads as a function of the position (RDTSC, RDTSCP).
    fn set_clock(&mut self, clock: ClockBase);

    /// The whole architectural state.
    fn state(&self) -> CpuState;

    /// Replaces the whole architectural state, the position's count included.
    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError>;

    /// Tells the engine that guest-physical memory was changed from outside (device DMA, loader,
    /// restore, the pages of a stretch), so that whatever it derived from it (code, translations)
    /// is dropped. Page tables may be among it.
    fn memory_written(&mut self, range: Range<u64>);

    /// Guest frame numbers (4 KiB) that the vCPU has written since the last call, ascending; with
    /// some engines others too, which it has not.
    fn take_dirty(&mut self) -> Vec<u64>;

    /// The exits since the engine was made, by kind, for statistics; empty if it does not count them.
    fn exit_counts(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
