//! A vCPU that computes without an exit, with an engine that has positions only at exits: for how
//! long it may, and how the memory that it writes is kept account of.
//!
//! The engine stops it after `vm.stretch_ms`, which bounds how long an event waits for the guest. If
//! something waits then, or if this has gone on for so long that too much work would be lost with
//! this host, the stretch is closed: what the vCPU has done is sent to the backup as state.
//!
//! How large that state is depends on how long ago the written pages were last counted. Counting
//! them costs something as well (every page that is written again has to be noticed again), so it
//! is done often while large stretches are closed, and seldom otherwise.

use std::time::{Duration, Instant};

/// After so many limits of a stretch it is closed even if nothing waits: 100 ms with the default.
const LIMITS_MAX: u32 = 25;
/// Written pages are forgotten at most this often …
const FORGET_MIN: Duration = Duration::from_millis(10);
/// … and at least this often, in a guest that never computes for long.
const FORGET_MAX: Duration = Duration::from_millis(640);
/// A stretch with more pages than this (1 MiB) makes it often.
const PAGES_MANY: u64 = 256;

/// The account of it.
#[derive(Debug)]
pub struct Drift {
    longest: Duration,
    /// The count behind which the vCPU drifts, and since when.
    since: Option<(u64, Instant)>,
    forget_every: Duration,
    forgotten: Instant,
}

impl Drift {
    /// For an engine that stops the vCPU after `limit` without an exit.
    pub fn new(limit: Duration) -> Self {
        Self {
            longest: limit * LIMITS_MAX,
            since: None,
            forget_every: FORGET_MIN,
            forgotten: Instant::now(),
        }
    }

    /// The vCPU was stopped somewhere behind `count`: whether it has been there for too long.
    pub fn is_long(&mut self, count: u64) -> bool {
        match self.since {
            Some((same, since)) if same == count => since.elapsed() >= self.longest,
            _ => {
                self.since = Some((count, Instant::now()));
                false
            }
        }
    }

    /// A stretch was closed with so many pages. Those are forgotten now.
    pub fn closed(&mut self, pages: u64) {
        self.since = None;
        self.forgotten = Instant::now();
        if pages > PAGES_MANY {
            self.forget_every = FORGET_MIN;
        }
    }

    /// Whether to forget, at a position, which pages were written before it. If so, it is done now.
    pub fn forgets(&mut self) -> bool {
        let due = self.forgotten.elapsed() >= self.forget_every;
        if due {
            self.forgotten = Instant::now();
            self.forget_every = (self.forget_every * 2).min(FORGET_MAX);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_too_long_only_if_the_vcpu_has_not_moved() {
        let mut drift = Drift::new(Duration::ZERO);
        assert!(!drift.is_long(5), "it has just begun");
        assert!(drift.is_long(5));
        assert!(!drift.is_long(6), "there was an exit");
        drift.closed(0);
        assert!(!drift.is_long(6), "a new one");
        let mut drift = Drift::new(Duration::from_secs(3600));
        assert!(!drift.is_long(5));
        assert!(!drift.is_long(5));
    }

    #[test]
    fn pages_are_forgotten_often_while_stretches_are_large() {
        let mut drift = Drift::new(Duration::ZERO);
        for _ in 0..20 {
            drift.forgotten -= FORGET_MAX;
            assert!(drift.forgets());
            assert!(!drift.forgets(), "not twice at once");
        }
        assert_eq!(drift.forget_every, FORGET_MAX);
        drift.closed(PAGES_MANY);
        assert_eq!(drift.forget_every, FORGET_MAX);
        drift.closed(PAGES_MANY + 1);
        assert_eq!(drift.forget_every, FORGET_MIN);
    }
}
