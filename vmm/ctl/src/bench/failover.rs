//! `bench failover`: the primary is killed at a random moment under a Redis load, again and again,
//! and every history is verified.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::tests::client;
use anyhow::{Context, Result};
use cli::{eprintln, println};
use e2e::failover::{self, Plan, Timeline};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::base::Base;
use super::{Teller, quantile, sorted, write_json};

const PROTECTED: Duration = Duration::from_secs(120);
const REDIS: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// How many kills
    #[arg(short = 'n', long = "kills", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    kills: u32,
    /// For how long each load runs, in seconds; the kill comes somewhere in between
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// Connections of the load
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: u32,
    /// A closed connection is suspected at once; this is the bound on silence, in ms
    #[arg(long, default_value = "1000", value_name = "MS")]
    suspect_ms: String,
    /// Seed of the first kill; the others count on from it. Default: a random one
    #[arg(long)]
    seed: Option<u64>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep the history of a kill that is not what it should be in this folder
    #[arg(long, value_name = "DIR", default_value = ".")]
    keep: PathBuf,
}

/// One kill.
#[derive(Debug, Serialize)]
struct Kill {
    seed: u64,
    /// Nothing was lost, repeated or reversed, on unbroken connections.
    verified: bool,
    why_not: Option<String>,
    interruption_ms: f64,
    /// Milliseconds since the kill.
    timeline_ms: Timeline,
    answered: u64,
    acknowledged: u64,
    reconnects: u64,
}

#[derive(Debug, Serialize)]
struct Interruption {
    p50: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    seed: u64,
    kills: Vec<Kill>,
    verified: usize,
    /// The longest wait of any client for an answer, kill by kill, in ms.
    interruption_ms: Interruption,
}

/// `false`: a history was not that of one correct server.
pub fn run(options: &Options) -> Result<bool> {
    let teller = Teller::new();
    let first = options
        .seed
        .unwrap_or_else(|| u64::from(rand::random::<u32>()));
    teller.say(&format!(
        "{} kills, seeds {first} and up (one again: ft-ctl bench failover -n 1 --seconds {} \
         --clients {} --seed SEED)",
        options.kills, options.seconds, options.clients
    ));
    let base = Base::make(&teller)?;
    let mut kills = Vec::new();
    for number in 0..options.kills {
        let seed = first.wrapping_add(u64::from(number));
        let kill =
            one(&base, options, seed).with_context(|| format!("the kill with seed {seed}"))?;
        teller.say(&format!(
            "kill {}/{} (seed {seed}): interruption {:.0} ms, live after {:.0} ms, {} answers, {}",
            number + 1,
            options.kills,
            kill.interruption_ms,
            kill.timeline_ms.live,
            kill.answered,
            kill.why_not.as_deref().unwrap_or("verified"),
        ));
        kills.push(kill);
    }
    let waits = sorted(kills.iter().map(|kill| kill.interruption_ms).collect());
    let report = Report {
        bench: "failover",
        seed: first,
        verified: kills.iter().filter(|kill| kill.verified).count(),
        interruption_ms: Interruption {
            p50: quantile(&waits, 0.5),
            p99: quantile(&waits, 0.99),
            max: quantile(&waits, 1.0),
        },
        kills,
    };
    println!(
        "{} of {} histories verified; clients were interrupted for {:.0} ms (p50), {:.0} ms (p99), \
         {:.0} ms (max)",
        report.verified,
        report.kills.len(),
        report.interruption_ms.p50,
        report.interruption_ms.p99,
        report.interruption_ms.max
    );
    if let Some(path) = &options.json {
        write_json(path, &report)?;
        println!("figures: {}", path.display());
    }
    Ok(report.verified == report.kills.len())
}

fn one(base: &Base, options: &Options, seed: u64) -> Result<Kill> {
    let machine = base.resume(true, &["--suspect-ms", &options.suspect_ms])?;
    machine.wait_protected(PROTECTED)?;
    machine.wait_redis(REDIS, |_| ())?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut load = client::Options::new(machine.forward(6379)?, seed);
    load.clients = options.clients;
    let plan = Plan::random(load, Duration::from_secs(options.seconds), &mut rng);
    let outcome = failover::kill_primary(&machine, &plan, |_| ())?;
    let why_not = outcome.judge().err().map(|why| format!("{why:#}"));
    if why_not.is_some() {
        keep(&options.keep, seed, &outcome)?;
    }
    machine.down()?;
    Ok(Kill {
        seed,
        verified: why_not.is_none(),
        why_not,
        interruption_ms: outcome.interruption_ms,
        timeline_ms: outcome.timeline,
        answered: outcome.verdict.answered,
        acknowledged: outcome.verdict.acknowledged,
        reconnects: outcome.record.reconnects,
    })
}

fn keep(folder: &Path, seed: u64, outcome: &failover::Outcome) -> Result<()> {
    let path = folder.join(format!("failover-{seed}.history"));
    let written = outcome.record.history.write(&path);
    written.with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("the history is in {}", path.display());
    Ok(())
}
