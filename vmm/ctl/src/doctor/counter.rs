//! The host's counter of conditional branches. No engine uses it yet, so that nothing here is worse
//! than a note.

use landing::Outcome;

use super::{Check, Verdict};

pub fn checks() -> Vec<Check> {
    landing::checks().into_iter().map(said).collect()
}

fn said(check: landing::Check) -> Check {
    let verdict = match check.result {
        Outcome::Ok => Verdict::Ok,
        Outcome::Warn | Outcome::Fail | Outcome::Skipped => Verdict::Note,
    };
    Check {
        fix: check.fix,
        ..Check::new(check.name, verdict, check.detail)
    }
}
