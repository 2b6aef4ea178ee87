//! Plain contradictions in the operations on one key. Each is proof of a
//! fault by itself; finding none proves nothing, which is what the search for
//! a valid order is for.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::history::{Answer, Event, Op};

/// Contradictions by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Symptoms {
    /// An acknowledged write that nobody had read is not there.
    pub lost: u64,
    /// A write took effect more often than asked.
    pub repeated: u64,
    /// A read gave an older state than an earlier read.
    pub reversed: u64,
    /// A value that nobody wrote, or an answer of the wrong kind.
    pub foreign: u64,
}

/// Contradictions among the operations of one key.
pub fn of_key(events: &[&Event]) -> Symptoms {
    let has = |kind: fn(&Op) -> bool| events.iter().any(|e| kind(&e.op));
    let kinds = [
        has(|op| matches!(op, Op::Incr)),
        has(|op| matches!(op, Op::Set(_))),
        has(|op| matches!(op, Op::Append(_))),
    ];
    match kinds {
        [true, false, false] => of_counter(events),
        [false, true, false] => of_register(events),
        [false, false, true] => of_list(events),
        // Nobody wrote, so there is nothing to be read.
        [false, false, false] => Symptoms {
            foreign: count(events, |e| matches!(e.answer, Some(Answer::Text(_)))),
            ..Symptoms::default()
        },
        // Kinds mixed on one key: only the search for an order judges these.
        _ => Symptoms::default(),
    }
}

fn count(events: &[&Event], mut fault: impl FnMut(&Event) -> bool) -> u64 {
    events.iter().filter(|e| fault(e)).count() as u64
}

