//! `ft-vmm`: one replica of a fault-tolerant virtual machine.
//!
//! Says where it can be reached as one line of JSON on stdout, logs to stderr, and ends with:
//!
//! | status | meaning |
//! |---|---|
//! | 0 | the guest turned its power off, or the replica was asked to end |
//! | 1 | the replica could not start or go on; stderr says why |
//! | 2 | the flags or the configuration are not right |
//! | 3 | the replica had to halt: another one is live, or it diverged |
//! | 64 + n | the guest wrote n to the exit port (its low 6 bits) |

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::{ConfigFlags, Endpoints};
use crate::engines::MakeEngine;
use crate::errors::chain;
use crate::replica::{self, Ended, ReadyAt, Role, Spec};
use clap::Parser;
use tracing_subscriber::EnvFilter;
use wire::control::ControlAddr;
use wire::register::ReplicaId;

#[derive(Parser)]
#[command(name = "ft-vmm", version = crate::BUILD, about = "One replica of a fault-tolerant virtual machine")]
struct Args {
    /// What this replica begins as
    #[arg(long, value_enum, default_value = "solo")]
    role: Role,
    /// This replica's number: one that no earlier replica of the machine had
    #[arg(long, default_value = "1", value_name = "N")]
    replica: ReplicaId,
    /// The machine's configuration (TOML); flags beat it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the control API listens: unix:PATH or HOST:PORT
    #[arg(long, value_name = "ADDR")]
    control: ControlAddr,
    /// Go on from this saved state
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Write what the guest says on ttyS0 to this file (at most 16 MiB)
    #[arg(long, value_name = "FILE")]
    serial_file: Option<PathBuf>,
    /// Write what the guest says on hvc0 to this file (at most 16 MiB)
    #[arg(long, value_name = "FILE")]
    virtio_file: Option<PathBuf>,
    /// Log more (-v, -vv)
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(flatten)]
    endpoints: Endpoints,
    #[command(flatten)]
    flags: ConfigFlags,
}

/// The program's life, with the engines that `engine` makes.
pub fn main(engine: MakeEngine) -> ExitCode {
    let args = Args::parse();
    log_to_stderr(args.verbose);
    let config = match args.flags.resolve(args.config.as_deref()) {
        Ok(config) => config,
        Err(why) => {
            eprintln!("ft-vmm: {}", chain(&why));
            return ExitCode::from(2);
        }
    };
    let defaults = match args.role {
        Role::Primary | Role::Solo => config.primary.clone(),
        Role::Backup => config.backup.clone(),
    };
    let (ready, ready_at) = crossbeam_channel::bounded::<ReadyAt>(1);
    let teller = std::thread::spawn(move || {
        if let Ok(at) = ready_at.recv()
            && let Ok(line) = serde_json::to_string(&at)
        {
            println!("{line}");
        }
    });
    let spec = Spec {
        role: args.role,
        id: args.replica,
        endpoints: args.endpoints.or(&defaults),
        config,
        engine,
        control: args.control,
        from: args.from,
        serial_file: args.serial_file,
        virtio_file: args.virtio_file,
        ready,
    };
    let code = match replica::run(spec) {
        Ok(Ended::Off(off)) => off.exit_status(),
        Ok(Ended::Quit) => 0,
        Ok(Ended::Halted(reason)) => {
            eprintln!("ft-vmm: this replica has halted: {reason}");
            3
        }
        Err(why) => {
            eprintln!("ft-vmm: {}", chain(&why));
            1
        }
    };
    // However short the machine's life was, it is said where it was.
    let _ = teller.join();
    ExitCode::from(code)
}

fn log_to_stderr(verbose: u8) {
    let level = ["info", "debug", "trace"][usize::from(verbose.min(2))];
    let filter = EnvFilter::try_from_env("LOCKSTEP_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
