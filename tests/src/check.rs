//! Says whether a recorded history could have come from one correct server
//! that was never replaced: whether it is linearizable (Herlihy and Wing), and
//! if it is not, what kind of wrong the clients saw.
//!
//! Two independent judgements: [`linear`] searches, key by key, an order of
//! the operations that explains every answer and respects real time; and
//! [`symptoms`] counts plain contradictions that a person can follow. A
//! history is good only if neither finds anything.

mod linear;
mod model;
mod symptoms;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::history::{Answer, Event, History};
pub use symptoms::Symptoms;

/// What became of a history.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verdict {
    /// Operations that got an answer.
    pub answered: u64,
    /// Those of them that wrote.
    pub acknowledged: u64,
    /// Operations whose connection broke before the answer: they may have
    /// taken effect at any time, or never.
    pub unknown: u64,
    /// Operations that the server refused with an error.
    pub refused: u64,
    /// Operations that contradict an acknowledged write: it is gone.
    pub lost: u64,
    /// Writes that took effect more often than they were asked for.
    pub repeated: u64,
    /// Reads of a state older than one that was already read.
    pub reversed: u64,
    /// Answers with a value that nobody wrote, or of the wrong kind.
    pub foreign: u64,
    /// Keys that have no valid order of operations, each with the place where
    /// the search got stuck.
    pub violations: Vec<String>,
    /// Keys for which the search was given up before it was decided.
    pub undecided: Vec<String>,
}

impl Verdict {
    /// Nothing wrong, and nothing left undecided.
    pub fn is_good(&self) -> bool {
        self.lost == 0
            && self.repeated == 0
            && self.reversed == 0
            && self.foreign == 0
            && self.violations.is_empty()
            && self.undecided.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} answered ({} writes acknowledged), {} unknown, {} refused; \
             {} lost, {} repeated, {} reversed, {} foreign",
            self.answered,
            self.acknowledged,
            self.unknown,
            self.refused,
            self.lost,
            self.repeated,
            self.reversed,
            self.foreign
        )?;
        for text in &self.violations {
            write!(f, "\n  not linearizable: {text}")?;
        }
        for key in &self.undecided {
            write!(f, "\n  undecided: {key}")?;
        }
        Ok(())
    }
}

/// Checks a whole history. Keys must not have existed before it began.
pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    let mut keys: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in &history.events {
        match &event.answer {
            None => verdict.unknown += 1,
            Some(answer) => {
                verdict.answered += 1;
                if matches!(answer, Answer::Error(_)) {
                    // Redis does nothing when it answers with an error.
                    verdict.refused += 1;
                    continue;
                }
                verdict.acknowledged += u64::from(event.op.is_write());
            }
        }
        keys.entry(&event.key).or_default().push(event);
    }
    for (key, events) in keys {
        let found = symptoms::of_key(&events);
        verdict.lost += found.lost;
        verdict.repeated += found.repeated;
        verdict.reversed += found.reversed;
        verdict.foreign += found.foreign;
        match linear::search(&events) {
            linear::Outcome::Linearizable => (),
            linear::Outcome::Violated(stuck) => verdict.violations.push(format!("{key}: {stuck}")),
            linear::Outcome::Undecided => verdict.undecided.push(key.to_string()),
        }
    }
    verdict
}

#[cfg(test)]
mod tests;
