//! The 8254 timer: three channels at 1,193,182 Hz, and the parts of port 61h that belong to it.
//!
//! Source: Intel 8254 data sheet (231164). Counts and outputs are functions of virtual time, so
//! nothing runs between accesses. Channel 0 drives interrupt line 0, channel 1 once refreshed
//! memory, channel 2's gate and output are on port 61h.

mod channel;
#[cfg(test)]
mod tests;

use channel::Channel;
use serde::{Deserialize, Serialize};

/// Input frequency in Hz (the 14.31818 MHz crystal of the PC divided by 12).
pub const FREQUENCY: u64 = 1_193_182;
const NS_PER_S: u128 = 1_000_000_000;
/// Half the period in which port 61h bit 4 toggles, in ns: memory refresh every 15.085 us.
const REFRESH_NS: u64 = 15_085;

/// Whole input clocks since power-on at virtual time `now`.
fn ticks(now: u64) -> u64 {
    // Fits: 2^64 ns are 2.2e16 ticks.
    (u128::from(now) * u128::from(FREQUENCY) / NS_PER_S) as u64
}

/// The first nanosecond at which `ticks` is `tick`; the largest u64 when that is past the end.
fn time_of(tick: u64) -> u64 {
    let ns = (u128::from(tick) * NS_PER_S).div_ceil(u128::from(FREQUENCY));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// The timer chip and port 61h.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pit {
    channels: [Channel; 3],
    /// Tick up to which channel 0's edges have been reported.
    seen: u64,
    /// Port 61h bits 0 (gate of channel 2) and 1 (speaker data).
    control: u8,
}

/// What channel 0's output did since the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq0 {
    /// It rose at least once.
    pub rose: bool,
    /// Its level now.
    pub level: bool,
}

impl Pit {
    /// The state that a PC's firmware leaves: channel 0 at 18.2 Hz in mode 3, channel 1 for
    /// refresh, channel 2 in mode 3 with its gate low.
    pub fn new(now: u64) -> Self {
        let tick = ticks(now);
        Self {
            channels: [
                Channel::new(tick, 3, 0x10000, true),
                Channel::new(tick, 2, 18, true),
                Channel::new(tick, 3, 0x10000, false),
            ],
            seen: tick,
            control: 0,
        }
    }

    /// Brings channel 0's output up to `now`.
    pub fn advance(&mut self, now: u64) -> Irq0 {
        let tick = ticks(now);
        let rose = self.channels[0]
            .next_edge(self.seen)
            .is_some_and(|edge| edge <= tick);
        for channel in &mut self.channels {
            channel.settle(tick);
        }
        self.seen = tick;
        Irq0 {
            rose,
            level: self.channels[0].output(tick),
        }
    }

    /// Channel 0's output. `advance(now)` must have run.
    pub fn output0(&self, now: u64) -> bool {
        self.channels[0].output(ticks(now))
    }

    /// When channel 0's output rises next, in virtual ns, if it ever does by itself.
    pub fn next_deadline(&self) -> Option<u64> {
        self.channels[0].next_edge(self.seen).map(time_of)
    }

    /// Reads one of 40h to 43h, 61h.
    pub fn read(&mut self, now: u64, port: u16) -> u8 {
        let tick = ticks(now);
        match port {
            0x40..=0x42 => self.channels[usize::from(port & 3)].read(tick),
            0x61 => {
                let refresh = ((now / REFRESH_NS) & 1) as u8;
                let output = u8::from(self.channels[2].output(tick));
                self.control | refresh << 4 | output << 5
            }
            // The control word cannot be read.
            _ => 0xff,
        }
    }

    /// Writes one of 40h to 43h, 61h. `advance(now)` must have run.
    pub fn write(&mut self, now: u64, port: u16, value: u8) {
        let tick = ticks(now);
        match port {
            0x40..=0x42 => self.channels[usize::from(port & 3)].write(tick, value),
            0x43 => self.write_control(tick, value),
            0x61 => {
                self.control = value & 3;
                self.channels[2].set_gate(tick, value & 1 != 0);
            }
            _ => {}
        }
    }

    fn write_control(&mut self, tick: u64, value: u8) {
        match value >> 6 {
            3 => {
                for (index, channel) in self.channels.iter_mut().enumerate() {
                    if value & (2 << index) != 0 {
                        channel.read_back(tick, value & 0x20 == 0, value & 0x10 == 0);
                    }
                }
            }
            index => {
                let channel = &mut self.channels[usize::from(index)];
                if value & 0x30 == 0 {
                    channel.latch_count(tick);
                } else {
                    channel.set_mode(value & 0x3f);
                }
            }
        }
    }

    /// Whether a restored state is one that this code can have saved.
    pub fn is_valid(&self) -> bool {
        self.channels.iter().all(Channel::is_valid)
    }
}
