//! `ft-diskd`: the shared disk and the view register of Lockstep.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ft_diskd::{Config, DiskConfig, serve};

/// Serves raw disk images over NBD, and the view register that decides which replica is live.
///
/// When ready, prints one line of JSON: {"nbd":"HOST:PORT","register":"HOST:PORT"}. Logs go to
/// stderr (RUST_LOG chooses what). Ends in order on SIGTERM and SIGINT; may be killed at any
/// moment without losing what it has answered.
#[derive(Parser)]
#[command(name = "ft-diskd", version)]
struct Args {
    /// Where the NBD server listens; port 0 picks a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:10809")]
    nbd: String,

    /// Where the view register listens; port 0 picks a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:10810")]
    register: String,

    /// Directory of the register's state, on storage that survives a crash
    #[arg(long, value_name = "DIR")]
    state: PathBuf,

    /// A raw image file and its export name; may be repeated
    #[arg(
        long = "disk",
        value_name = "name=NAME,path=FILE[,readonly=on]",
        required = true
    )]
    disks: Vec<DiskConfig>,

    /// Allow snapshots of disks below this directory; may be repeated
    #[arg(long = "snapshots", value_name = "DIR")]
    snapshots: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let Args {
        nbd,
        register,
        state,
        disks,
        snapshots,
    } = Args::parse();
    wire::daemon::main("ft-diskd", || {
        let handle = serve(&Config {
            nbd,
            register,
            state,
            disks,
            snapshots,
        })?;
        let ready = serde_json::json!({
            "nbd": handle.nbd_addr().to_string(),
            "register": handle.register_addr().to_string(),
        });
        Ok((handle, ready))
    })
}
