//! One channel of the 8254: what it counts from, and count and output as functions of the tick.

use serde::{Deserialize, Serialize};

/// How the bytes of a count are read and written (control word bits 5:4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    LowHigh,
}

/// A count register that waits for a boundary of the running cycle (modes 2 and 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    reload: u32,
    /// The tick from which the new count runs.
    at: u64,
    /// What `start` becomes then: `at`, or earlier by a high half in mode 3.
    start: u64,
}

/// Counter state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Counting {
    /// A control word was written and no count yet, or a one-shot has not been triggered.
    Idle,
    /// The counter held the reload value at tick `start`.
    Running { start: u64 },
    /// The gate is low; this many ticks had been counted.
    Paused { elapsed: u64 },
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// 0 to 5.
    mode: u8,
    bcd: bool,
    access: Access,
    gate: bool,
    /// 1 to 65,536 (or 10,000 in BCD).
    reload: u32,
    counting: Counting,
    pending: Option<Pending>,
    /// The low byte of a two-byte count that is being written.
    write_low: Option<u8>,
    /// The next read of an unlatched two-byte count gives the high byte.
    read_high: bool,
    /// A latched count: bytes still to be read, next one last.
    latched: Vec<u8>,
    latched_status: Option<u8>,
}

impl Channel {
    /// A channel that has been running in `mode` with `reload` since `tick`.
    pub fn new(tick: u64, mode: u8, reload: u32, gate: bool) -> Self {
        let counting = if gate {
            Counting::Running { start: tick }
        } else {
            Counting::Paused { elapsed: 0 }
        };
        Self {
            mode,
            bcd: false,
            access: Access::LowHigh,
            gate,
            reload,
            counting,
            pending: None,
            write_low: None,
            read_high: false,
            latched: Vec::new(),
            latched_status: None,
        }
    }

