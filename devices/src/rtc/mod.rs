//! The MC146818 real-time clock and its CMOS memory at 70h and 71h.
//!
//! Source: Motorola MC146818A data sheet. The time is a function of virtual time: seconds since
//! 1970 (UTC) are `base + (now + phase) / 1e9`, so reading costs nothing and two boards with the
//! same inputs agree. Setting the clock changes `base`.

mod calendar;
#[cfg(test)]
mod tests;

use calendar::{DateTime, from_unix, to_unix};
use serde::{Deserialize, Serialize};

const NS_PER_S: u64 = 1_000_000_000;
/// "Update in progress" is shown this long before a second begins (data sheet: 244 us).
const UIP_NS: u64 = 244_000;
/// After the divider's reset the first update comes half a second later.
const DIVIDER_START_NS: u64 = NS_PER_S / 2;
/// Frequency of the periodic interrupt's divider in Hz.
const PERIODIC_HZ: u128 = 32_768;

const SECONDS: u8 = 0x00;
const SECONDS_ALARM: u8 = 0x01;
const MINUTES: u8 = 0x02;
const MINUTES_ALARM: u8 = 0x03;
const HOURS: u8 = 0x04;
const HOURS_ALARM: u8 = 0x05;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;

const A_UIP: u8 = 0x80;
const A_DIVIDER: u8 = 0x70;
const A_DIVIDER_RUNS: u8 = 0x20;
const B_SET: u8 = 0x80;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;
const C_IRQF: u8 = 0x80;
const C_PERIODIC: u8 = 0x40;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;
const D_VALID: u8 = 0x80;
const HOUR_PM: u8 = 0x80;
/// Alarm bytes with both top bits set match anything.
const ALARM_ANY: u8 = 0xc0;

/// The clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtc {
    /// Selected register, 0 to 7Fh.
    index: u8,
    /// Registers and CMOS memory. The clock's own registers are here only while it is stopped.
    #[serde(with = "serde_bytes")]
    ram: Vec<u8>,
    /// Unix seconds at `now + phase == 0`.
    base: i64,
    /// 0 to 999,999,999 ns: how far into a second virtual time 0 is.
    phase: u64,
    /// Virtual time up to which flags have been raised.
    seen: u64,
}

const RAM_SIZE: usize = 128;
/// Bound of `base` in seconds, far beyond any date that the registers or a u64 of ns can give.
const BASE_MAX: u64 = 1 << 50;

impl Rtc {
    /// `unix_ns` is the wall clock (ns since 1970, UTC) at virtual time 0; `memory` the bytes of
    /// RAM, for the CMOS bytes that say so.
    pub fn new(unix_ns: u64, memory: u64) -> Self {
        let mut ram = vec![0; RAM_SIZE];
        ram[usize::from(REG_A)] = A_DIVIDER_RUNS | 0x06;
        ram[usize::from(REG_B)] = B_24H;
        set_memory_size(&mut ram, memory);
        Self {
            index: 0,
            ram,
            base: (unix_ns / NS_PER_S) as i64,
            phase: unix_ns % NS_PER_S,
            seen: 0,
        }
    }

    /// Power-on reset of the machine: the clock goes on, interrupts are off (RESET# pin).
    pub fn reset(&mut self) {
        self.index = 0;
        *self.reg(REG_B) &= !(C_PERIODIC | C_ALARM | C_UPDATE);
        *self.reg(REG_C) = 0;
    }

    pub fn is_valid(&self) -> bool {
        self.ram.len() == RAM_SIZE
            && self.index < 0x80
            && self.phase < NS_PER_S
            && self.base.unsigned_abs() <= BASE_MAX
    }

    fn reg(&mut self, index: u8) -> &mut u8 {
        // `index` is below 128 everywhere, and `ram` has 128 bytes.
        &mut self.ram[usize::from(index)]
    }

    fn get(&self, index: u8) -> u8 {
        self.ram[usize::from(index)]
    }

    /// The interrupt output (line 8): any flag that is enabled.
    pub fn irq(&self) -> bool {
        self.get(REG_C) & self.get(REG_B) & (C_PERIODIC | C_ALARM | C_UPDATE) != 0
    }

    /// The clock counts: the divider runs and nobody is setting the time.
    fn runs(&self) -> bool {
        self.divider_runs() && self.get(REG_B) & B_SET == 0
    }

