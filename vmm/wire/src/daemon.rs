//! What the programs of the servers have in common: logs on stderr, one line of JSON on stdout when
//! ready, an end in order on SIGTERM and SIGINT.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;

/// The whole program `name`: serves until a signal. `start` gives the server, which ends when it is
/// dropped, and what the ready line says of it.
pub fn main<S>(name: &str, start: impl FnOnce() -> anyhow::Result<(S, Value)>) -> ExitCode {
    match run(start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run<S>(start: impl FnOnce() -> anyhow::Result<(S, Value)>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    // Before anything is served, so that no signal is lost.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot wait for signals")?;
    let (server, ready) = start()?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{ready}")
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")?;
    if let Some(signal) = signals.forever().next() {
        tracing::info!(signal, "ending");
    }
    drop(server);
    Ok(())
}
