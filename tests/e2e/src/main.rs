//! `e2e`: Lockstep's end-to-end tests. Each run of a scenario prints its seed and the command that
//! repeats it; the last line is `N passed, M failed`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use cli::{eprintln, print, println};
use e2e::conditions::Conditions;
use e2e::scenarios::{self, Context, Scenario};
use e2e::{machine, wait};

/// Runs Lockstep's end-to-end tests: whole machines, real kills, verified histories.
#[derive(Parser)]
#[command(name = "e2e")]
struct Args {
    /// Only scenarios whose name contains one of these
    names: Vec<String>,
    /// Show the scenarios and run nothing
    #[arg(long)]
    list: bool,
    /// All repetitions (50 kills of the primary, 20 of the backup, ...), instead of a short share
    #[arg(long)]
    full: bool,
    /// Run each chosen scenario once, with this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Repetitions of each chosen scenario
    #[arg(long, value_name = "N")]
    repeat: Option<u32>,
    /// Keep the booted guest's state in this folder, or go on from what is kept there
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    #[command(flatten)]
    conditions: Conditions,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let chosen: Vec<Scenario> = (scenarios::all().into_iter())
        .filter(|s| args.names.is_empty() || args.names.iter().any(|name| s.name.contains(name)))
        .collect();
    if args.list {
        for scenario in &chosen {
            println!(
                "{:20} {:3}/{:3}  {}",
                scenario.name, scenario.quick, scenario.full, scenario.about
            );
        }
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        eprintln!("e2e: no scenario has such a name; see --list");
        return ExitCode::from(2);
    }
    match run(&args, &chosen) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("e2e: {why:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all; gives the number of those that failed.
fn run(args: &Args, chosen: &[Scenario]) -> Result<u32> {
    wait::catch_signals()?;
    args.conditions.clone().set()?;
    let context = Context::new(args.base.clone());
    let (mut passed, mut failures) = (0, Vec::new());
    for scenario in chosen {
        let count = match (args.seed, args.repeat, args.full) {
            (Some(_), _, _) => 1,
            (_, Some(count), _) => count,
            (_, _, true) => scenario.full,
            (_, _, false) => scenario.quick,
        };
        for number in 1..=count {
            let seed = args
                .seed
                .unwrap_or_else(|| u64::from(rand::random::<u32>()));
            let again = format!("cargo xtask e2e {} --seed {seed}", scenario.name);
            println!("{} {number}/{count}: {}", scenario.name, scenario.about);
            println!("  seed {seed}; to repeat: {again}");
            let started = Instant::now();
            let outcome = (scenario.run)(&context, seed);
            let seconds = started.elapsed().as_secs_f64();
            let said = machine::take_left();
            wait::interrupted()?;
            match outcome {
                Ok(()) => {
                    passed += 1;
                    println!("  passed, {seconds:.1} s");
                }
                Err(why) => {
                    print!("{said}");
                    println!("  FAILED, {seconds:.1} s: {why:#}");
                    failures.push(format!("{} (to repeat: {again})", scenario.name));
                }
            }
        }
    }
    for failure in &failures {
        println!("failed: {failure}");
    }
    println!("{passed} passed, {} failed", failures.len());
    Ok(failures.len() as u32)
}
