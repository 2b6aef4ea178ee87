//! A load, the primary's sudden death in the middle of it, and what clients saw of that.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use rand::Rng;
use serde::Serialize;
use tests::check::{Verdict, check};
use tests::client::{self, Load, Record};
use tests::history::History;
use wire::control::{Failover, Status};
use wire::register::ReplicaId;

use crate::machine::Machine;
use crate::samples::{self, Sample, Sampler};
use crate::wait;

/// Nobody waits for longer than this for a backup to go live.
const LIVE: Duration = Duration::from_secs(120);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub load: client::Options,
    /// How long the load runs before the kill.
    pub before: Duration,
    /// And after the backup is live.
    pub after: Duration,
}

impl Plan {
    /// A load of `total` whose kill comes after a random 30 to 70 % of it.
    pub fn random(load: client::Options, total: Duration, rng: &mut impl Rng) -> Self {
        let before = total.mul_f64(rng.random_range(0.3..0.7));
        Self {
            load,
            before,
            after: total - before,
        }
    }
}

/// Milliseconds since the kill.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Timeline {
    pub suspected: f64,
    pub claimed: f64,
    pub log_consumed: f64,
    pub live: f64,
    /// The first answer that a client got from the new primary.
    pub first_answer: f64,
}

/// What happened.
pub struct Outcome {
    pub killed: ReplicaId,
    /// When the kill was sent, and the zero of the history's times.
    pub kill_unix_us: u64,
    pub start_unix_us: u64,
    pub end_unix_us: u64,
    pub timeline: Timeline,
    pub failover: Failover,
    /// The longest wait of any client for an answer that ended after the kill, in ms.
    pub interruption_ms: f64,
    pub record: Record,
    pub verdict: Verdict,
    pub samples: Vec<Sample>,
    /// What the survivor said at the end.
    pub survivor: Status,
}

impl Outcome {
    /// An error that says what is wrong, if clients saw anything but one correct server.
    pub fn judge(&self) -> Result<()> {
        judge(&self.record, &self.verdict)?;
        if self.verdict.acknowledged == 0 {
            bail!("the load got nothing acknowledged: nothing was shown");
        }
        Ok(())
    }
}

/// An error unless the record is that of one correct server on unbroken connections.
pub fn judge(record: &Record, verdict: &Verdict) -> Result<()> {
    if let Some(why) = &record.final_read_error {
        bail!("the keys could not be read once more at the end: {why}");
    }
    if record.reconnects > 0 {
        bail!(
            "{} connections broke and were made again",
            record.reconnects
        );
    }
    if !verdict.is_good() {
        bail!("the history is not that of one correct server: {verdict}");
    }
    if verdict.unknown > 0 {
        bail!("{} operations never got an answer", verdict.unknown);
    }
    Ok(())
}

/// Loads the machine, kills its primary on the way, goes on, and verifies. `tell` is told how it
/// goes.
pub fn kill_primary(machine: &Machine, plan: &Plan, mut tell: impl FnMut(&str)) -> Result<Outcome> {
    let (primary, _) = machine.pair()?;
    let sampler = Sampler::start(machine);
    let load = Load::start(plan.load.clone())?;
    let start_unix_us = now_minus(load.started());
    let progress = |load: &Load| {
        let live = load.live();
        format!(
            "{} answers, {:.0}/s, longest wait {:.0} ms",
            live.answered, live.answers_per_s, live.longest_wait_ms
        )
    };
    for _ in 0..plan.before.as_secs() {
        wait::pass(Duration::from_secs(1))?;
        tell(&progress(&load));
    }
    wait::pass(Duration::from_millis(plan.before.subsec_millis().into()))?;

    let kill_unix_us = samples::unix_us();
    primary.process.signal(Signal::SIGKILL)?;
    tell(&format!(
        "killed the primary (replica {}, process {}) with SIGKILL",
        primary.id, primary.process.pid
    ));
    let status = machine.wait_alone(Some(primary.id), LIVE)?;
    tell(&format!(
        "replica {} is live in {}",
        status.replica, status.view
    ));
    let live_at = Instant::now();
    while live_at.elapsed() < plan.after {
        wait::pass(Duration::from_secs(1).min(plan.after))?;
        tell(&progress(&load));
    }
    tell("stopping the load; reading every key once more");
    let record = load.stop();
    let end_unix_us = samples::unix_us();
    let (_, survivor) = machine.live().context("the survivor is gone")?;
    let samples = sampler.stop();
    tell(&format!(
        "verifying {} operations",
        record.history.events.len()
    ));
    let verdict = check(&record.history);

    let failover = survivor
        .last_failover
        .context("the survivor knows of no failover")?;
    let kill_ns = (kill_unix_us - start_unix_us) * 1000;
    let interruption = record.history.longest_wait(kill_ns);
    let timeline = timeline(kill_unix_us, start_unix_us, &failover, &record.history)?;
    Ok(Outcome {
        killed: primary.id,
        kill_unix_us,
        start_unix_us,
        end_unix_us,
        timeline,
        failover,
        interruption_ms: interruption.map_or(0.0, |wait| wait.ns() as f64 / 1e6),
        record,
        verdict,
        samples,
        survivor,
    })
}

/// When `instant` was, by the clock of [`samples::unix_us`].
fn now_minus(instant: Instant) -> u64 {
    let ago = u64::try_from(instant.elapsed().as_micros()).unwrap_or(0);
    samples::unix_us().saturating_sub(ago)
}

fn timeline(
    kill_unix_us: u64,
    start_unix_us: u64,
    failover: &Failover,
    history: &History,
) -> Result<Timeline> {
    let since = |what: &str, at: Option<u64>| -> Result<f64> {
        let at = at.with_context(|| format!("the failover has no time of {what}"))?;
        Ok((at as f64 - kill_unix_us as f64) / 1e3)
    };
    let claimed = failover.claimed_unix_us.context("no view was claimed")?;
    // Nothing of the new primary can have left before the view was won.
    let answers = history.events.iter().filter_map(|event| event.return_ns);
    let first_answer = answers
        .map(|ns| start_unix_us + ns / 1000)
        .filter(|at| *at >= claimed)
        .min();
    Ok(Timeline {
        suspected: since("the suspicion", failover.suspected_unix_us)?,
        claimed: since("the claim", failover.claimed_unix_us)?,
        log_consumed: since("the log's end", failover.log_consumed_unix_us)?,
        live: since("going live", failover.live_unix_us)?,
        first_answer: since("an answer after it", first_answer)?,
    })
}
