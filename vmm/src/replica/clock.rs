//! The host's clock as the guest's: virtual nanoseconds since power-on, by this host's monotonic
//! clock. Only a replica that records reads it.
//!
//! On a host so slow that the guest's own timer takes all of its time (a tick costs some ten exits),
//! the guest would never get anything done. There its time can be made to pass more slowly
//! ([`Pace`]).

use std::time::{Duration, Instant};

/// How much of the host's time passes for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// 1 to 100.
    percent: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { percent: 100 }
    }
}

impl Pace {
    /// `percent` of it; at least 1, at most all.
    pub fn new(percent: u32) -> Self {
        Self {
            percent: percent.clamp(1, 100),
        }
    }

    fn of(self, host: Duration) -> u64 {
        nanos(host.saturating_mul(self.percent) / 100)
    }
}

/// Virtual time on this host.
#[derive(Clone, Copy, Debug)]
pub struct HostClock {
    started: Instant,
    /// What virtual time was at `started`.
    base_ns: u64,
    pace: Pace,
}

impl HostClock {
    /// A clock that reads `virtual_ns` now.
    pub fn from(virtual_ns: u64, pace: Pace) -> Self {
        Self {
            started: Instant::now(),
            base_ns: virtual_ns,
            pace,
        }
    }

    pub fn now(&self) -> u64 {
        self.base_ns
            .saturating_add(self.pace.of(self.started.elapsed()))
    }

    /// How long it is from now, on the host, until the clock reads `virtual_ns`.
    pub fn until(&self, virtual_ns: u64) -> Duration {
        let left = Duration::from_nanos(virtual_ns.saturating_sub(self.now()));
        left.saturating_mul(100) / self.pace.percent
    }
}

/// What the primary's clock reads, estimated on the backup from the clock in its entries: an entry
/// comes no earlier than it was made, so the largest estimate is the nearest.
///
/// After a failover the guest's clock goes on from here, so that the guest does not lose the time
/// that detection took. It is never behind the log.
#[derive(Clone, Copy, Debug)]
pub struct PrimaryClock {
    estimate: Option<HostClock>,
    pace: Pace,
}

impl PrimaryClock {
    /// Nothing heard yet.
    pub fn new(pace: Pace) -> Self {
        Self {
            estimate: None,
            pace,
        }
    }

    /// An entry came in that was made when the primary's clock read `clock_ns`.
    pub fn heard(&mut self, clock_ns: u64) {
        if self
            .estimate
            .is_none_or(|estimate| estimate.now() < clock_ns)
        {
            self.estimate = Some(HostClock::from(clock_ns, self.pace));
        }
    }

    /// The clock to go live with; at least `virtual_ns`, where the log's own clock stands.
    pub fn take_over(&self, virtual_ns: u64) -> HostClock {
        match self.estimate {
            Some(estimate) if estimate.now() >= virtual_ns => estimate,
            _ => HostClock::from(virtual_ns, self.pace),
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

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_at_its_pace() {
        let started = Instant::now();
        let clock = HostClock::from(5, Pace::new(25));
        let left = clock.until(5 + 25_000_000_000);
        let now = clock.now();
        let most = 5 + nanos(started.elapsed()) / 4;
        assert!((5..=most).contains(&now), "{now} {most}");
        assert!(left <= Duration::from_secs(100));
        assert!(left + started.elapsed() >= Duration::from_secs(100));
        assert_eq!(Pace::new(0).percent, 1);
        assert_eq!(clock.until(0), Duration::ZERO);
    }

    #[test]
    fn takes_over_no_earlier_than_the_log() {
        let mut primary = PrimaryClock::new(Pace::default());
        primary.heard(1_000);
        assert!(primary.take_over(5_000_000_000).now() >= 5_000_000_000);
        primary.heard(9_000_000_000);
        assert!(primary.take_over(10).now() >= 9_000_000_000);
    }

    #[test]
    fn keeps_the_largest_estimate() {
        let mut primary = PrimaryClock::new(Pace::default());
        primary.heard(60_000_000_000);
        primary.heard(1_000); // came late: says nothing new
        assert!(primary.take_over(0).now() >= 60_000_000_000);
    }
}
