//! Figures that a replica gives of itself: distributions over the last few thousand samples, and
//! rates over the last second.

use std::collections::VecDeque;

use devices::Output;
use ftlog::replica::Replica;
use wire::control::{LogBytes, Quantiles};

/// Samples kept for a distribution.
const WINDOW: usize = 8192;
/// Over which a rate is taken, in nanoseconds.
const RATE_WINDOW_NS: u64 = 1_000_000_000;

/// The last samples of something measured in milliseconds.
#[derive(Default)]
pub struct Distribution {
    window: VecDeque<f32>,
    samples: u64,
    max: f32,
}

impl Distribution {
    pub fn add_ns(&mut self, ns: u64) {
        let ms = (ns as f64 / 1e6) as f32;
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(ms);
        self.samples += 1;
        self.max = self.max.max(ms);
    }

    /// Median and 99th percentile of the last samples; the maximum and the number of all.
    pub fn quantiles(&self) -> Quantiles {
        let mut sorted: Vec<f32> = self.window.iter().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let at = |share: f64| -> f64 {
            let last = sorted.len().saturating_sub(1);
            sorted
                .get((last as f64 * share).round() as usize)
                .map_or(0.0, |ms| f64::from(*ms))
        };
        Quantiles {
            p50: at(0.5),
            p99: at(0.99),
            max: f64::from(self.max),
            samples: self.samples,
        }
    }
}

/// A counter's growth per second, over about the last second.
#[derive(Default)]
pub struct Rate {
    /// (now, counter), oldest first.
    points: VecDeque<(u64, u64)>,
}

impl Rate {
    /// The counter reads `value` at `now_ns`; call it some ten times a second.
    pub fn sample(&mut self, now_ns: u64, value: u64) {
        self.points.push_back((now_ns, value));
        while self.points.len() > 2 && now_ns.saturating_sub(self.points[1].0) >= RATE_WINDOW_NS {
            self.points.pop_front();
        }
    }

    pub fn per_second(&self) -> f64 {
        match (self.points.front(), self.points.back()) {
            (Some((t0, v0)), Some((t1, v1))) if t1 > t0 => {
                v1.saturating_sub(*v0) as f64 * 1e9 / (t1 - t0) as f64
            }
            _ => 0.0,
        }
    }
}

/// What is measured of the protocol.
#[derive(Default)]
pub struct Metrics {
    /// How long outputs waited for their acknowledgement.
    pub hold: Distribution,
    /// By how much the backup's execution was behind, at each acknowledgement.
    pub lag: Distribution,
    log: Rate,
    instructions: Rate,
    sampled_ns: u64,
}

/// A snapshot of the figures.
pub struct Figures {
    pub hold_ms: Quantiles,
    pub lag_quantiles_ms: Quantiles,
    pub lag_ms: f64,
    /// This replica records, or did before it was halted.
    pub recording: bool,
    pub log_mbit_per_s: f64,
    /// Bytes by kind of entry.
    pub log_bytes: LogBytes,
    pub log_entries: u64,
    pub outputs_held: u64,
    /// Share of the time that the vCPU may have.
    pub speed: f64,
}

/// How often rates are sampled, in nanoseconds.
const SAMPLE_NS: u64 = 100_000_000;

impl Metrics {
    pub fn sample(&mut self, now: u64, replica: &mut Replica<Output>) {
        if now.saturating_sub(self.sampled_ns) < SAMPLE_NS {
            return;
        }
        self.sampled_ns = now;
        let bytes = replica
            .primary()
            .map_or(0, |primary| primary.stats().total_bytes());
        self.log.sample(now, bytes);
    }

    /// Instructions a second between the calls of about the last second.
    pub fn instruction_rate(&mut self, now: u64, count: u64) -> f64 {
        self.instructions.sample(now, count);
        self.instructions.per_second()
    }

    pub fn figures(&self, now: u64, replica: &mut Replica<Output>) -> Figures {
        let mut figures = Figures {
            hold_ms: self.hold.quantiles(),
            lag_quantiles_ms: self.lag.quantiles(),
            lag_ms: 0.0,
            recording: matches!(replica, Replica::Primary(_)),
            log_mbit_per_s: self.log.per_second() * 8.0 / 1e6,
            log_bytes: LogBytes::new(),
            log_entries: 0,
            outputs_held: 0,
            speed: 1.0,
        };
        if let Some(primary) = replica.primary() {
            let kinds = primary.stats();
            figures.log_bytes = kinds
                .iter()
                .map(|(kind, _, bytes)| (kind.name().to_owned(), bytes))
                .collect();
            figures
                .log_bytes
                .insert("overhead".to_owned(), kinds.overhead);
            figures.log_entries = kinds.total_entries();
            figures.lag_ms = primary.lag_ns(now) as f64 / 1e6;
            figures.outputs_held = primary.held_outputs() as u64;
            figures.speed = f64::from(primary.share()) / 1000.0;
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_ramp() {
        let mut distribution = Distribution::default();
        for ms in 0..=100u64 {
            distribution.add_ns(ms * 1_000_000);
        }
        let quantiles = distribution.quantiles();
        assert_eq!(
            (quantiles.p50, quantiles.p99, quantiles.max),
            (50.0, 99.0, 100.0)
        );
        assert_eq!(quantiles.samples, 101);
    }

    #[test]
    fn rate_forgets_what_is_old() {
        let mut rate = Rate::default();
        for tenth in 0..50u64 {
            let value = if tenth < 20 {
                tenth * 1000
            } else {
                20_000 + tenth
            };
            rate.sample(tenth * 100_000_000, value);
        }
        assert!(
            (rate.per_second() - 10.0).abs() < 1.0,
            "{}",
            rate.per_second()
        );
    }
}
