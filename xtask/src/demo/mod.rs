//! `cargo xtask demo`: a stock Debian server under a real Redis load loses its host and nobody
//! notices. Everything that is claimed is measured: times from the replicas and the recorded
//! history, the verdict from the checker of histories.

mod chart;
mod report;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use cli::println;
use e2e::failover::{self, Outcome, Plan};
use e2e::home::{self, Home};
use e2e::machine::Machine;
use e2e::wait;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tests::client;
use wire::control::Status;

use crate::{packages, step};
use report::Report;

/// The longest path that leaves room for a socket's name (unix(7): 108 bytes).
const LONGEST_PATH: usize = 70;
/// A boot takes a minute on a slow machine; this bounds hangs only.
const BOOT: Duration = Duration::from_secs(900);
const PROTECTED: Duration = Duration::from_secs(120);

#[derive(Args)]
pub struct DemoArgs {
    /// Leave the machine running afterwards, and say how to talk to it
    #[arg(long)]
    keep: bool,
    /// For how long to load Redis, in seconds; the kill comes somewhere in between
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(5..=3600))]
    seconds: u64,
    /// Memory of the guest
    #[arg(long, default_value = "512MiB", value_name = "SIZE")]
    memory: String,
    /// Connections of the load, each one TCP connection from beginning to end
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: u32,
    /// Decides the load and the moment of the kill; default: a random one
    #[arg(long)]
    seed: Option<u64>,
}

/// Says what happens, and when.
struct Teller(Instant);

impl Teller {
    fn say(&self, text: &str) {
        println!("[{:7.1} s] {text}", self.0.elapsed().as_secs_f64());
    }
}

pub fn run(args: &DemoArgs) -> Result<()> {
    let teller = Teller(Instant::now());
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("Lockstep demo, seed {seed} (to repeat: cargo xtask demo --seed {seed})");
    packages::for_running()?;
    build()?;
    wait::catch_signals()?;

    let out = step::workspace().join("target/demo");
    let home = home_below(&out)?;
    // Of a run before this one that had no chance to clean up.
    home::end(&home).context("the machine of an earlier demo cannot be ended")?;

    teller.say("starting the disk server, the switch, the backup and the primary");
    let mut machine = home.up(&["--memory", &args.memory])?;
    machine.wait_protected(PROTECTED)?;
    teller.say("Protected; Debian boots on primary and backup in lockstep");
    let booting = Instant::now();
    machine.wait_redis(BOOT, |status| teller.say(&booting_line(status)))?;
    let boot_s = booting.elapsed().as_secs_f64();
    let redis = machine.forward(6379)?;
    teller.say(&format!("Redis answers at {redis} ({boot_s:.1} s of boot)"));

    let outcome = load_and_kill(&machine, args, seed, &teller)?;
    let report = Report::new(&outcome, seed, boot_s);
    println!("\n{report}");
    let wrong = outcome.judge();
    write_files(&out, &report, &outcome, wrong.is_err())?;

    if args.keep {
        machine.keep();
        explain(&machine)?;
    } else {
        machine.down()?;
        teller.say("everything is ended and removed");
    }
    wrong.context("the demo FAILED")?;
    if report.failovers != 1 {
        bail!(
            "the demo FAILED: {} failovers instead of one",
            report.failovers
        );
    }
    println!("\nNothing was lost, repeated or reversed, on the same TCP connections.");
    Ok(())
}

/// Builds what the demo runs: the programs and the guest.
fn build() -> Result<()> {
    let programs = ["vmm", "ft-diskd", "ft-netd", "ft-ctl", "guest-images"];
    let mut args = vec!["build", "--release"];
    args.extend(programs.iter().flat_map(|program| ["-p", program]));
    step::run("building the programs", "cargo", &args)?;
    let builder = e2e::programs::path("guest-images")?;
    step::run("the Debian guest", &builder.to_string_lossy(), &["build"])
}

/// The machine's folder, below `out` if sockets in it can have names.
fn home_below(out: &Path) -> Result<Home> {
    let dir = out.join("run");
    if dir.as_os_str().len() > LONGEST_PATH {
        return Home::temporary();
    }
    std::fs::create_dir_all(&dir)?;
    Ok(Home::at(&dir))
}

fn booting_line(status: &Status) -> String {
    format!(
        "booting: {:.0} s of the guest's time, {}, lag {:.0} ms, log {:.1} Mbit/s",
        status.guest_clock_ns as f64 / 1e9,
        status.rate(status.instructions_per_s),
        status.lag_ms,
        status.log_mbit_per_s
    )
}

fn load_and_kill(
    machine: &Machine,
    args: &DemoArgs,
    seed: u64,
    teller: &Teller,
) -> Result<Outcome> {
    let load = client::Options {
        clients: args.clients,
        ..client::Options::new(machine.forward(6379)?, seed)
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let plan = Plan::random(load, Duration::from_secs(args.seconds), &mut rng);
    teller.say(&format!(
        "loading Redis over {} TCP connections; the primary dies after {:.1} s",
        args.clients,
        plan.before.as_secs_f64()
    ));
    failover::kill_primary(machine, &plan, |text| teller.say(text))
}

fn write_files(out: &Path, report: &Report, outcome: &Outcome, keep_history: bool) -> Result<()> {
    let file = |name: &str| -> PathBuf { out.join(name) };
    std::fs::write(file("report.json"), serde_json::to_vec_pretty(report)?)?;
    let mut written = vec!["report.json", "timeline.svg", "timeline.png"];
    if keep_history {
        outcome.record.history.write(&file("history.jsonl"))?;
        written.push("history.jsonl");
    }
    chart::draw(
        outcome,
        report,
        &file("timeline.svg"),
        &file("timeline.png"),
    )
    .context("the charts cannot be drawn")?;
    println!("\nfiles:");
    for name in written {
        println!("  {}", file(name).display());
    }
    Ok(())
}

fn explain(machine: &Machine) -> Result<()> {
    let dir = machine.home().path().display();
    let ctl = e2e::programs::path("ft-ctl")?;
    println!("\nThe machine goes on. To talk to it:");
    for (name, port) in [("Redis", 6379), ("web server", 80)] {
        println!("  {name:11} {}", machine.forward(port)?);
    }
    println!("  export LOCKSTEP_DIR={dir}");
    for command in ["status", "watch", "console", "down"] {
        println!("  {} {command}", ctl.display());
    }
    Ok(())
}
