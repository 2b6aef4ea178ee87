//! The guest's one clock, as a function of the position.
//!
//! Between two logged events the clock advances by a fixed amount for each unit of the position's
//! count (an instruction, a branch, an exit: the engine's choice), so a read of it (RDTSC, a timer's count register) costs no bytes in the log; each logged event says
//! what the clock reads at its position and so re-bases the function.

use serde::{Deserialize, Serialize};

/// The clock reads `ns + (count - at_count) * ns_per_count` at position `count`.
///
/// Unit: nanoseconds of virtual time since power-on. The guest's TSC runs at 1 GHz and is equal to
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockBase {
    /// The position's count at which the clock was last set.
    pub at_count: u64,
    /// What the clock reads there, in virtual nanoseconds since power-on.
    pub ns: u64,
    /// Advance of the clock for each unit of the count, in nanoseconds. Smaller than what the engine
    /// needs for a unit, so that re-basing moves the clock forward, as a rule.
    pub ns_per_count: u64,
}

impl ClockBase {
    /// Frequency of the guest's TSC, in Hz: one tick is one virtual nanosecond.
    pub const TSC_HZ: u64 = 1_000_000_000;

    /// The clock at power-on: it reads 0 at count 0.
    pub fn at_power_on(ns_per_count: u64) -> Self {
        Self {
            at_count: 0,
            ns: 0,
            ns_per_count,
        }
    }

    /// What the clock reads at the position `count`.
    pub fn at(&self, count: u64) -> u64 {
        let passed = count.saturating_sub(self.at_count);
        self.ns
            .saturating_add(passed.saturating_mul(self.ns_per_count))
    }

    /// The base after an event at `count` that wants the clock to read `ns`; it never runs back.
    #[must_use]
    pub fn rebased(&self, count: u64, ns: u64) -> Self {
        Self {
            at_count: count,
            ns: ns.max(self.at(count)),
            ns_per_count: self.ns_per_count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_runs_back() {
        let base = ClockBase {
            at_count: 100,
            ns: 1000,
            ns_per_count: 1,
        };
        assert_eq!(base.at(150), 1050);
        let early = base.rebased(150, 1010);
        assert_eq!(early.at(150), 1050);
        let late = base.rebased(150, 9000);
        assert_eq!(late.at(151), 9001);
    }
}
