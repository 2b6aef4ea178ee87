//! How long the vCPU runs before the recording replica looks around.
//!
//! A slice is a number of what the engine counts (instructions, exits) that is adapted so that it
//! takes about [`TARGET`]. Where slices end does not matter to the guest: only what is logged does.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use ftlog::CountUnit;

/// What a slice should take: the worst delay of an interrupt for a busy vCPU.
const TARGET: Duration = Duration::from_micros(200);
/// How short and how long a slice may be, by what is counted.
const INSTRUCTIONS: RangeInclusive<u64> = 1_000..=1_000_000;
const BRANCHES: RangeInclusive<u64> = 100..=200_000;
const EXITS: RangeInclusive<u64> = 1..=10_000;
/// How long the first slice is, in shortest ones.
const FIRST: u64 = 20;
/// Slowing down is done in pauses of at least this, so that few of them are needed.
const PAUSE_MIN: Duration = Duration::from_micros(500);

pub struct Slice {
    /// Counts in a slice, and what they can be.
    counts: u64,
    bounds: RangeInclusive<u64>,
    begun: Instant,
    /// Where the present slice ends; `None` between two.
    end: Option<u64>,
    /// Time that the vCPU ran and has not paid for with a pause.
    owed: Duration,
}

impl Slice {
    pub fn new(counted: CountUnit) -> Self {
        let bounds = match counted {
            CountUnit::Instructions => INSTRUCTIONS,
            CountUnit::Branches => BRANCHES,
            CountUnit::Exits => EXITS,
        };
        Self {
            counts: FIRST * bounds.start(),
            bounds,
            begun: Instant::now(),
            end: None,
            owed: Duration::ZERO,
        }
    }

    /// The position at which the slice ends. Begins one at position `count` if there is none.
    pub fn end(&mut self, count: u64) -> u64 {
        if let Some(end) = self.end {
            return end;
        }
        self.begun = Instant::now();
        let end = count.saturating_add(self.counts);
        self.end = Some(end);
        end
    }

    /// The guest made an output at position `count`, and the slice goes on. One that takes too long
    /// ends here: a guest that puts out more than it computes gets its interrupts all the same.
    pub fn put_out(&mut self, count: u64) {
        if self.begun.elapsed() > TARGET * 2 {
            self.end = Some(count);
        }
    }

    /// The slice is over, wherever it was to end.
    pub fn over(&mut self) {
        self.end = None;
    }

    /// The slice's end was reached: the next one is longer or shorter if that was far from the
    /// target.
    pub fn reached(&mut self) {
        let took = self.begun.elapsed();
        let next = if took > TARGET * 2 {
            self.counts / 2
        } else if took < TARGET / 2 {
            self.counts * 2
        } else {
            self.counts
        };
        self.counts = next.clamp(*self.bounds.start(), *self.bounds.end());
        self.owed += took;
    }

    /// The vCPU has waited: nothing is owed.
    pub fn idled(&mut self) {
        self.owed = Duration::ZERO;
    }

    /// Pauses so that the vCPU gets the fraction `speed` (0 to 1) of the time.
    pub fn slow_down(&mut self, speed: f64) {
        if speed >= 1.0 {
            self.owed = Duration::ZERO;
            return;
        }
        let pause = self.owed.mul_f64(1.0 / speed.clamp(0.05, 1.0) - 1.0);
        if pause >= PAUSE_MIN {
            std::thread::sleep(pause);
            self.owed = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_do_not_prolong_a_slice_and_end_one_that_takes_too_long() {
        let mut slice = Slice::new(CountUnit::Instructions);
        let end = slice.end(0);
        for count in 1..10 {
            slice.put_out(count);
            let present = slice.end(count);
            assert!(present == end || present <= count, "prolonged to {present}");
        }
        let mut slice = Slice::new(CountUnit::Exits);
        let end = slice.end(0);
        while slice.begun.elapsed() <= TARGET * 2 {
            std::hint::spin_loop();
        }
        assert_eq!(slice.end(3), end, "only an output ends it early");
        slice.put_out(7);
        assert_eq!(slice.end(7), 7);
        slice.over();
        assert!(slice.end(7) > 7, "the next one goes on");
    }
}
