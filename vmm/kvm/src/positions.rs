//! Which positions the engine uses on this host: by branches where the host's counter is there, is
//! prompt, and the landing's self-test passes with it; by exits elsewhere. The one place where that is
//! found out.
//!
//! A counter's kick that may be late by thousands of branches (AMD's are) makes each landing take
//! longer than the millisecond between two events of the log, so that no backup could follow. There
//! branches are only counted if that is asked for.

use std::sync::OnceLock;
use std::time::Duration;

use ::engine::{Engine, EngineError};
use landing::{Cpu, CpuId, Effort};

use crate::counted::{CountedEngine, HostCounter, subject};
use crate::engine::KvmEngine;
use crate::probe::{Check, Outcome};

const SELF_TEST: &str = "counter: self-test";
/// Where the self-test's guest is interrupted.
const SEED: u64 = 1;
/// The most branches that a kick may be late where nothing is asked for.
const PROMPT: u64 = 500;
/// At the start of a program: hundreds of landings.
const EFFORT: Effort = Effort {
    recordings: 2,
    replays: 5,
    passes: 400,
    limit: Some(Duration::from_secs(60)),
};

/// What was found.
#[derive(Clone, Debug)]
pub struct Positions {
    /// Branches are counted; else only exits.
    pub by_branches: bool,
    /// In one line.
    pub why: String,
    pub checks: Vec<Check>,
}

/// Finds out which to take where nothing is asked for, once for each process. Takes some seconds
/// where there is a prompt counter, and is only to be asked where the engine works.
pub fn positions() -> &'static Positions {
    static FOUND: OnceLock<Positions> = OnceLock::new();
    FOUND.get_or_init(|| find(false))
}

/// As [`positions`], where branches are asked for: a late counter does, too. Takes up to a minute.
pub fn by_branches() -> &'static Positions {
    static FOUND: OnceLock<Positions> = OnceLock::new();
    FOUND.get_or_init(|| find(true))
}

/// The engine with positions that count branches. Whether they can be used [`positions`] knows.
pub fn counted(vcpu: KvmEngine) -> Result<Box<dyn Engine>, EngineError> {
    let counter = HostCounter::new().map_err(|why| EngineError::Hypervisor(why.to_string()))?;
    Ok(Box::new(CountedEngine::new(vcpu, counter)?))
}

/// What is said of the counter where the engine does not work.
pub fn without_engine() -> Vec<Check> {
    let mut checks = landing::checks();
    checks.push(Check::new(
        SELF_TEST,
        Outcome::Skipped,
        "not run, since the kvm engine does not work here",
    ));
    checks
}

/// Why there is nothing to be tested, if so.
fn unusable(checks: &[Check], asked: bool) -> Option<String> {
    let missing = checks.iter().find(|check| check.result == Outcome::Fail);
    if let Some(missing) = missing {
        return Some(missing.detail.clone());
    }
    let late = Cpu::of(&CpuId::of_host()).map_or(0, |cpu| cpu.event.skid);
    (late > PROMPT && !asked).then(|| {
        format!(
            "this processor's counter kicks up to {late} branches late, so that landings take too \
             long to be worth it"
        )
    })
}

fn find(asked: bool) -> Positions {
    let mut checks = landing::checks();
    if let Some(why) = unusable(&checks, asked) {
        checks.push(Check::new(
            SELF_TEST,
            Outcome::Skipped,
            format!("not run, positions count exits: {why}"),
        ));
        return Positions {
            by_branches: false,
            why,
            checks,
        };
    }
    let check = self_test();
    let by_branches = check.result == Outcome::Ok;
    let why = check.detail.clone();
    checks.push(check);
    Positions {
        by_branches,
        why,
        checks,
    }
}

/// On a thread of its own: the counters are the thread's.
fn self_test() -> Check {
    let test = || {
        landing::self_test(SEED, EFFORT, &mut |guest| {
            let vcpu = subject(guest).map_err(|why| crate::errors::chain(&why))?;
            let counter = HostCounter::new().map_err(|why| why.to_string())?;
            Ok((vcpu, counter))
        })
        .map_err(|why| crate::errors::chain(&why))
    };
    let tested = match std::thread::spawn(test).join() {
        Ok(tested) => tested,
        Err(_) => Err("it broke off; this is a mistake in the program".to_owned()),
    };
    match tested {
        Ok(report) => Check::new(
            SELF_TEST,
            Outcome::Ok,
            format!(
                "{} landings in {} replays, each exact",
                report.landings, report.replays
            ),
        ),
        Err(why) => Check::new(
            SELF_TEST,
            Outcome::Fail,
            format!("refused, positions count exits: {why}"),
        )
        .fix("vm.positions = \"exits\" is as safe; a computing guest is stopped less often"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On every host: a counter that is not there is said not to be, and nothing is tested then.
    #[test]
    fn says_what_it_found() {
        let found = without_engine();
        for check in &found {
            println!("{:?} {}: {}", check.result, check.name, check.detail);
        }
        let last = found.last().map(|check| (check.name, check.result));
        assert_eq!(last, Some((SELF_TEST, Outcome::Skipped)));
        if found.iter().any(|check| check.result == Outcome::Fail) {
            assert!(!positions().by_branches);
            assert!(!positions().why.is_empty());
        }
    }
}
