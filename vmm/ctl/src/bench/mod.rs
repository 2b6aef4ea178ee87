//! `bench`: what protection costs (`bench log`), and what clients see of a failover
//! (`bench failover`).
//!
//! | module | topic |
//! |---|---|
//! | `base` | a booted guest, prepared and saved once, from which every run goes on |
//! | `shell` | commands in the guest, over its serial console |
//! | `workload` | the workloads: fixed work, timed from outside |
//! | `log` | interleaved runs with and without a backup, and their table |
//! | `chart` | the same as a picture |
//! | `failover` | kills at random moments under a verified load |

mod base;
mod chart;
mod failover;
mod log;
mod shell;
mod workload;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Subcommand;
use cli::eprintln;
use serde::Serialize;

pub use workload::Workload;

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Each workload with and without a backup: FT/non-FT ratio, log bandwidth, output hold, lag
    Log(log::Options),
    /// Kills the primary at random moments under load; each history is verified
    Failover(failover::Options),
}

/// Runs a bench; `false`: it ran, and what it found is wrong.
pub fn run(command: BenchCommand) -> Result<bool> {
    e2e::wait::catch_signals()?;
    match command {
        BenchCommand::Log(options) => log::run(&options).map(|()| true),
        BenchCommand::Failover(options) => failover::run(&options),
    }
}

/// Says on stderr what goes on, and when.
struct Teller(Instant);

impl Teller {
    fn new() -> Self {
        Self(Instant::now())
    }

    fn say(&self, text: &str) {
        eprintln!("[{:7.1} s] {text}", self.0.elapsed().as_secs_f64());
    }
}

fn write_json(path: &Path, report: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// `path` with another ending: pictures lie beside their JSON file.
fn beside(path: &Path, ending: &str) -> PathBuf {
    path.with_extension(ending)
}

/// The value below which `share` (0 to 1) of the sorted values are; nearest rank.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted
        .get(rank.clamp(1, sorted.len().max(1)) - 1)
        .copied()
        .unwrap_or(0.0)
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let values = sorted(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(quantile(&values, 0.5), 3.0);
        assert_eq!(quantile(&values, 0.99), 5.0);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
