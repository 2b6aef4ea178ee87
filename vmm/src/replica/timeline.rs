//! What happened at a failover, and when, by this host's clock.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use wire::control::Failover;

use crate::link::lock;

#[derive(Default)]
pub struct Timeline {
    failover: Mutex<Option<Failover>>,
    /// Live, and no frame has left yet.
    awaiting_output: AtomicBool,
}

impl Timeline {
    /// The other replica is suspected.
    pub fn suspected(&self) {
        let suspected_unix_us = Some(unix_us());
        *lock(&self.failover) = Some(Failover {
            suspected_unix_us,
            ..Failover::default()
        });
    }

    pub fn claimed(&self, view: u64) {
        self.note(|failover, now| {
            failover.view = view;
            failover.claimed_unix_us = Some(now);
        });
    }

    pub fn log_consumed(&self) {
        self.note(|failover, now| failover.log_consumed_unix_us = Some(now));
    }

    pub fn live(&self) {
        self.note(|failover, now| failover.live_unix_us = Some(now));
        self.awaiting_output.store(true, Ordering::Release);
    }

    /// A frame left; only the first one after going live is noted.
    pub fn first_output(&self) {
        if self.awaiting_output.load(Ordering::Relaxed)
            && self.awaiting_output.swap(false, Ordering::AcqRel)
        {
            self.note(|failover, now| failover.first_output_unix_us = Some(now));
        }
    }

    pub fn last(&self) -> Option<Failover> {
        *lock(&self.failover)
    }

    fn note(&self, change: impl FnOnce(&mut Failover, u64)) {
        change(lock(&self.failover).get_or_insert_default(), unix_us());
    }
}

/// Microseconds since the Unix epoch.
pub fn unix_us() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
