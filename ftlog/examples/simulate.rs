//! Runs the protocol simulator over many seeds and prints what it did.
//!
//! `cargo run --release -p ftlog --example simulate -- --seeds 1000000`

use std::process::ExitCode;
use std::time::Instant;

use ftlog::sim::{Mutation, Options, Report, run};

const USAGE: &str = "usage: simulate [--seeds N] [--start S] [--mutation NAME] [--trace]

  --seeds N        how many seeds to run (1000)
  --start S        the first seed (0)
  --mutation NAME  break a rule on purpose: the run is to fail
  --trace          print what happens";

fn main() -> ExitCode {
    let (seeds, start, options) = match arguments(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let began = Instant::now();
    let mut total = Report::default();
    for (done, seed) in (start..start.saturating_add(seeds)).enumerate() {
        match run(seed, options) {
            Ok(report) => total.add(&report),
            Err(violation) => {
                eprintln!("{violation}");
                return ExitCode::FAILURE;
            }
        }
        if (done + 1) % 10_000 == 0 {
            eprintln!("{} seeds, {:.0} s", done + 1, began.elapsed().as_secs_f64());
        }
    }
    println!("{seeds} seeds from {start}, no rule broken: {total:#?}");
    ExitCode::SUCCESS
}

fn arguments(mut args: impl Iterator<Item = String>) -> Result<(u64, u64, Options), String> {
    let (mut seeds, mut start, mut options) = (1000, 0, Options::default());
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{text} is not a number"));
        match arg.as_str() {
            "--seeds" => seeds = number(value()?)?,
            "--start" => start = number(value()?)?,
            "--mutation" => options.mutation = mutation(&value()?)?,
            "--trace" => options.trace = true,
            _ => return Err(format!("{arg} is not an option")),
        }
    }
    Ok((seeds, start, options))
}

fn mutation(name: &str) -> Result<Mutation, String> {
    let names = Mutation::ALL.map(|mutation| format!("{mutation:?}"));
    let at = names
        .iter()
        .position(|known| known.eq_ignore_ascii_case(name));
    at.map(|at| Mutation::ALL[at])
        .ok_or_else(|| format!("{name} is not a mutation; there are {}", names.join(", ")))
}
