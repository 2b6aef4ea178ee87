//! Linearizability of the operations on one key, by the search of Wing and
//! Gong with Lowe's memory of configurations already seen ("Testing for
//! linearizability", 2017).
//!
//! The operations of one connection take effect in their order, so a
//! configuration is how far each connection has come, and the value. An
//! operation whose answer never came may come in at any time after its
//! request, or never, but not before those sent earlier on its connection.

use std::collections::{BTreeMap, HashSet};

use xxhash_rust::xxh3::Xxh3;

use super::model::{Value, apply};
use crate::history::{Answer, Event, Op};

/// Configurations looked at before the search is given up.
const BUDGET: u64 = 20_000_000;

/// What the search found.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none; says what could not be placed where the search got
    /// furthest.
    Violated(String),
    /// Too many configurations.
    Undecided,
}

/// The operations of one connection.
struct Sequence<'a> {
    events: Vec<&'a Event>,
    /// For each position, the earliest return from there on.
    earliest_return: Vec<u64>,
    /// Position of the next operation to place.
    next: usize,
}

impl<'a> Sequence<'a> {
    fn new(events: Vec<&'a Event>) -> Self {
        let mut earliest = u64::MAX;
        let mut earliest_return: Vec<u64> = (events.iter().rev())
            .map(|event| {
                earliest = earliest.min(event.return_ns.unwrap_or(u64::MAX));
                earliest
            })
            .collect();
        earliest_return.reverse();
        Self {
            events,
            earliest_return,
            next: 0,
        }
    }

    fn head(&self) -> Option<&'a Event> {
        self.events.get(self.next).copied()
    }

    fn deadline(&self) -> u64 {
        let deadline = self.earliest_return.get(self.next);
        deadline.copied().unwrap_or(u64::MAX)
    }
}

/// A point of the search to which it can come back.
struct Frame {
    value: Value,
    /// Sequences whose head may be placed next, those not tried yet.
    untried: Vec<usize>,
    /// The sequence whose head was placed last, if any is.
    placed: Option<usize>,
    /// Whether there was more than one choice.
    branching: bool,
}

struct Search<'a> {
    sequences: Vec<Sequence<'a>>,
    value: Value,
    /// Answered operations that are not placed yet.
    left: usize,
    seen: HashSet<u128>,
}

/// Looks for an order of `events`, all of one key, listed connection by
/// connection in the order of each; the key is absent at first.
pub fn search(events: &[&Event]) -> Outcome {
    let mut search = Search::new(events);
    let mut frames: Vec<Frame> = Vec::new();
    let mut best = (usize::MAX, String::new());
    for _ in 0..BUDGET {
        if search.left == 0 {
            return Outcome::Linearizable;
        }
        let untried = search.candidates();
        if untried.is_empty() && search.left < best.0 {
            best = (search.left, search.describe());
        }
        frames.push(Frame {
            value: search.value.clone(),
            branching: untried.len() > 1,
            untried,
            placed: None,
        });
        if !search.step(&mut frames) {
            return Outcome::Violated(best.1);
        }
    }
    Outcome::Undecided
}

