//! `log`: looking into log files that `up --record FILE` wrote, and replaying them.

mod dump;
mod replay;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Subcommand;
use ftlog::codec::LogFile;

pub use dump::dump;
pub use replay::{Options, replay};

#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Shows a log: its header, its entries with their positions, and bytes by kind
    ///
    /// With --json: one JSON object a line; the first has "header", the last "summary", the others
    /// are entries.
    Dump {
        file: PathBuf,
        #[arg(long)]
        json: bool,
        /// Leave the entries out
        #[arg(long)]
        summary: bool,
        /// Show the bytes that came in with an entry (frames, disk data, keys), in hexadecimal
        #[arg(long)]
        data: bool,
    },
    /// Runs a log's machine again from its beginning and checks every position, output and hash
    Replay {
        file: PathBuf,
        /// The machine's configuration; default: FILE.toml, which was written with the log
        #[arg(long, value_name = "TOML")]
        config: Option<PathBuf>,
        /// The saved state that the recorded machine began from
        #[arg(long, value_name = "STATE")]
        from: Option<PathBuf>,
        /// Do not warn that the log was made by another build of Lockstep
        #[arg(long)]
        any_build: bool,
        #[arg(long)]
        json: bool,
    },
}

/// Runs a subcommand; `false`: the replay found a difference, and has said which.
pub fn run(command: LogCommand) -> Result<bool> {
    match command {
        LogCommand::Dump {
            file,
            json,
            summary,
            data,
        } => {
            let what = dump::What {
                json,
                entries: !summary,
                data,
            };
            dump(&file, what).map(|()| true)
        }
        LogCommand::Replay {
            file,
            config,
            from,
            any_build,
            json,
        } => replay(
            &file,
            replay::Options {
                config,
                from,
                any_build,
                json,
            },
        ),
    }
}

/// Where the configuration of the machine that a log is of is written.
pub fn config_beside(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".toml");
    name.into()
}

fn open(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

fn open_log<R: std::io::Read>(source: R, path: &Path) -> Result<LogFile<R>> {
    LogFile::open(source).with_context(|| format!("{} cannot be read as a log", path.display()))
}
