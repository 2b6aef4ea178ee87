//! `differential`: tests the software CPU against the host's.

use std::collections::BTreeMap;

use clap::Parser;
use cli::{eprintln, print, println};
use differential::case::{Input, Mode};
use differential::catalog::catalog;
use differential::compare::Strictness;
use differential::generate::Generator;
use differential::{Failure, Options, Tester};
use soft::SoftEngine;

/// Runs random instruction sequences on the host's CPU and on the software CPU and compares.
#[derive(Parser)]
struct Args {
    /// Number of cases.
    #[arg(long, default_value_t = 100_000)]
    cases: u64,
    /// Seed; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Number of the first case: with `--cases 1` repeats one case of a seed.
    #[arg(long, default_value_t = 0)]
    case: u64,
    /// Only instructions whose op code's name contains this (for example `pshuf`, `div_rm64`).
    #[arg(long, default_value = "")]
    filter: String,
    /// Stop after so many differing cases.
    #[arg(long, default_value_t = 1)]
    failures: usize,
    /// 32-bit code (compatibility mode) instead of 64-bit code.
    #[arg(long)]
    bits32: bool,
    /// Compare undefined flags as well.
    #[arg(long)]
    undefined: bool,
    /// Only one line for each op code that differs, with the number of cases.
    #[arg(long)]
    census: bool,
    /// Print the instructions of `--case` and do nothing else.
    #[arg(long)]
    list: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |d| d.as_nanos() as u64 & 0xffff_ffff)
    });
    eprintln!("seed {seed}");
    let options = Options {
        seed,
        mode: if args.bits32 {
            Mode::Bits32
        } else {
            Mode::Bits64
        },
        first: args.case,
        cases: args.cases,
        filter: args.filter.to_lowercase(),
        strictness: Strictness {
            undefined: args.undefined,
            ..Strictness::for_this_host()
        },
        failures: args.failures,
    };
    if args.list {
        let mut input = Box::new(Input::default());
        let mut generator =
            Generator::new(seed, options.mode, catalog(&options.filter, options.mode));
        print!("{}", generator.case(args.case, &mut input).listing());
        return Ok(());
    }
    let mut tester = Tester::new(options, |memory| Ok(Box::new(SoftEngine::new(memory)?)))?;
    let summary = tester.run(|s| {
        eprint!(
            "\r{} cases, {} failures, {:.0} cases/s ",
            s.cases,
            s.failures.len(),
            s.cases as f64 / s.time.as_secs_f64()
        );
    })?;
    eprintln!();
    if args.census {
        census(&summary.failures);
    } else {
        for failure in &summary.failures {
            print(&args, seed, failure);
        }
    }
    println!(
        "{} cases in {:.1} s ({:.0}/s): {} ended by an exception, {} skipped, {} differ where they may, {} differ",
        summary.cases,
        summary.time.as_secs_f64(),
        summary.cases as f64 / summary.time.as_secs_f64(),
        summary.exceptions,
        summary.skipped,
        summary.free,
        summary.failures.len()
    );
    if !summary.failures.is_empty() {
        std::process::exit(1);
    }
    Ok(())
}

fn census(failures: &[Failure]) {
    let mut by_code: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for f in failures {
        let entry = by_code.entry(&f.code).or_insert((0, f.case));
        entry.0 += 1;
    }
    for (code, (n, first)) in by_code {
        println!("{n:6}  {code}  (case {first})");
    }
}

fn print(args: &Args, seed: u64, failure: &Failure) {
    println!("case {} of seed {seed} differs:", failure.case);
    print!("{}", failure.listing);
    print!("{}", failure.differences);
    let gpr: Vec<String> = failure.input.gpr.iter().map(|g| format!("{g:x}")).collect();
    println!("  before: gpr {}", gpr.join(" "));
    println!(
        "          rflags {:x}, fcw {:x}, fsw {:x}, ftw {:x}, mxcsr {:x}",
        failure.input.rflags,
        u16::from_le_bytes([failure.input.fx[0], failure.input.fx[1]]),
        u16::from_le_bytes([failure.input.fx[2], failure.input.fx[3]]),
        failure.input.fx[4],
        u16::from_le_bytes([failure.input.fx[24], failure.input.fx[25]]),
    );
    let mut command = format!(
        "cargo run --release -p differential -- --seed {seed} --case {} --cases 1",
        failure.case
    );
    if !args.filter.is_empty() {
        command.push_str(&format!(" --filter {}", args.filter));
    }
    if args.bits32 {
        command.push_str(" --bits32");
    }
    if args.undefined {
        command.push_str(" --undefined");
    }
    println!("  repeat: {command}");
}
