//! One step of a command: says what runs, and how long it took.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cli::println;

/// Randomised tests take these, so that a red run is a change of ours; new cases are searched for by
/// hand, with other values or none.
const SEEDS: [(&str, &str); 2] = [("SEED", "1"), ("PROPTEST_RNG_SEED", "1")];

/// Runs `program` with `args` as the step `title`. A failure names the command that repeats it.
pub fn run(title: &str, program: &str, args: &[&str]) -> Result<()> {
    let line = command_line(program, args);
    println!("\n=== {title}\n    $ {line}");
    let started = Instant::now();
    let status = Command::new(program)
        .args(args)
        .current_dir(workspace())
        .envs(
            SEEDS
                .iter()
                .filter(|(name, _)| std::env::var_os(name).is_none())
                .copied(),
        )
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{title}: {program} could not be started"))?;
    let seconds = started.elapsed().as_secs_f64();
    if !status.success() {
        bail!(
            "{title} failed after {seconds:.1} s ({status}); to repeat it:\n    {} {line}",
            seeds()
        );
    }
    println!("=== {title}: ok, {seconds:.1} s");
    Ok(())
}

fn seeds() -> String {
    SEEDS
        .map(|(name, value)| format!("{name}={}", std::env::var(name).unwrap_or(value.to_owned())))
        .join(" ")
}

fn command_line(program: &str, args: &[&str]) -> String {
    let quoted = args.iter().map(|arg| {
        let plain = arg
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_=./:,+".contains(c));
        if plain {
            (*arg).to_owned()
        } else {
            format!("'{arg}'")
        }
    });
    std::iter::once(program.to_owned())
        .chain(quoted)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The workspace's folder, from where every step runs.
pub fn workspace() -> PathBuf {
    let own = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let own = own.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    own.parent().map(Path::to_owned).unwrap_or(own)
}
