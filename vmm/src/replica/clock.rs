//! The host's clock as the guest's: virtual nanoseconds since power-on, by this host's monotonic
//! clock. Only a replica that records reads it.

use std::time::Instant;

/// Virtual time on this host.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    started: Instant,
    /// What virtual time was at `started`.
    base_ns: u64,
}

impl HostClock {
    /// A clock that reads `virtual_ns` now.
    pub fn from(virtual_ns: u64) -> Self {
        Self {
            started: Instant::now(),
            base_ns: virtual_ns,
        }
    }

    pub fn now(&self) -> u64 {
        self.base_ns.saturating_add(nanos(self.started.elapsed()))
    }
}

/// What the primary's clock reads, estimated on the backup from the clock in its entries: an entry
/// comes no earlier than it was made, so the largest estimate is the nearest.
///
/// After a failover the guest's clock goes on from here, so that the guest does not lose the time
/// that detection took. It is never behind the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrimaryClock(Option<HostClock>);

impl PrimaryClock {
    /// An entry came in that was made when the primary's clock read `clock_ns`.
    pub fn heard(&mut self, clock_ns: u64) {
        if self.0.is_none_or(|estimate| estimate.now() < clock_ns) {
            self.0 = Some(HostClock::from(clock_ns));
        }
    }

    /// The clock to go live with; at least `virtual_ns`, where the log's own clock stands.
    pub fn take_over(&self, virtual_ns: u64) -> HostClock {
        match self.0 {
            Some(estimate) if estimate.now() >= virtual_ns => estimate,
            _ => HostClock::from(virtual_ns),
        }
    }
}

/// Nanoseconds of this process's monotonic time, as the protocol's machines take it.
#[derive(Clone, Copy, Debug)]
pub struct Monotonic(Instant);

impl Monotonic {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn now(&self) -> u64 {
        nanos(self.0.elapsed())
    }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_over_no_earlier_than_the_log() {
        let mut primary = PrimaryClock::default();
        primary.heard(1_000);
        assert!(primary.take_over(5_000_000_000).now() >= 5_000_000_000);
        primary.heard(9_000_000_000);
        assert!(primary.take_over(10).now() >= 9_000_000_000);
    }

    #[test]
    fn keeps_the_largest_estimate() {
        let mut primary = PrimaryClock::default();
        primary.heard(60_000_000_000);
        primary.heard(1_000); // came late: says nothing new
        assert!(primary.take_over(0).now() >= 60_000_000_000);
    }
}
