//! Runs the protocol simulator over many seeds and prints what it did.
//!
//! `cargo run --release -p ftlog --example simulate -- --seeds 1000000`

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use ftlog::sim::{Mutation, Options, Report, run};

const USAGE: &str = "usage: simulate [--seeds N] [--start S] [--jobs N] [--mutation NAME] [--trace]

  --seeds N        how many seeds to run (1000)
  --start S        the first seed (0)
  --jobs N         how many at a time (one for each core)
  --mutation NAME  break a rule on purpose: the run is to fail
  --trace          print what happens";

/// What to run.
struct Plan {
    seeds: u64,
    start: u64,
    jobs: u64,
    options: Options,
}

fn main() -> ExitCode {
    let plan = match arguments(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let (done, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let began = Instant::now();
    let total = std::thread::scope(|scope| {
        let work = |job| run_share(&plan, job, began, &done, &failed);
        let jobs: Vec<_> = (0..plan.jobs)
            .map(|job| scope.spawn(move || work(job)))
            .collect();
        let mut total = Report::default();
        for job in jobs {
            match job.join() {
                Ok(report) => total.add(&report),
                Err(_) => failed.store(true, Relaxed),
            }
        }
        total
    });
    if failed.load(Relaxed) {
        return ExitCode::FAILURE;
    }
    println!(
        "{} seeds from {}, no rule broken: {total:#?}",
        plan.seeds, plan.start
    );
    ExitCode::SUCCESS
}

/// Every so many'th seed, until one fails anywhere.
fn run_share(
    plan: &Plan,
    job: u64,
    began: Instant,
    done: &AtomicU64,
    failed: &AtomicBool,
) -> Report {
    let mut total = Report::default();
    for seed in (job..plan.seeds).step_by(plan.jobs as usize) {
        if failed.load(Relaxed) {
            break;
        }
        match run(plan.start.wrapping_add(seed), plan.options) {
            Ok(report) => total.add(&report),
            Err(violation) => {
                eprintln!("{violation}");
                failed.store(true, Relaxed);
            }
        }
        let done = done.fetch_add(1, Relaxed) + 1;
        if done.is_multiple_of(10_000) {
            eprintln!("{done} seeds, {:.0} s", began.elapsed().as_secs_f64());
        }
    }
    total
}

fn arguments(mut args: impl Iterator<Item = String>) -> Result<Plan, String> {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let mut plan = Plan {
        seeds: 1000,
        start: 0,
        jobs: cores,
        options: Options::default(),
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("{text:?} is not a number"))
        };
        match arg.as_str() {
            "--seeds" => plan.seeds = number(value()?)?,
            "--start" => plan.start = number(value()?)?,
            "--jobs" => plan.jobs = number(value()?)?.clamp(1, 1024),
            "--mutation" => plan.options.mutation = mutation(&value()?)?,
            "--trace" => plan.options.trace = true,
            _ => return Err(format!("{arg} is not an option")),
        }
    }
    Ok(plan)
}

fn mutation(name: &str) -> Result<Mutation, String> {
    let names = Mutation::ALL.map(|mutation| format!("{mutation:?}"));
    let at = names
        .iter()
        .position(|known| known.eq_ignore_ascii_case(name));
    at.map(|at| Mutation::ALL[at])
        .ok_or_else(|| format!("{name} is not a mutation; there are {}", names.join(", ")))
}
