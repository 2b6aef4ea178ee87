//! The loop over the cases of one target, and the process around it.
//!
//! Each target runs in a process of its own, so that an abort (stack overflow, memory that is not
//! there) ends this process and not the whole run. The number of the present case is kept in a file
//! for that: from the seed and the number whoever is left makes the input again.

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use cli::println;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::findings::{self, Finding, Watch};
use crate::{Target, mutate};

/// Different findings that one run of a target reports before it ends.
const MAX_FINDINGS: usize = 5;

/// What to run of a target.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Number of the first case.
    pub first: u64,
    /// How many; without a bound of time, exactly so many.
    pub cases: u64,
    /// No further case begins after so long.
    pub time: Option<Duration>,
    /// Where inputs with findings go.
    pub out: PathBuf,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub cases: u64,
    pub findings: usize,
}

/// The input of one case: a function of target, seed and number. The first ones are the samples as
/// they are.
pub fn input(target: &Target, samples: &[Vec<u8>], seed: u64, number: u64) -> Vec<u8> {
    let sample = usize::try_from(number).ok().and_then(|n| samples.get(n));
    if let Some(sample) = sample {
        return sample.clone();
    }
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&number.to_le_bytes());
    key[16..24].copy_from_slice(&xxhash_rust::xxh3::xxh3_64(target.name.as_bytes()).to_le_bytes());
    mutate::case(&mut ChaCha8Rng::from_seed(key), samples)
}

/// Runs the cases in this process. Prints findings and, at the end, the rate.
pub fn here(target: &Target, plan: &Plan) -> anyhow::Result<Summary> {
    findings::collect_panics();
    let samples = (target.samples)();
    findings::bound_memory()?;
    let place = File::create(plan, target)?;
    let current = Arc::new(Mutex::new((plan.first, Vec::new())));
    let watch = {
        let (current, target, plan) = (current.clone(), *target, plan.clone());
        Watch::start(move |finding| {
            let (number, input) = &*current.lock().unwrap_or_else(PoisonError::into_inner);
            report(&target, &plan, *number, input, &finding);
            std::process::exit(1);
        })
    };
    let began = Instant::now();
    let mut summary = Summary::default();
    let mut known: Vec<String> = Vec::new();
    for number in plan.first..plan.first.saturating_add(plan.cases) {
        if plan.time.is_some_and(|time| began.elapsed() >= time) {
            break;
        }
        let bytes = input(target, &samples, plan.seed, number);
        place.set(number)?;
        watch.next_case();
        *current.lock().unwrap_or_else(PoisonError::into_inner) = (number, bytes.clone());
        summary.cases += 1;
        let Some(finding) = findings::judge(target.run, &bytes) else {
            continue;
        };
        let kind = kind(&finding);
        if !known.contains(&kind) {
            known.push(kind);
            summary.findings += 1;
            report(target, plan, number, &bytes, &finding);
        }
        if summary.findings == MAX_FINDINGS {
            println!(
                "{}: enough findings; the rest of the cases is left out",
                target.name
            );
            break;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{:14} {:>8} cases in {seconds:5.1} s {:>8.0}/s {:>4.0} % accepted  {}",
        target.name,
        summary.cases,
        summary.cases as f64 / seconds.max(1e-9),
        100.0 * findings::count_accepted() as f64 / summary.cases.max(1) as f64,
        match summary.findings {
            0 => "nothing found".to_owned(),
            n => format!("{n} findings"),
        }
    );
    Ok(summary)
}

/// By what two findings count as the same: for a panic, its first line, which says where.
fn kind(finding: &Finding) -> String {
    match finding {
        Finding::Panic(what) => what.lines().next().unwrap_or_default().to_owned(),
        Finding::Slow(_) => "slow".to_owned(),
        Finding::Hanging(_) | Finding::Died(_) => finding.to_string(),
    }
}

/// Runs the cases in a process of their own.
pub fn apart(target: &Target, plan: &Plan) -> anyhow::Result<bool> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--here")
        .args(["--seed", &plan.seed.to_string()])
        .args(["--first", &plan.first.to_string()])
        .args(["--cases", &plan.cases.to_string()])
        .arg("--out")
        .arg(&plan.out)
        .arg(target.name);
    if let Some(time) = plan.time {
        command.args(["--seconds", &time.as_secs().to_string()]);
    }
    let status = command.status().context("the fuzzer cannot start itself")?;
    match status.code() {
        Some(0) => Ok(true),
        // It has said what it found.
        Some(1) => Ok(false),
        _ => {
            let number = File::read(plan, target)?;
            let input = input(target, &(target.samples)(), plan.seed, number);
            let how = match status.signal() {
                Some(signal) => format!("signal {signal}"),
                None => status.to_string(),
            };
            report(target, plan, number, &input, &Finding::Died(how));
            Ok(false)
        }
    }
}

/// Runs one input from a file in this process.
pub fn one(target: &Target, path: &Path) -> anyhow::Result<()> {
    let input = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    findings::collect_panics();
    findings::bound_memory()?;
    match findings::judge(target.run, &input) {
        None => {
            println!("{}: nothing found", target.name);
            Ok(())
        }
        Some(finding) => bail!("{}: {finding}", target.name),
    }
}

/// Keeps the input and says how to have it again.
fn report(target: &Target, plan: &Plan, number: u64, input: &[u8], finding: &Finding) {
    let (name, seed) = (target.name, plan.seed);
    let path = plan.out.join(format!("{name}-{seed}-{number}"));
    println!("{name}: case {number} of seed {seed}: {finding}");
    match std::fs::write(&path, input) {
        Ok(()) => println!("  input: {} ({} bytes)", path.display(), input.len()),
        Err(why) => println!("  the input could not be kept in {}: {why}", path.display()),
    }
    println!(
        "  repeat: cargo run --release -p fuzz -- {name} --seed {seed} --first {number} --cases 1"
    );
}

/// The file with the number of the present case.
struct File(std::fs::File);

impl File {
    fn path(plan: &Plan, target: &Target) -> PathBuf {
        plan.out.join(format!("{}.case", target.name))
    }

    fn create(plan: &Plan, target: &Target) -> anyhow::Result<Self> {
        let path = Self::path(plan, target);
        let file = std::fs::File::create(&path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(file))
    }

    fn set(&self, number: u64) -> anyhow::Result<()> {
        Ok(self.0.write_all_at(&number.to_le_bytes(), 0)?)
    }

    fn read(plan: &Plan, target: &Target) -> anyhow::Result<u64> {
        let bytes = std::fs::read(Self::path(plan, target))?;
        let bytes = bytes
            .first_chunk()
            .context("it died before its first case")?;
        Ok(u64::from_le_bytes(*bytes))
    }
}
