//! The host's counter of conditional branches. Without it the kvm engine counts exits, so that nothing
//! here is worse than a note.

use kvm::probe::Outcome;

use super::{Check, Verdict};

/// `engine_works`: the kvm engine does, so that the self-test can be run. Takes some seconds where
/// there is a counter.
pub fn checks(engine_works: bool) -> Vec<Check> {
    let found = match engine_works {
        true => kvm::positions().checks.clone(),
        false => kvm::without_engine(),
    };
    found.into_iter().map(said).collect()
}

fn said(check: kvm::probe::Check) -> Check {
    let verdict = match check.result {
        Outcome::Ok => Verdict::Ok,
        Outcome::Warn | Outcome::Fail | Outcome::Skipped => Verdict::Note,
    };
    Check {
        fix: check.fix,
        ..Check::new(check.name, verdict, check.detail)
    }
}
