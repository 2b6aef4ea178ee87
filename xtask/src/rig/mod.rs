//! `cargo xtask rig`: real KVM on a machine without VT-x or AMD-V. QEMU's TCG emulates a machine with
//! AMD SVM, or Bochs one with VT-x; a Debian kernel with kvm-amd or kvm-intel runs on it, and our
//! programs use its `/dev/kvm`.
//!
//! | module | topic |
//! |---|---|
//! | [`variant`] | which machines there are |
//! | [`machine`] | the machine and the commands that it runs for us |
//! | [`qemu`], [`bochs`] | how each emulator is started |
//! | [`parts`] | what it is made of |
//! | [`steps`] | what is tested in it |

mod bochs;
mod machine;
mod parts;
mod qemu;
mod steps;
mod variant;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use e2e::wait;

use self::machine::Machine;
use self::parts::Parts;
use self::steps::Step;
use self::variant::{Npt, Processor, Processors, Variant};
use crate::{packages, step};

#[derive(Args)]
pub struct RigArgs {
    /// The processor that is emulated; --shell takes one, for both AMD's
    #[arg(long, value_enum, default_value_t = Processors::Amd)]
    processor: Processors,
    /// Nested paging in the rig's KVM on AMD: both if not given; --shell takes one, for both nested
    /// paging
    #[arg(long, value_enum)]
    npt: Option<Npt>,
    /// Only steps whose name contains one of these, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Only what takes no more than a few minutes
    #[arg(long)]
    smoke: bool,
    /// Show the steps and run nothing
    #[arg(long)]
    list: bool,
    /// Take the programs that are there, instead of building them first
    #[arg(long)]
    no_build: bool,
    /// More programs to put into the rig's PATH
    #[arg(long, value_name = "FILES", value_delimiter = ',')]
    with: Vec<PathBuf>,
    /// For --shell: the most that the command may take, in seconds of the rig's clock
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// Run this command in the rig (the words joined, for bash) and end with its status
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND")]
    shell: Option<Vec<String>>,
}

/// Gives the exit status.
pub fn run(args: &RigArgs) -> Result<i32> {
    let chosen: Vec<&Step> = steps::STEPS
        .iter()
        .filter(|step| args.only.is_empty() || args.only.iter().any(|n| step.name.contains(&**n)))
        .filter(|step| !args.smoke || step.smoke)
        .collect();
    if args.list {
        for step in chosen {
            let smoke = if step.smoke { "smoke" } else { "" };
            println!("{:14} {smoke:6} {}", step.name, step.about);
        }
        return Ok(0);
    }
    if chosen.is_empty() {
        bail!("no step has such a name; see cargo xtask rig --list");
    }
    let variants = Variant::chosen(args.processor, args.npt)?;
    wait::catch_signals()?;
    packages::for_rig(args.processor.each().contains(&Processor::Intel))?;
    if !args.no_build {
        let build = format!("build --release{}", steps::TARGETS);
        let build: Vec<&str> = build.split(' ').collect();
        step::run("building what runs in the rig", "cargo", &build)?;
    }
    let folder = tempfile::Builder::new().prefix("lockstep-rig-").tempdir()?;
    let mut programs = steps::programs(args.no_build)?;
    programs.extend(args.with.iter().cloned());
    let parts = parts::make(args.processor.each(), &programs, folder.path())?;
    match &args.shell {
        Some(words) => shell(args, &parts, variants[0], &words.join(" ")),
        None => all_steps(&parts, &variants, &chosen),
    }
}

/// Where the console's text and the steps' output go.
fn records() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().unwrap_or(Path::new(".")).join("rig");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

fn shell(args: &RigArgs, parts: &Parts, variant: Variant, command: &str) -> Result<i32> {
    let console = records()?.join("console-shell.log");
    let mut machine = start(parts, variant, &console)?;
    let bound = Duration::from_secs(args.limit);
    machine.run(command, bound, &mut |line| println!("{line}"))
}

fn start(parts: &Parts, variant: Variant, console: &Path) -> Result<Machine> {
    println!(
        "\n=== starting the rig, {}; its console: {}",
        variant.name(),
        console.display()
    );
    let machine = Machine::start(parts, variant, console)?;
    println!(
        "    Linux {} after {:.1} s",
        machine.kernel,
        machine.started_in.as_secs_f64()
    );
    Ok(machine)
}

/// What became of a step.
struct Outcome {
    name: &'static str,
    variant: Variant,
    seconds: f64,
    problem: Option<String>,
}

fn all_steps(parts: &Parts, variants: &[Variant], chosen: &[&Step]) -> Result<i32> {
    let records = records()?;
    let mut outcomes = Vec::new();
    for &variant in variants {
        let console = records.join(format!("console-{}.log", variant.in_file_names()));
        let mut machine = None;
        for &step in chosen {
            let outcome = one_step(parts, &records, &console, &mut machine, step, variant)?;
            // What a failed step did to KVM must not be the next one's problem.
            if outcome.problem.is_some() {
                machine = None;
            }
            outcomes.push(outcome);
        }
    }
    Ok(report(&outcomes))
}

fn one_step(
    parts: &Parts,
    records: &Path,
    console: &Path,
    machine: &mut Option<Machine>,
    step: &Step,
    variant: Variant,
) -> Result<Outcome> {
    let machine = match machine {
        Some(machine) => machine,
        none => none.insert(start(parts, variant, console)?),
    };
    println!("\n=== {} ({}): {}", step.name, variant.name(), step.about);
    let begun = Instant::now();
    let mut text = String::new();
    let script = format!("{}\n{}", steps::LIBRARY, step.script);
    let bound = Duration::from_secs(step.seconds);
    let ended = machine.run(&script, bound, &mut |line| {
        println!("    {line}");
        text.push_str(line);
        text.push('\n');
    });
    wait::interrupted()?;
    let record = records.join(format!("{}-{}.log", step.name, variant.in_file_names()));
    std::fs::write(&record, &text).with_context(|| record.display().to_string())?;
    let problem = match ended {
        Ok(0) => None,
        Ok(124 | 137) => Some(format!("not done within {} s", step.seconds)),
        Ok(status) => Some(format!("exit status {status}")),
        Err(why) => Some(format!("{why:#}")),
    };
    let seconds = begun.elapsed().as_secs_f64();
    match &problem {
        None => println!("=== {}: ok, {seconds:.1} s", step.name),
        Some(why) => println!("=== {}: FAILED after {seconds:.1} s: {why}", step.name),
    }
    Ok(Outcome {
        name: step.name,
        variant,
        seconds,
        problem,
    })
}

/// Prints the table; gives the exit status.
fn report(outcomes: &[Outcome]) -> i32 {
    println!(
        "\n=== the rig's steps\n    {:14} {:12} result    seconds",
        "step", "machine"
    );
    for outcome in outcomes {
        println!(
            "    {:14} {:12} {:8} {:8.1}",
            outcome.name,
            outcome.variant.name(),
            if outcome.problem.is_some() {
                "FAILED"
            } else {
                "ok"
            },
            outcome.seconds
        );
    }
    let failed: Vec<&Outcome> = outcomes.iter().filter(|o| o.problem.is_some()).collect();
    for outcome in &failed {
        println!(
            "failed: {}; to repeat: cargo xtask rig {} --only {}",
            outcome.name,
            outcome.variant.options(),
            outcome.name
        );
    }
    println!(
        "{} passed, {} failed",
        outcomes.len() - failed.len(),
        failed.len()
    );
    i32::from(!failed.is_empty())
}
