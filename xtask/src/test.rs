//! `cargo xtask test`: every check of the project, in the order in which a mistake shows soonest.

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use cli::println;

use crate::{packages, step};

#[derive(Args)]
pub struct TestArgs {
    /// Seeds of the protocol's simulator
    #[arg(long, default_value_t = 5_000)]
    seeds: u64,
    /// Cases of the CPU's differential test
    #[arg(long, default_value_t = 300_000)]
    cases: u64,
}

pub fn run(args: &TestArgs) -> Result<()> {
    let started = Instant::now();
    packages::for_testing()?;
    step::run("format", "cargo", &["fmt", "--all", "--check"])?;
    let lints = "clippy --release --workspace --all-targets -- -D warnings";
    cargo("lints", lints)?;
    cargo("building everything", "build --release --workspace")?;
    cargo(
        "unit, conformance and integration tests",
        "test --release --workspace",
    )?;
    built(
        "the protocol in the simulator",
        "examples/simulate",
        &["--seeds", &args.seeds.to_string()],
    )?;
    // One seed, so that a red run is a change of ours; searches are `differential` without --seed.
    built(
        "the software CPU against the host's",
        "differential",
        &["--seed", "1", "--cases", &args.cases.to_string()],
    )?;
    guest()?;
    // Not `current_exe`: building the workspace has replaced the file of this process.
    built(
        "the kvm engine in the nested rigs, in short",
        "xtask",
        &["rig", "--smoke", "--processor", "both", "--no-build"],
    )?;
    built("the demo", "xtask", &["demo", "--seconds", "8"])?;
    println!(
        "\n=== {:.0} s so far; the end-to-end tests are left",
        started.elapsed().as_secs_f64()
    );
    end_to_end(&[])
}

fn cargo(title: &str, args: &str) -> Result<()> {
    let args: Vec<&str> = args.split(' ').collect();
    step::run(title, "cargo", &args)
}

fn guest() -> Result<()> {
    built("the Debian guest", "guest-images", &["build"])
}

/// Runs what the steps before have built. Cargo's `run` and `build` of one package would build much of
/// it again: alone it has fewer features of its dependencies than in the workspace.
fn built(title: &str, program: &str, args: &[&str]) -> Result<()> {
    let program = e2e::programs::path(program)?;
    step::run(title, &program.to_string_lossy(), args)
}

/// The end-to-end tests with the arguments of their program, whose last line is the last one here.
pub fn end_to_end(args: &[String]) -> Result<()> {
    packages::for_testing()?;
    cargo(
        "building what the end-to-end tests run",
        &format!("build --release{PROGRAMS}"),
    )?;
    guest()?;
    let program = e2e::programs::path("e2e")?;
    println!(
        "\n=== end-to-end tests\n    $ {} {}",
        program.display(),
        args.join(" ")
    );
    let status = std::process::Command::new(&program)
        .args(args)
        .current_dir(step::workspace())
        .status()?;
    if !status.success() {
        bail!("end-to-end tests failed ({status})");
    }
    Ok(())
}

const PROGRAMS: &str = " -p vmm -p ft-diskd -p ft-netd -p ft-ctl -p guest-images -p e2e";