/// Runs through answered events in real time: before each, in the order of
/// requests, everything that returned before its request has been shown.
fn in_real_time<'a, S>(
    events: &[&'a Event],
    state: &mut S,
    returned: impl Fn(&mut S, &'a Event),
    mut asked: impl FnMut(&mut S, &'a Event),
) {
    let mut by_request: Vec<&Event> = events.to_vec();
    by_request.retain(|e| e.return_ns.is_some());
    let mut by_return = by_request.clone();
    by_request.sort_by_key(|e| e.invoke_ns);
    by_return.sort_by_key(|e| e.return_ns);
    let mut done = by_return.into_iter().peekable();
    for event in by_request {
        while let Some(earlier) = done.next_if(|e| e.return_ns < Some(event.invoke_ns)) {
            returned(state, earlier);
        }
        asked(state, event);
    }
}

/// The number that a counter had before `event` (for INCR) or when it read.
fn number_seen(event: &Event) -> Option<i64> {
    match (&event.op, event.answer.as_ref()?) {
        (Op::Incr, Answer::Integer(n)) => n.checked_sub(1),
        (Op::Get, Answer::Nil) => Some(0),
        (Op::Get, Answer::Text(text)) => text.parse().ok(),
        _ => None,
    }
}

fn of_counter(events: &[&Event]) -> Symptoms {
    let mut found = Symptoms {
        foreign: count(events, |e| e.answer.is_some() && number_seen(e).is_none()),
        ..Symptoms::default()
    };
    // The highest number acknowledged, and the highest read, so far.
    let mut highest = (0, 0);
    in_real_time(
        events,
        &mut highest,
        |(acknowledged, read), event| match (&event.op, number_seen(event)) {
            (Op::Incr, Some(before)) => *acknowledged = (*acknowledged).max(before + 1),
            (_, Some(seen)) => *read = (*read).max(seen),
            _ => (),
        },
        |(acknowledged, read), event| match number_seen(event) {
            Some(seen) if event.op == Op::Get && seen < *read => found.reversed += 1,
            Some(seen) if seen < *acknowledged => found.lost += 1,
            Some(seen) if seen < *read => found.reversed += 1,
            _ => (),
        },
    );
    // The same number given twice means that one of the two was undone.
    let mut given = HashSet::new();
    let twice = count(
        events,
        |e| matches!((&e.op, &e.answer), (Op::Incr, Some(Answer::Integer(n))) if !given.insert(*n)),
    );
    found.lost = found.lost.max(twice);
    // No number can be higher than the count of INCRs asked for until then.
    let mut asked: Vec<u64> = (events.iter().filter(|e| e.op == Op::Incr))
        .map(|e| e.invoke_ns)
        .collect();
    asked.sort_unstable();
    let excess = |event: &&Event| {
        let after = number_seen(event)? + i64::from(event.op == Op::Incr);
        let possible = asked.partition_point(|&t| Some(t) <= event.return_ns);
        u64::try_from(after - possible as i64).ok()
    };
    found.repeated = events.iter().filter_map(excess).max().unwrap_or(0);
    found
}

fn of_register(events: &[&Event]) -> Symptoms {
    let mut found = Symptoms::default();
    // When each value was asked to be set, and when that was acknowledged.
    let mut sets: HashMap<&str, (u64, u64)> = HashMap::new();
    for event in events {
        if let Op::Set(value) = &event.op {
            let times = (event.invoke_ns, event.return_ns.unwrap_or(u64::MAX));
            sets.insert(value, times);
        }
    }
    // The latest request time of a SET that is acknowledged, and that was read.
    let mut latest: (Option<u64>, Option<u64>) = (None, None);
    in_real_time(
        events,
        &mut latest,
        |(acknowledged, read), event| match (&event.op, &event.answer) {
            (Op::Set(_), _) => *acknowledged = (*acknowledged).max(Some(event.invoke_ns)),
            (_, Some(Answer::Text(value))) => {
                *read = (*read).max(sets.get(value.as_str()).map(|s| s.0));
            }
            _ => (),
        },
        |(acknowledged, read), event| {
            let settled = match (&event.op, &event.answer) {
                (Op::Get, Some(Answer::Nil)) => None,
                (Op::Get, Some(Answer::Text(value))) => match sets.get(value.as_str()) {
                    Some(&(asked, settled)) if Some(asked) <= event.return_ns => Some(settled),
                    _ => {
                        found.foreign += 1;
                        return;
                    }
                },
                (Op::Get, _) => {
                    found.foreign += 1;
                    return;
                }
                _ => return,
            };
            // A value is outdated when a SET asked for after it was settled
            // is known to have taken effect.
            if read.is_some() && settled < *read {
                found.reversed += 1;
            } else if acknowledged.is_some() && settled < *acknowledged {
                found.lost += 1;
            }
        },
    );
    found
}

/// The tokens of a list, each with its `;`.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(';')
}

fn of_list(events: &[&Event]) -> Symptoms {
    let mut found = Symptoms::default();
    let asked: HashSet<&str> = (events.iter())
        .filter_map(|e| match &e.op {
            Op::Append(token) => Some(token.as_str()),
            _ => None,
        })
        .collect();
    let mut repeated: BTreeMap<&str, u64> = BTreeMap::new();
    let mut lost: HashSet<&str> = HashSet::new();
    // Tokens acknowledged so far, and the longest text read so far.
    let mut known: (Vec<&str>, &str) = (Vec::new(), "");
    in_real_time(
        events,
        &mut known,
        |(acknowledged, read), event| match (&event.op, &event.answer) {
            (Op::Append(token), Some(Answer::Integer(_))) => acknowledged.push(token),
            (Op::Get, Some(Answer::Text(text))) if text.len() > read.len() => *read = text,
            _ => (),
        },
        |(acknowledged, read), event| {
            let text = match (&event.op, &event.answer) {
                (Op::Get, Some(Answer::Nil)) => "",
                (Op::Get, Some(Answer::Text(text))) => text.as_str(),
                (Op::Get, _) => {
                    found.foreign += 1;
                    return;
                }
                _ => return,
            };
            let mut times: HashMap<&str, u64> = HashMap::new();
            for token in tokens(text) {
                *times.entry(token).or_default() += 1;
            }
            found.foreign += times.keys().filter(|t| !asked.contains(*t)).count() as u64;
            for (token, times) in &times {
                let most = repeated.entry(token).or_default();
                *most = (*most).max(times - 1);
            }
            let missing = acknowledged.iter().filter(|t| !times.contains_key(*t));
            let before = lost.len();
            lost.extend(missing);
            // A list only grows: what was read stays its beginning.
            if lost.len() == before && !text.starts_with(*read) {
                found.reversed += 1;
            }
        },
    );
    found.lost = lost.len() as u64;
    found.repeated = repeated.values().sum();
    found
}
