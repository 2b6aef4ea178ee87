//! How far the backup's execution is behind, and how much the primary is slowed for it.
//!
//! Lag is the age of the oldest entry that the backup has not executed. The primary logs its
//! progress every few milliseconds, so this is the backup's delay to within that and the way of an
//! ack.
//!
//! The primary's share of the time is steered by a proportional-integral rule towards a lag
//! between half the target and the target: a backup that is a little slow costs a few percent, and
//! the share settles at what the backup can follow. At the limit the primary stands.

use std::collections::VecDeque;

use crate::config::Config;

/// The whole of the time, in thousandths.
pub const FULL_SHARE: u32 = 1000;
/// The least share while the primary runs at all.
const SHARE_MIN: f64 = 0.05;
/// How often the share is set.
const STEP_NS: u64 = 10_000_000;
/// Entries that were appended within this time are one sample.
const SAMPLE_NS: u64 = 500_000;
/// The integral part: share lost per second at a lag of twice the target.
const INTEGRAL: f64 = 0.8;
/// The proportional part: share lost at the limit, if it were not clamped. Steep, because the lag
/// goes on growing for as long as the backlog takes to execute.
const PROPORTIONAL: f64 = 4.0;

#[derive(Debug)]
struct Sample {
    last_seq: u64,
    appended_ns: u64,
}

#[derive(Debug)]
pub struct Pace {
    target_ns: u64,
    limit_ns: u64,
    unexecuted: VecDeque<Sample>,
    /// The integral part of the share.
    base: f64,
    share: f64,
    stepped_ns: u64,
}

impl Pace {
    pub fn new(config: &Config, now: u64) -> Self {
        Self {
            target_ns: config.lag_target_ns,
            limit_ns: config.lag_limit_ns,
            unexecuted: VecDeque::new(),
            base: 1.0,
            share: 1.0,
            stepped_ns: now,
        }
    }

    /// Entry `seq` was appended.
    pub fn appended(&mut self, seq: u64, now: u64) {
        match self.unexecuted.back_mut() {
            Some(last) if now.saturating_sub(last.appended_ns) < SAMPLE_NS => last.last_seq = seq,
            _ => self.unexecuted.push_back(Sample {
                last_seq: seq,
                appended_ns: now,
            }),
        }
    }

    /// The backup has executed the entries below `executed`.
    pub fn executed(&mut self, executed: u64) {
        while self
            .unexecuted
            .front()
            .is_some_and(|sample| sample.last_seq < executed)
        {
            self.unexecuted.pop_front();
        }
    }

    /// How far the backup is behind.
    pub fn lag_ns(&self, now: u64) -> u64 {
        self.unexecuted
            .front()
            .map_or(0, |sample| now.saturating_sub(sample.appended_ns))
    }

    /// The backup is so far behind that the primary must stand.
    pub fn is_over_limit(&self, now: u64) -> bool {
        self.lag_ns(now) >= self.limit_ns
    }

    /// The share of the time, in thousandths, that the primary's vCPU may run.
    pub fn share(&self) -> u32 {
        (self.share * f64::from(FULL_SHARE)).round() as u32
    }

    /// When the share is next to be set; `None` while it is whole and nothing is behind.
    pub fn deadline_ns(&self) -> Option<u64> {
        let steers = self.share < 1.0 || !self.unexecuted.is_empty();
        steers.then_some(self.stepped_ns + STEP_NS)
    }

    /// Sets the share anew, if it is time.
    pub fn tick(&mut self, now: u64) {
        let since_ns = now.saturating_sub(self.stepped_ns);
        if since_ns < STEP_NS {
            return;
        }
        self.stepped_ns = now;
        let seconds = since_ns.min(10 * STEP_NS) as f64 / 1e9;
        let (lag, target) = (self.lag_ns(now) as f64, self.target_ns as f64);
        // Positive: too slow. Between half the target and the target all is well.
        let error = if lag > target {
            lag / target - 1.0
        } else {
            (lag / target - 0.5).min(0.0)
        };
        self.base = (self.base - INTEGRAL * error.min(2.0) * seconds).clamp(SHARE_MIN, 1.0);
        let over = (lag - target).max(0.0) / (self.limit_ns as f64 - target);
        self.share = (self.base - PROPORTIONAL * over).clamp(SHARE_MIN, 1.0);
    }
}

#[cfg(test)]
mod tests;
