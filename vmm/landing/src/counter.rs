//! What a landing needs of a counter of retired conditional branches.

use std::io;

/// Why a counter cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum CounterError {
    #[error(
        "this host has no counter of conditional branches: the kernel knows no such event \
         (perf_event_open: {0})"
    )]
    Hidden(#[source] io::Error),
    #[error(
        "the kernel refuses the counter (perf_event_open: {0}); set kernel.perf_event_paranoid to 1 \
         or lower, or give the program CAP_PERFMON"
    )]
    Forbidden(#[source] io::Error),
    #[error(
        "the counter was not on the PMU all the time (counted {running} ns of {enabled} ns); another \
         user of the PMU holds it, such as `perf` or the NMI watchdog"
    )]
    NotScheduled { enabled: u64, running: u64 },
    #[error("the counter was thrown off the PMU; another user holds it pinned")]
    Lost,
    #[error("asked for a kick at count {asked}, which lies before the count {now}")]
    Passed { asked: u64, now: u64 },
    #[error("the counter's system call failed")]
    Host(#[source] io::Error),
}

/// A counter of the conditional branches that the guest has retired on one vCPU.
pub trait BranchCounter {
    /// Branches retired by the guest since the counter was opened. Only asked while the vCPU is
    /// stopped; exact.
    fn read(&mut self) -> Result<u64, CounterError>;

    /// Asks that the vCPU be kicked when the count is `at`, or later by at most [`skid`], as a rule.
    /// Replaces what was asked before. `at` must be greater than the count.
    ///
    /// [`skid`]: BranchCounter::skid
    fn arm(&mut self, at: u64) -> Result<(), CounterError>;

    /// No kick any more; one that is under way may still come.
    fn disarm(&mut self) -> Result<(), CounterError>;

    /// Branches by which a kick is late at most, as far as is known: the margin of a landing. A CPU
    /// may be later (AMD's are); the landing then reports that it has overshot.
    fn skid(&self) -> u64;
}