    pub fn is_valid(&self) -> bool {
        self.mode <= 5
            && (1..=0x10000).contains(&self.reload)
            && self
                .pending
                .is_none_or(|p| (1..=0x10000).contains(&p.reload) && p.start <= p.at)
            && self.latched.len() <= 2
    }

    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x10000 }
    }

    /// Takes over a pending count whose boundary has passed.
    pub fn settle(&mut self, tick: u64) {
        if let Some(pending) = self.pending.filter(|p| p.at <= tick) {
            self.reload = pending.reload;
            self.counting = Counting::Running {
                start: pending.start,
            };
            self.pending = None;
        }
    }

    /// Ticks since the counter held the reload value.
    fn elapsed(&self, tick: u64) -> Option<u64> {
        match self.counting {
            Counting::Idle => None,
            Counting::Running { start } => Some(tick.saturating_sub(start)),
            Counting::Paused { elapsed } => Some(elapsed),
        }
    }

    /// The counting element as the guest reads it.
    fn count(&self, tick: u64) -> u16 {
        let reload = u64::from(self.reload);
        let Some(elapsed) = self.elapsed(tick) else {
            return self.encode(reload);
        };
        let value = match self.mode {
            2 => reload - elapsed % reload,
            3 => {
                let high = reload.div_ceil(2);
                let phase = elapsed % reload;
                let phase = if phase < high { phase } else { phase - high };
                (reload & !1) - 2 * phase
            }
            _ => {
                let modulus = self.modulus();
                (reload + modulus - elapsed % modulus) % modulus
            }
        };
        self.encode(value)
    }

    fn encode(&self, value: u64) -> u16 {
        if !self.bcd {
            return value as u16;
        }
        let digit = |power: u64| (value / power % 10) as u16;
        digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
    }

    fn decode(&self, raw: u16) -> u32 {
        let value = if self.bcd {
            [12, 8, 4, 0]
                .iter()
                .fold(0, |sum, shift| sum * 10 + u32::from(raw >> shift & 15))
        } else {
            u32::from(raw)
        };
        // BCD digits above 9 are undefined in the data sheet; they count as their value here.
        if value == 0 {
            self.modulus() as u32
        } else {
            value.min(0x10000)
        }
    }

    /// The OUT pin. `settle(tick)` must have run.
    pub fn output(&self, tick: u64) -> bool {
        let reload = u64::from(self.reload);
        match (self.mode, self.counting) {
            (0, Counting::Idle) => false,
            (_, Counting::Idle) => true,
            // The gate going low forces OUT high at once.
            (2 | 3, Counting::Paused { .. }) => true,
            _ => {
                let Some(elapsed) = self.elapsed(tick) else {
                    return true;
                };
                match self.mode {
                    0 | 1 => elapsed >= reload,
                    2 => elapsed % reload != reload - 1 || reload == 1,
                    3 => elapsed % reload < reload.div_ceil(2),
                    _ => elapsed != reload,
                }
            }
        }
    }

    /// The first tick after `tick` at which OUT rises if nobody touches the channel.
    pub fn next_edge(&self, tick: u64) -> Option<u64> {
        let Counting::Running { start } = self.counting else {
            return None;
        };
        let reload = u64::from(self.reload);
        let once = |edge: u64| (edge > tick).then_some(edge);
        match self.mode {
            0 | 1 => once(start.saturating_add(reload)),
            2 | 3 => {
                let periods = tick.saturating_sub(start) / reload + 1;
                let edge = start.saturating_add(periods.saturating_mul(reload));
                match self.pending {
                    Some(p) if p.at < edge => Some(p.start.saturating_add(u64::from(p.reload))),
                    _ => Some(edge),
                }
            }
            _ => once(start.saturating_add(reload).saturating_add(1)),
        }
    }

    /// A control word for this channel: bits 5:4 access, 3:1 mode, 0 BCD.
    pub fn set_mode(&mut self, word: u8) {
        self.access = match word >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::LowHigh,
        };
        // Modes 6 and 7 are 2 and 3.
        self.mode = match word >> 1 & 7 {
            6 => 2,
            7 => 3,
            mode => mode,
        };
        self.bcd = word & 1 != 0;
        self.reload = self.reload.min(self.modulus() as u32);
        self.counting = Counting::Idle;
        self.pending = None;
        self.write_low = None;
        self.read_high = false;
        self.latched.clear();
        self.latched_status = None;
    }

    pub fn write(&mut self, tick: u64, value: u8) {
        let raw = match (self.access, self.write_low.take()) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::LowHigh, Some(low)) => u16::from(value) << 8 | u16::from(low),
            (Access::LowHigh, None) => {
                self.write_low = Some(value);
                // Mode 0 stops at the first byte, with OUT low.
                if self.mode == 0 {
                    self.counting = Counting::Idle;
                }
                return;
            }
        };
        self.load(tick, self.decode(raw));
    }

    /// A whole count has been written: it enters the counter with the next clock.
    fn load(&mut self, tick: u64, reload: u32) {
        let next = tick.saturating_add(1);
        match (self.mode, self.counting) {
            // One-shots take it with the next trigger; the running one goes on with the old
            // count, which differs only in what is read after it has ended.
            (1 | 5, Counting::Idle) => self.reload = reload,
            (1 | 5, _) => {
                if self.output(tick) {
                    self.reload = reload;
                    self.counting = Counting::Idle;
                } else {
                    self.pending = Some(Pending {
                        reload,
                        at: u64::MAX,
                        start: u64::MAX,
                    });
                }
            }
            (2 | 3, Counting::Running { start }) => {
                self.pending = Some(self.boundary(start, tick, reload));
            }
            _ => {
                self.reload = reload;
                self.counting = if self.gate {
                    Counting::Running { start: next }
                } else {
                    Counting::Paused { elapsed: 0 }
                };
            }
        }
    }

    /// Where a new count takes over from a running one: the end of the period in mode 2, of the
    /// half-period in mode 3.
    fn boundary(&self, start: u64, tick: u64, reload: u32) -> Pending {
        let old = u64::from(self.reload);
        let elapsed = tick.saturating_sub(start);
        let period = start + elapsed / old * old;
        let high = old.div_ceil(2);
        if self.mode == 3 && elapsed % old < high && old > 1 {
            // The low half comes next, with the new count.
            let at = period.saturating_add(high);
            return Pending {
                reload,
                at,
                start: at - u64::from(reload).div_ceil(2).min(at),
            };
        }
        let at = period.saturating_add(old);
        Pending {
            reload,
            at,
            start: at,
        }
    }

    /// The gate input (channel 2: port 61h bit 0).
    pub fn set_gate(&mut self, tick: u64, gate: bool) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        let next = tick.saturating_add(1);
        self.counting = match (self.mode, gate, self.counting) {
            (1 | 5, true, _) => {
                if let Some(pending) = self.pending.take() {
                    self.reload = pending.reload;
                }
                Counting::Running { start: next }
            }
            (1 | 5, false, counting) | (_, _, counting @ Counting::Idle) => counting,
            (_, false, Counting::Running { start }) => {
                if let Some(pending) = self.pending.take() {
                    self.reload = pending.reload;
                }
                Counting::Paused {
                    elapsed: tick.saturating_sub(start),
                }
            }
            // Modes 2 and 3 start over, 0 and 4 go on.
            (2 | 3, true, Counting::Paused { .. }) => Counting::Running { start: next },
            (_, true, Counting::Paused { elapsed }) => Counting::Running {
                start: tick.saturating_sub(elapsed),
            },
            (_, _, counting) => counting,
        };
    }

    pub fn latch_count(&mut self, tick: u64) {
        if !self.latched.is_empty() {
            return;
        }
        let [low, high] = self.count(tick).to_le_bytes();
        self.latched = match self.access {
            Access::Low => vec![low],
            Access::High => vec![high],
            Access::LowHigh => vec![high, low],
        };
    }

    /// The read-back command.
    pub fn read_back(&mut self, tick: u64, count: bool, status: bool) {
        if count {
            self.latch_count(tick);
        }
        if status && self.latched_status.is_none() {
            let access = match self.access {
                Access::Low => 1,
                Access::High => 2,
                Access::LowHigh => 3,
            };
            let not_loaded = self.pending.is_some()
                || match self.counting {
                    Counting::Idle => true,
                    Counting::Running { start } => start > tick,
                    Counting::Paused { .. } => false,
                };
            self.latched_status = Some(
                u8::from(self.output(tick)) << 7
                    | u8::from(not_loaded) << 6
                    | access << 4
                    | self.mode << 1
                    | u8::from(self.bcd),
            );
        }
    }

    pub fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        if let Some(byte) = self.latched.pop() {
            return byte;
        }
        let [low, high] = self.count(tick).to_le_bytes();
        match self.access {
            Access::Low => low,
            Access::High => high,
            Access::LowHigh => {
                self.read_high = !self.read_high;
                if self.read_high { low } else { high }
            }
        }
    }
}
