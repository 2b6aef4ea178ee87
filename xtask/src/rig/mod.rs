//! `cargo xtask rig`: real KVM on a machine without VT-x or AMD-V. QEMU's TCG emulates a machine with
//! AMD SVM; a Debian kernel with kvm-amd runs on it, and our programs use its `/dev/kvm`.
//!
//! | module | topic |
//! |---|---|
//! | [`machine`] | the machine and the commands that it runs for us |
//! | [`parts`] | what it is made of |
//! | [`steps`] | what is tested in it |

mod machine;
mod parts;
mod steps;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use e2e::wait;

use self::machine::Machine;
use self::parts::Parts;
use self::steps::Step;
use crate::{packages, step};

/// KVM's own paging for its guests.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Npt {
    /// Shadow paging: `kvm_amd.npt=0`
    #[value(name = "0")]
    Off,
    /// Nested paging: `kvm_amd.npt=1`
    #[value(name = "1")]
    On,
    /// One after the other
    Both,
}

#[derive(Args)]
pub struct RigArgs {
    /// Nested paging in the rig's KVM; --shell takes one, for both nested paging
    #[arg(long, value_enum, default_value_t = Npt::Both)]
    npt: Npt,
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
    /// For --shell: the most that the command may take, in seconds
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
    wait::catch_signals()?;
    packages::for_rig()?;
    if !args.no_build {
        let build = format!("build --release{}", steps::TARGETS);
        let build: Vec<&str> = build.split(' ').collect();
        step::run("building what runs in the rig", "cargo", &build)?;
    }
    let folder = tempfile::Builder::new().prefix("lockstep-rig-").tempdir()?;
    let mut programs = steps::programs(args.no_build)?;
    programs.extend(args.with.iter().cloned());
    let parts = parts::make(&programs, folder.path())?;
    match &args.shell {
        Some(words) => shell(args, &parts, &words.join(" ")),
        None => all_steps(args, &parts, &chosen),
    }
}

/// Where the console's text and the steps' output go.
fn records() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().unwrap_or(Path::new(".")).join("rig");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

fn shell(args: &RigArgs, parts: &Parts, command: &str) -> Result<i32> {
    let console = records()?.join("console-shell.log");
    let mut machine = start(parts, args.npt != Npt::Off, &console)?;
    let bound = Duration::from_secs(args.limit);
    machine.run(command, bound, &mut |line| println!("{line}"))
}

fn start(parts: &Parts, nested_paging: bool, console: &Path) -> Result<Machine> {
    println!(
        "\n=== starting the rig, npt={}; its console: {}",
        u8::from(nested_paging),
        console.display()
    );
    let machine = Machine::start(parts, nested_paging, console)?;
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
    npt: bool,
    seconds: f64,
    problem: Option<String>,
}

fn all_steps(args: &RigArgs, parts: &Parts, chosen: &[&Step]) -> Result<i32> {
    let variants: &[bool] = match args.npt {
        Npt::On => &[true],
        Npt::Off => &[false],
        Npt::Both => &[true, false],
    };
    let records = records()?;
    let mut outcomes = Vec::new();
    for &npt in variants {
        let console = records.join(format!("console-npt{}.log", u8::from(npt)));
        let mut machine = None;
        for &step in chosen {
            let outcome = one_step(parts, &records, &console, &mut machine, step, npt)?;
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
    npt: bool,
) -> Result<Outcome> {
    let machine = match machine {
        Some(machine) => machine,
        none => none.insert(start(parts, npt, console)?),
    };
    println!(
        "\n=== {} (npt={}): {}",
        step.name,
        u8::from(npt),
        step.about
    );
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
    let record = records.join(format!("{}-npt{}.log", step.name, u8::from(npt)));
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
        npt,
        seconds,
        problem,
    })
}

/// Prints the table; gives the exit status.
fn report(outcomes: &[Outcome]) -> i32 {
    println!(
        "\n=== the rig's steps\n    {:14} npt  result    seconds",
        "step"
    );
    for outcome in outcomes {
        println!(
            "    {:14} {:3}  {:8} {:8.1}",
            outcome.name,
            u8::from(outcome.npt),
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
            "failed: {}; to repeat: cargo xtask rig --npt {} --only {}",
            outcome.name,
            u8::from(outcome.npt),
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
