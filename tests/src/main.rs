//! `redis-load`: loads a Redis server, records every operation, and says
//! whether it behaved as one correct server; or checks a recorded history.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use cli::{eprintln, println};
use tests::check::{Verdict, check};
use tests::client::{Load, Options};
use tests::history::History;

/// Loads a Redis server and checks its answers.
#[derive(Parser)]
#[command(name = "redis-load")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load a server for some seconds, then check the history.
    Run(Run),
    /// Check a history that was recorded before.
    Check {
        /// The file, JSON lines.
        history: PathBuf,
    },
}

#[derive(Args)]
struct Run {
    /// The server.
    address: SocketAddr,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Clients, each with one connection.
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// Longest pipeline, in operations.
    #[arg(long, default_value_t = 8)]
    pipeline: usize,
    /// Decides the operations; a random one by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Where to keep the history.
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

fn run(arguments: Run) -> anyhow::Result<Verdict> {
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let options = Options {
        clients: arguments.clients,
        pipeline: arguments.pipeline,
        // The same seed may be run again on a server that kept its data.
        prefix: format!("load{seed:x}.{:x}:", rand::random::<u32>()),
        ..Options::new(arguments.address, seed)
    };
    let load = Load::start(options)?;
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::sleep(left.min(Duration::from_secs(1)));
        let live = load.live();
        println!(
            "{} answers, {:.0}/s, longest wait {:.1} ms, {} reconnects",
            live.answered, live.answers_per_s, live.longest_wait_ms, live.reconnects
        );
    }
    let record = load.stop();
    if let Some(path) = &arguments.history {
        let written = record.history.write(path);
        written.with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(error) = record.final_read_error {
        anyhow::bail!("the keys could not be read once more at the end: {error}");
    }
    println!("{} reconnects", record.reconnects);
    Ok(check(&record.history))
}

fn main() -> ExitCode {
    let verdict = match Cli::parse().command {
        Command::Run(arguments) => run(arguments),
        Command::Check { history } => History::read(&history)
            .with_context(|| history.display().to_string())
            .map(|history| check(&history)),
    };
    match verdict {
        Ok(verdict) => {
            println!("{verdict}");
            if verdict.is_good() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("redis-load: {error:#}");
            ExitCode::from(2)
        }
    }
}