    fn divider_runs(&self) -> bool {
        self.get(REG_A) & A_DIVIDER == A_DIVIDER_RUNS
    }

    /// Nanoseconds of the divider chain at `now`.
    fn chain(&self, now: u64) -> u128 {
        u128::from(now) + u128::from(self.phase)
    }

    fn second(&self, now: u64) -> i64 {
        // At most 1.8e10: fits.
        self.base
            .saturating_add((self.chain(now) / u128::from(NS_PER_S)) as i64)
    }

    /// Virtual time at which second `second` begins, if that is not before time 0.
    fn time_of_second(&self, second: i64) -> Option<u64> {
        let ns = (i128::from(second) - i128::from(self.base)) * i128::from(NS_PER_S)
            - i128::from(self.phase);
        u64::try_from(ns).ok()
    }

    /// Ticks of the 32,768 Hz divider between two periodic interrupts.
    fn period(&self) -> Option<u128> {
        match self.get(REG_A) & 0x0f {
            0 => None,
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Raises the flags of everything that happened up to `now`.
    pub fn advance(&mut self, now: u64) {
        let from = std::mem::replace(&mut self.seen, now);
        let passed = |at: Option<u64>| at.is_some_and(|at| at <= now);
        let mut flags = 0;
        if passed(self.next_periodic(from)) {
            flags |= C_PERIODIC;
        }
        // Updates and alarms come with a new second only.
        if self.second(from) != self.second(now) {
            if passed(self.next_update(from)) {
                flags |= C_UPDATE;
            }
            if passed(self.next_alarm(from)) {
                flags |= C_ALARM;
            }
        }
        *self.reg(REG_C) |= flags;
    }

    fn next_periodic(&self, from: u64) -> Option<u64> {
        let period = self.period().filter(|_| self.divider_runs())?;
        let tick = self.chain(from) * PERIODIC_HZ / u128::from(NS_PER_S);
        let next = (tick / period + 1) * period;
        let chain = (next * u128::from(NS_PER_S)).div_ceil(PERIODIC_HZ);
        u64::try_from(chain - u128::from(self.phase)).ok()
    }

    fn next_update(&self, from: u64) -> Option<u64> {
        self.runs()
            .then(|| self.time_of_second(self.second(from) + 1))
            .flatten()
    }

    fn next_alarm(&self, from: u64) -> Option<u64> {
        if !self.runs() {
            return None;
        }
        let field = |reg: u8, limit: u32| {
            let raw = self.get(reg);
            if raw & ALARM_ANY == ALARM_ANY {
                return Some(None);
            }
            let value = if reg == HOURS_ALARM {
                self.decode_hour(raw)
            } else {
                self.decode(raw)
            };
            (u32::from(value) < limit).then_some(Some(u32::from(value)))
        };
        let (hour, minute, second) = (
            field(HOURS_ALARM, 24)?,
            field(MINUTES_ALARM, 60)?,
            field(SECONDS_ALARM, 60)?,
        );
        self.time_of_second(calendar::next_match(
            self.second(from),
            hour,
            minute,
            second,
        ))
    }

    /// When an interrupt that is enabled and not already asserted comes next, in virtual ns.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.irq() {
            return None;
        }
        let enabled = self.get(REG_B);
        let want = |bit: u8, at: Option<u64>| at.filter(|_| enabled & bit != 0);
        [
            want(C_PERIODIC, self.next_periodic(self.seen)),
            want(C_UPDATE, self.next_update(self.seen)),
            want(C_ALARM, self.next_alarm(self.seen)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Reads 70h or 71h. `advance(now)` must have run.
    pub fn read(&mut self, now: u64, port: u16) -> u8 {
        if port & 1 == 0 {
            // The index register is write-only.
            return 0xff;
        }
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY if self.runs() => {
                self.time_register(self.index, now)
            }
            REG_A => {
                let left = u128::from(NS_PER_S) - self.chain(now) % u128::from(NS_PER_S);
                let updating = self.runs() && left <= u128::from(UIP_NS);
                self.get(REG_A) | if updating { A_UIP } else { 0 }
            }
            REG_C => {
                let irqf = if self.irq() { C_IRQF } else { 0 };
                std::mem::take(self.reg(REG_C)) | irqf
            }
            REG_D => D_VALID,
            index => self.get(index),
        }
    }

    /// Writes 70h or 71h. `advance(now)` must have run.
    pub fn write(&mut self, now: u64, port: u16, value: u8) {
        if port & 1 == 0 {
            // Bit 7 gates the NMI; this machine has none.
            self.index = value & 0x7f;
            return;
        }
        match self.index {
            SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | CENTURY => {
                let running = self.runs();
                if running {
                    self.stop(now);
                }
                *self.reg(self.index) = value;
                if running {
                    self.start(now);
                }
            }
            REG_A => self.write_control(now, REG_A, value & !A_UIP),
            REG_B => self.write_control(now, REG_B, value),
            REG_C | REG_D => {}
            index => *self.reg(index) = value,
        }
    }

    /// Registers A and B, either of which may stop or start the clock.
    fn write_control(&mut self, now: u64, register: u8, value: u8) {
        let ran = self.runs();
        let divided = self.divider_runs();
        *self.reg(register) = value;
        if register == REG_B && value & B_SET != 0 {
            // Setting SET clears the update interrupt's enable bit (data sheet).
            *self.reg(REG_B) &= !C_UPDATE;
        }
        if !divided && self.divider_runs() {
            self.restart_divider(now);
        }
        match (ran, self.runs()) {
            (true, false) => self.stop(now),
            (false, true) => self.start(now),
            _ => {}
        }
    }

    /// Moves the phase so that the next second begins half a second from `now`.
    fn restart_divider(&mut self, now: u64) {
        let into = now % NS_PER_S;
        self.phase = (2 * NS_PER_S - DIVIDER_START_NS - into) % NS_PER_S;
    }

    /// Writes the current time into the registers.
    fn stop(&mut self, now: u64) {
        for index in [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY] {
            *self.reg(index) = self.time_register(index, now);
        }
    }

    /// Takes the time from the registers. Fields out of range are taken modulo their range, so
    /// that any bytes are some time.
    fn start(&mut self, now: u64) {
        let century = u16::from(self.decode(self.get(CENTURY))) % 100;
        let year = u16::from(self.decode(self.get(YEAR))) % 100;
        let unix = to_unix(&DateTime {
            year: century * 100 + year,
            month: self.decode(self.get(MONTH)),
            day: self.decode(self.get(DAY)),
            hour: self.decode_hour(self.get(HOURS)),
            minute: self.decode(self.get(MINUTES)),
            second: self.decode(self.get(SECONDS)),
        });
        self.base = unix - (self.chain(now) / u128::from(NS_PER_S)) as i64;
    }

    fn time_register(&self, index: u8, now: u64) -> u8 {
        let second = self.second(now);
        let time = from_unix(second);
        match index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            WEEKDAY => calendar::weekday(second),
            DAY => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode((time.year % 100) as u8),
            _ => self.encode((time.year / 100) as u8),
        }
    }

    fn encode(&self, value: u8) -> u8 {
        if self.get(REG_B) & B_BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, raw: u8) -> u8 {
        if self.get(REG_B) & B_BINARY != 0 {
            raw
        } else {
            (raw >> 4) * 10 + (raw & 15)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.get(REG_B) & B_24H != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { HOUR_PM } else { 0 };
        let hour = if hour.is_multiple_of(12) {
            12
        } else {
            hour % 12
        };
        self.encode(hour) | pm
    }

    fn decode_hour(&self, raw: u8) -> u8 {
        if self.get(REG_B) & B_24H != 0 {
            return self.decode(raw);
        }
        let pm = if raw & HOUR_PM != 0 { 12 } else { 0 };
        self.decode(raw & !HOUR_PM) % 12 + pm
    }
}

/// The bytes in which PC firmware leaves the size of memory.
fn set_memory_size(ram: &mut [u8], memory: u64) {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let mut put = |at: usize, value: u64, bytes: usize| {
        ram[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    };
    // Equipment: an FPU.
    put(0x14, 0x02, 1);
    put(0x15, (memory / KIB).min(640), 2);
    let above_1m = (memory.saturating_sub(MIB) / KIB).min(0xffff);
    put(0x17, above_1m, 2);
    put(0x30, above_1m, 2);
    put(
        0x34,
        (memory.saturating_sub(16 * MIB) / (64 * KIB)).min(0xffff),
        2,
    );
}
