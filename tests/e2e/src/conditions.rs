//! Under which conditions machines are tested: the configuration that each is started with, and how
//! patient waits are. The nested rig runs the same tests as any host, on another engine and slowly.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Flags of the programs that start machines for tests and measurements.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Conditions {
    /// Configuration (TOML) with which every machine is started; a test's own flags go before it
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Multiply the bounds of all waits by this, for a slow host
    #[arg(long, value_name = "N", default_value_t = 1, global = true,
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    patience: u32,
}

static CONDITIONS: OnceLock<Conditions> = OnceLock::new();

impl Conditions {
    /// From here on they hold for this process.
    pub fn set(mut self) -> Result<()> {
        if let Some(path) = &mut self.config {
            // Absolute, since programs may run in other folders.
            *path = std::fs::canonicalize(&*path).with_context(|| path.display().to_string())?;
        }
        ensure!(CONDITIONS.set(self).is_ok(), "the conditions are set twice");
        Ok(())
    }
}

/// The configuration of every machine.
pub fn config() -> Option<&'static Path> {
    CONDITIONS.get()?.config.as_deref()
}

/// `bound` as it is on this host.
pub fn patient(bound: Duration) -> Duration {
    bound * CONDITIONS.get().map_or(1, |conditions| conditions.patience)
}