impl<'a> Search<'a> {
    fn new(events: &[&'a Event]) -> Self {
        let read: HashSet<&str> = (events.iter())
            .filter_map(|e| match &e.answer {
                Some(Answer::Text(text)) => Some(text.as_str()),
                _ => None,
            })
            .collect();
        let mut connections: BTreeMap<(u32, u32), Vec<&'a Event>> = BTreeMap::new();
        for &event in events {
            let matters = match (&event.answer, &event.op) {
                (Some(_), _) => true,
                // Without an answer a read says nothing, and a value that
                // nobody read explains nothing.
                (None, Op::Get) => false,
                (None, Op::Set(value)) => read.contains(value.as_str()),
                (None, Op::Incr | Op::Append(_)) => true,
            };
            if matters {
                let connection = (event.client, event.connection);
                connections.entry(connection).or_default().push(event);
            }
        }
        Self {
            sequences: connections.into_values().map(Sequence::new).collect(),
            value: Value::Absent,
            left: events.iter().filter(|e| e.answer.is_some()).count(),
            seen: HashSet::new(),
        }
    }

    /// The sequences whose head may come next, the most promising last.
    fn candidates(&self) -> Vec<usize> {
        let deadline = self.sequences.iter().map(Sequence::deadline).min();
        let deadline = deadline.unwrap_or(u64::MAX);
        let mut found = Vec::new();
        for (number, sequence) in self.sequences.iter().enumerate() {
            let Some(event) = sequence.head() else {
                continue;
            };
            // Whatever returned before this was asked must come before it.
            if event.invoke_ns > deadline {
                continue;
            }
            if apply(&self.value, &event.op, event.answer.as_ref()).is_none() {
                continue;
            }
            if event.op == Op::Get {
                // It changes nothing and is right here, so placing it here
                // can only help: no need to try anything else.
                return vec![number];
            }
            found.push(number);
        }
        let urgency = |&number: &usize| {
            let event = self.sequences[number].head();
            event.and_then(|e| e.return_ns).unwrap_or(u64::MAX)
        };
        found.sort_by_key(|number| std::cmp::Reverse(urgency(number)));
        found
    }

    /// Places an untried head of the last frame, going back as far as needed;
    /// false when nothing is left to try.
    fn step(&mut self, frames: &mut Vec<Frame>) -> bool {
        while let Some(frame) = frames.last_mut() {
            if let Some(number) = frame.placed.take() {
                self.take_back(number);
            }
            self.value = frame.value.clone();
            while let Some(number) = frame.untried.pop() {
                self.place(number);
                // Where there was no choice, the last choice is remembered.
                if !frame.branching || self.seen.insert(self.fingerprint()) {
                    frame.placed = Some(number);
                    return true;
                }
                self.take_back(number);
                self.value = frame.value.clone();
            }
            frames.pop();
        }
        false
    }

    fn place(&mut self, number: usize) {
        let sequence = &mut self.sequences[number];
        if let Some(event) = sequence.head() {
            if let Some(value) = apply(&self.value, &event.op, event.answer.as_ref()) {
                self.value = value;
            }
            sequence.next += 1;
            self.left -= usize::from(event.answer.is_some());
        }
    }

    fn take_back(&mut self, number: usize) {
        let sequence = &mut self.sequences[number];
        sequence.next -= 1;
        if let Some(event) = sequence.head() {
            self.left += usize::from(event.answer.is_some());
        }
    }

    fn fingerprint(&self) -> u128 {
        let mut hash = Xxh3::new();
        for sequence in &self.sequences {
            hash.update(&(sequence.next as u64).to_le_bytes());
        }
        match &self.value {
            Value::Absent => hash.update(&[0]),
            Value::Number(number) => hash.update(&number.to_le_bytes()),
            Value::Text(text) => hash.update(text.as_bytes()),
        }
        hash.digest128()
    }

    /// The value and the heads that do not fit it.
    fn describe(&self) -> String {
        let shown = |text: String| {
            if text.chars().count() > 60 {
                let tail: Vec<char> = text.chars().rev().take(50).collect();
                format!("…{}", tail.into_iter().rev().collect::<String>())
            } else {
                text
            }
        };
        let value = match &self.value {
            Value::Absent => "absent".to_string(),
            Value::Number(number) => number.to_string(),
            Value::Text(text) => format!("'{}'", shown(text.to_string())),
        };
        let heads: Vec<String> = (self.sequences.iter().filter_map(Sequence::head))
            .take(6)
            .map(|event| {
                let answer = event.answer.as_ref().map(|a| shown(format!("{a:?}")));
                format!(
                    "client {} at {:.3} ms {:?} -> {}",
                    event.client,
                    event.invoke_ns as f64 / 1e6,
                    event.op,
                    answer.unwrap_or_else(|| "no answer".into())
                )
            })
            .collect();
        format!(
            "with the value {value} none of these fits: {}",
            heads.join("; ")
        )
    }
}
