//! The project's commands: `cargo xtask demo` and `cargo xtask test`, and the parts of the latter:
//! `e2e` and `rig`.
//!
//! Each prints what it runs and how long it took; a step that fails prints the command that repeats
//! it and ends the run with a non-zero status.

mod demo;
mod packages;
mod rig;
mod step;
mod test;

use clap::{Parser, Subcommand};
use cli::eprintln;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Lockstep's project commands")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boots a fault-tolerant Debian guest with Redis, loads it, kills the primary, verifies
    Demo(demo::DemoArgs),
    /// Everything that CI runs: format, lints, unit, simulation, differential and end-to-end tests
    Test(test::TestArgs),
    /// The end-to-end tests alone; with --full all of them (50 and 20 kills: over an hour)
    E2e {
        /// Arguments of the program `e2e`: --list, --full, --seed N, names of scenarios
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The tests of the engine `kvm`, in an emulated machine with AMD-V or VT-x and a Debian kernel
    Rig(rig::RigArgs),
}

fn main() {
    let outcome = match Args::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::E2e { args } => test::end_to_end(&args),
        Command::Rig(args) => match rig::run(&args) {
            Ok(0) => Ok(()),
            Ok(status) => std::process::exit(status),
            Err(error) => Err(error),
        },
    };
    if let Err(error) = outcome {
        eprintln!("\nxtask: {error:#}");
        std::process::exit(1);
    }
}
