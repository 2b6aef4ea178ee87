//! `fuzz`: hostile input for everything that faces a guest, a peer, a file or a user.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use cli::println;
use fuzz::run::{self, Plan};
use fuzz::{Target, targets};

/// Runs mutated inputs through parsers and state machines; exit status 1 if anything is found.
///
/// Inputs with findings are kept, with the command that repeats them.
#[derive(Parser)]
struct Args {
    /// Targets; all of them if none is named.
    targets: Vec<String>,
    /// Cases of each target; by default a short run, or without end with --seconds.
    #[arg(long)]
    cases: Option<u64>,
    /// Seconds for each target.
    #[arg(long)]
    seconds: Option<u64>,
    /// Seed; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Number of the first case: with `--cases 1` repeats one case of a seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Runs this one input through the one target named.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Where inputs with findings are kept.
    #[arg(long, default_value = "target/fuzz")]
    out: PathBuf,
    /// Names the targets and does nothing else.
    #[arg(long)]
    list: bool,
    /// In this process: a crash then ends the run.
    #[arg(long)]
    here: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.list {
        for target in targets::ALL {
            println!("{:14} {}", target.name, target.about);
        }
        return Ok(());
    }
    let chosen = choose(&args.targets)?;
    if let Some(path) = &args.input {
        let [target] = chosen.as_slice() else {
            anyhow::bail!("name the one target that --input is for");
        };
        return run::one(target, path);
    }
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let seed = args.seed.unwrap_or_else(rand::random);
    if !args.here {
        println!("seed {seed}");
    }
    let mut clean = true;
    for target in chosen {
        let endless = args.seconds.map(|_| u64::MAX);
        let plan = Plan {
            seed,
            first: args.first,
            cases: args.cases.or(endless).unwrap_or(target.cases),
            time: args.seconds.map(Duration::from_secs),
            out: args.out.clone(),
        };
        clean &= if args.here {
            run::here(target, &plan)?.findings == 0
        } else {
            run::apart(target, &plan)?
        };
    }
    std::process::exit(i32::from(!clean));
}

fn choose(names: &[String]) -> anyhow::Result<Vec<&'static Target>> {
    if names.is_empty() {
        return Ok(targets::ALL.iter().collect());
    }
    let find = |name: &String| {
        let found = targets::ALL.iter().find(|target| target.name == name);
        found.with_context(|| format!("there is no target {name:?}; --list names them"))
    };
    names.iter().map(find).collect()
}
