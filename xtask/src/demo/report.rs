//! The demo's report: the figures as JSON, whose names are an interface, and as text.

use std::collections::BTreeMap;
use std::fmt;

use e2e::failover::{Outcome, Timeline};
use e2e::samples;
use serde::Serialize;

/// `target/demo/report.json`.
#[derive(Serialize)]
pub struct Report {
    /// `soft` or `kvm`.
    pub engine: String,
    /// Decides the load and the moment of the kill.
    pub seed: u64,
    /// From power-on until Redis answered, in seconds.
    pub boot_s: f64,
    /// Operations answered, and those of them that wrote.
    pub answered: u64,
    pub acknowledged: u64,
    /// Acknowledged writes that are gone.
    pub lost: u64,
    /// Writes that took effect twice.
    pub repeated: u64,
    /// Reads of an older state than one that was read before.
    pub reversed: u64,
    /// Values that nobody wrote.
    pub foreign: u64,
    /// Operations that never got an answer.
    pub unknown: u64,
    /// Keys whose history has no valid order, or none that could be found in time.
    pub violations: u64,
    pub undecided: u64,
    /// TCP connections made again.
    pub reconnects: u64,
    /// Views won by the backup.
    pub failovers: u64,
    /// Milliseconds since the kill.
    pub timeline_ms: Timeline,
    /// The longest wait of a client for an answer, around the kill.
    pub interruption_ms: f64,
    /// Of the load until the kill.
    pub log_mbit_per_s: f64,
    pub log_mbit_per_s_by_kind: BTreeMap<String, f64>,
    pub answers_per_s_before: f64,
    pub lag_ms_p50: f64,
    pub lag_ms_p99: f64,
    pub output_hold_ms_p50: f64,
    pub output_hold_ms_p99: f64,
    /// State hashes that the replicas compared.
    pub hashes_compared: u64,
}

impl Report {
    pub fn new(outcome: &Outcome, seed: u64, boot_s: f64) -> Self {
        let verdict = &outcome.verdict;
        let primary: Vec<_> = (outcome.samples.iter())
            .filter(|sample| sample.replica == outcome.killed)
            .collect();
        let bandwidth = match (primary.first(), primary.last()) {
            (Some(first), Some(last)) => samples::between(first, last).by_kind,
            _ => BTreeMap::new(),
        };
        let last = primary.last().map(|sample| &sample.status);
        let hold = last.map(|status| status.output_hold_ms).unwrap_or_default();
        let lag = last
            .map(|status| status.lag_quantiles_ms)
            .unwrap_or_default();
        let before_us = (outcome.kill_unix_us - outcome.start_unix_us).max(1);
        let answers = outcome.record.history.events.iter();
        let before = answers
            .filter(|event| event.return_ns.is_some_and(|ns| ns / 1000 < before_us))
            .count();
        Self {
            engine: outcome.survivor.engine.clone(),
            seed,
            boot_s,
            answered: verdict.answered,
            acknowledged: verdict.acknowledged,
            lost: verdict.lost,
            repeated: verdict.repeated,
            reversed: verdict.reversed,
            foreign: verdict.foreign,
            unknown: verdict.unknown,
            violations: verdict.violations.len() as u64,
            undecided: verdict.undecided.len() as u64,
            reconnects: outcome.record.reconnects,
            failovers: outcome.survivor.view.number.saturating_sub(1),
            timeline_ms: outcome.timeline,
            interruption_ms: outcome.interruption_ms,
            log_mbit_per_s: bandwidth.values().sum(),
            log_mbit_per_s_by_kind: bandwidth,
            answers_per_s_before: before as f64 * 1e6 / before_us as f64,
            lag_ms_p50: lag.p50,
            lag_ms_p99: lag.p99,
            output_hold_ms_p50: hold.p50,
            output_hold_ms_p99: hold.p99,
            hashes_compared: outcome.survivor.hashes_compared,
        }
    }
}

/// The steps of a failover with their times, in order.
pub fn steps(timeline: &Timeline) -> [(&'static str, f64); 5] {
    [
        ("suspected", timeline.suspected),
        ("claimed the view", timeline.claimed),
        ("log consumed", timeline.log_consumed),
        ("live", timeline.live),
        ("first answer to a client", timeline.first_answer),
    ]
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps = steps(&self.timeline_ms);
        let end = steps.iter().map(|(_, ms)| *ms).fold(1e-3, f64::max);
        writeln!(
            f,
            "Timeline since the kill of the primary (SIGKILL), in ms:"
        )?;
        writeln!(f, "  {:24} {:9.1} |", "kill", 0.0)?;
        for (name, ms) in steps {
            let column = (ms.max(0.0) / end * 40.0).round() as usize;
            writeln!(f, "  {name:24} {ms:9.1} |{:column$}*", "")?;
        }
        writeln!(
            f,
            "  longest wait of a client  {:8.1} ms\n",
            self.interruption_ms
        )?;
        writeln!(f, "What the clients saw:")?;
        writeln!(
            f,
            "  {} answers, {} writes acknowledged ({:.0} answers/s before the kill)",
            self.answered, self.acknowledged, self.answers_per_s_before
        )?;
        writeln!(
            f,
            "  {} lost, {} repeated, {} reversed, {} foreign, {} without an answer",
            self.lost, self.repeated, self.reversed, self.foreign, self.unknown
        )?;
        writeln!(
            f,
            "  {} reconnects; keys not linearizable: {}, undecided: {}\n",
            self.reconnects, self.violations, self.undecided
        )?;
        writeln!(f, "The pair, on the engine `{}`:", self.engine)?;
        writeln!(
            f,
            "  log {:.2} Mbit/s; output hold p50 {:.2} ms, p99 {:.2} ms; \
             lag p50 {:.1} ms, p99 {:.1} ms",
            self.log_mbit_per_s,
            self.output_hold_ms_p50,
            self.output_hold_ms_p99,
            self.lag_ms_p50,
            self.lag_ms_p99
        )?;
        write!(
            f,
            "  {} failover, {} state hashes compared without a difference",
            self.failovers, self.hashes_compared
        )
    }
}
