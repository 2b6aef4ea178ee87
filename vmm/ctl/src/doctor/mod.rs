//! `doctor`: what this host offers, what is missing, and what to do about it.

mod counter;
mod cpu;
mod files;

use anyhow::Result;
use cli::println;
use kvm::probe::Outcome;
use serde::Serialize;
use vmm::config::{EngineKind, Positions};

/// What was never run, in these words everywhere.
pub const NOT_RUN: &str = "the kvm engine was verified in an emulated AMD-V (QEMU) and an emulated \
                           VT-x (Bochs) only, positions by branches with a counter made of \
                           stepping: nothing was run on real VT-x, real AMD-V or a real counter";

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// Says something, but nothing depends on it.
    Note,
    /// Some of it will not work, or not well.
    Warn,
    /// Machines cannot run here.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub result: Verdict,
    pub detail: String,
    /// What to do, if there is anything to do.
    pub fix: Option<String>,
}

impl Check {
    fn new(name: &'static str, result: Verdict, detail: impl Into<String>) -> Self {
        Self {
            name,
            result,
            detail: detail.into(),
            fix: None,
        }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// What `doctor --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What `engine = "auto"` takes on this host.
    pub engine: &'static str,
    pub why: String,
    /// What the positions of that engine count here, where `vm.positions` is `auto`.
    pub positions: &'static str,
    /// Nothing has failed.
    pub healthy: bool,
    pub checks: Vec<Check>,
}

/// A check of the KVM engine. Where that engine cannot be used machines still run, on `soft`.
fn of_probe(check: &kvm::probe::Check) -> Check {
    let result = match check.result {
        Outcome::Ok => Verdict::Ok,
        Outcome::Warn => Verdict::Warn,
        Outcome::Fail | Outcome::Skipped => Verdict::Note,
    };
    Check {
        name: check.name,
        result,
        detail: check.detail.clone(),
        fix: check.fix.clone(),
    }
}

fn positions(engine: EngineKind) -> &'static str {
    match engine {
        EngineKind::Kvm if kvm::positions().by_branches => Positions::Branches.name(),
        EngineKind::Kvm => Positions::Exits.name(),
        EngineKind::Auto | EngineKind::Soft => "instructions",
    }
}

/// Looks at everything. Takes well under a second, or some seconds where there is a counter to be
/// tested, and leaves nothing behind.
pub fn examine() -> Report {
    let choice = vmm::engines::choose();
    let mut checks = cpu::checks();
    checks.extend(choice.probe.checks.iter().map(of_probe));
    checks.extend(counter::checks(choice.probe.works()));
    checks.extend(files::checks());
    Report {
        engine: choice.engine.name(),
        why: choice.why,
        positions: positions(choice.engine),
        healthy: checks.iter().all(|check| check.result != Verdict::Fail),
        checks,
    }
}

/// Prints the report; `false`: something has failed.
pub fn run(json: bool) -> Result<bool> {
    let report = examine();
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(report.healthy);
    }
    println!("engine: {} ({})", report.engine, report.why);
    println!("positions: {}", report.positions);
    for check in &report.checks {
        let word = match check.result {
            Verdict::Ok => "ok  ",
            Verdict::Note => "note",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        println!("  {word}  {:18} {}", check.name, check.detail);
        if let Some(fix) = &check.fix {
            println!("                            -> {fix}");
        }
    }
    let count = |wanted| report.checks.iter().filter(|c| c.result == wanted).count();
    match (count(Verdict::Fail), count(Verdict::Warn)) {
        (0, 0) => println!("machines can run here"),
        (0, warnings) => println!("machines can run here; warnings: {warnings}"),
        (failures, _) => println!("machines cannot run here; failed: {failures}"),
    }
    Ok(report.healthy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_has_its_own_name_and_faults_have_a_remedy() {
        let report = examine();
        assert!(["soft", "kvm"].contains(&report.engine));
        assert!(!report.why.is_empty());
        let mut names: Vec<_> = report.checks.iter().map(|check| check.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), report.checks.len());
        for check in &report.checks {
            let fault = matches!(check.result, Verdict::Fail | Verdict::Warn);
            assert!(!fault || check.fix.is_some(), "{check:?}");
        }
    }
}
