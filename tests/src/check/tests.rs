//! The checker must accept what a correct server says, whatever the timing,
//! and reject each kind of fault. Histories come from a simulated server, so
//! that both are known for sure.

mod simulated;

use std::time::Instant;

use super::{Verdict, check};
use crate::history::{Answer, Event, History, Op};
use simulated::{Fault, Setup, simulate};

/// Seeds of the randomised tests; `LOCKSTEP_SEED=n` runs only that one.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("LOCKSTEP_SEED") {
        Ok(text) => vec![text.parse().expect("LOCKSTEP_SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}

fn repeat_with(seed: u64) -> String {
    format!("repeat with: LOCKSTEP_SEED={seed} cargo test --release -p tests check::")
}

#[test]
fn correct_servers_are_accepted() {
    for seed in seeds(300) {
        let breaks = (seed % 4) as usize;
        let setup = Setup {
            breaks,
            ..Setup::small(seed)
        };
        let history = simulate(&setup, None).expect("no fault asked for");
        let verdict = check(&history);
        assert!(verdict.is_good(), "{verdict}\n{}", repeat_with(seed));
        assert_eq!(verdict.unknown > 0, breaks > 0, "{}", repeat_with(seed));
    }
}

/// Runs `fault` on many seeds. The search must reject every history; the
/// plain contradictions that `symptom` counts must show in all or in most.
fn reject(fault: Fault, breaks: usize, always: bool, symptom: fn(&Verdict) -> u64) {
    let (mut injected, mut shown) = (0, 0);
    for seed in seeds(300) {
        let setup = Setup {
            breaks,
            ..Setup::small(seed)
        };
        let Some(history) = simulate(&setup, Some(fault)) else {
            continue; // This seed had no place for the fault.
        };
        injected += 1;
        let verdict = check(&history);
        let found = symptom(&verdict) > 0;
        let context = format!("{fault:?}: {verdict}\n{}", repeat_with(seed));
        assert!(!verdict.violations.is_empty(), "accepted {context}");
        assert!(found || !always, "no symptom {context}");
        shown += usize::from(found);
    }
    assert!(
        injected > 0 && shown * 2 > injected,
        "{fault:?}: {shown} of {injected}"
    );
}

#[test]
fn lost_writes_are_found() {
    reject(Fault::Rollback, 0, true, |v| v.lost + v.reversed);
    reject(Fault::Rollback, 0, false, |v| v.lost);
}

#[test]
fn repeated_writes_are_found() {
    // Without breaks: one more INCR could be one whose answer got lost.
    reject(Fault::Repeat, 0, true, |v| v.repeated);
}

#[test]
fn reversed_reads_are_found() {
    for breaks in [0, 1] {
        reject(Fault::StaleRead, breaks, false, |v| v.reversed + v.lost);
    }
}

#[test]
fn foreign_values_are_found() {
    reject(Fault::Foreign, 1, true, |v| v.foreign);
}

#[test]
fn a_hundred_thousand_operations_take_seconds() {
    let setup = Setup {
        operations: 100_000,
        clients: 8,
        breaks: 1,
        ..Setup::small(7)
    };
    let history = simulate(&setup, None).expect("no fault asked for");
    let started = Instant::now();
    let verdict = check(&history);
    println!(
        "{} events checked in {:?}",
        history.events.len(),
        started.elapsed()
    );
    assert!(verdict.is_good(), "{verdict}");
    let faulty = simulate(&setup, Some(Fault::Rollback)).expect("there is a place for it");
    let started = Instant::now();
    let verdict = check(&faulty);
    println!("the same with a fault in {:?}", started.elapsed());
    assert!(
        !verdict.is_good() && verdict.undecided.is_empty(),
        "{verdict}"
    );
}

fn event(client: u32, op: Op, times: (u64, u64), answer: Option<Answer>) -> Event {
    Event {
        client,
        connection: 0,
        key: "k".into(),
        op,
        invoke_ns: times.0,
        return_ns: answer.is_some().then_some(times.1),
        answer,
    }
}

fn good(events: Vec<Event>) -> bool {
    check(&History { events }).is_good()
}

fn set(value: &str) -> Op {
    Op::Set(value.into())
}

fn text(value: &str) -> Option<Answer> {
    Some(Answer::Text(value.into()))
}

#[test]
fn overlapping_operations_may_go_either_way_but_not_both() {
    let writes = || {
        vec![
            event(0, set("a"), (0, 10), Some(Answer::Ok)),
            event(1, set("b"), (0, 10), Some(Answer::Ok)),
        ]
    };
    for last in ["a", "b"] {
        let mut events = writes();
        events.push(event(2, Op::Get, (20, 30), text(last)));
        assert!(good(events.clone()), "{last}");
        let other = if last == "a" { "b" } else { "a" };
        events.push(event(2, Op::Get, (40, 50), text(other)));
        assert!(!good(events), "{last} then {other}");
    }
}

#[test]
fn one_connection_keeps_its_order_even_in_a_pipeline() {
    let pipeline = |first: &str, second: &str| {
        vec![
            event(0, set(first), (0, 10), Some(Answer::Ok)),
            event(0, set(second), (0, 10), Some(Answer::Ok)),
            event(1, Op::Get, (20, 30), text("b")),
        ]
    };
    assert!(good(pipeline("a", "b")));
    assert!(!good(pipeline("b", "a")));
}

#[test]
fn an_unanswered_write_may_come_late_or_never() {
    let incr = |answer: i64| Some(Answer::Integer(answer));
    let unanswered = event(0, Op::Incr, (0, 0), None);
    for (first, second) in [(1, 2), (2, 3), (1, 3)] {
        assert!(good(vec![
            unanswered.clone(),
            event(1, Op::Incr, (10, 20), incr(first)),
            event(1, Op::Incr, (30, 40), incr(second)),
        ]));
    }
    // But it comes at most once.
    assert!(!good(vec![
        unanswered,
        event(1, Op::Incr, (10, 20), incr(2)),
        event(1, Op::Incr, (30, 40), incr(4)),
    ]));
    // And not after it was read and taken back.
    assert!(!good(vec![
        event(0, set("a"), (0, 0), None),
        event(1, Op::Get, (10, 20), text("a")),
        event(1, Op::Get, (30, 40), Some(Answer::Nil)),
    ]));
}

#[test]
fn refused_operations_have_no_effect() {
    let refused = Some(Answer::Error("LOADING".into()));
    assert!(good(vec![
        event(0, Op::Incr, (0, 10), refused.clone()),
        event(0, Op::Incr, (20, 30), Some(Answer::Integer(1))),
    ]));
    assert!(!good(vec![
        event(0, Op::Incr, (0, 10), refused),
        event(0, Op::Incr, (20, 30), Some(Answer::Integer(2))),
    ]));
}

#[test]
fn histories_survive_the_file() {
    let history = simulate(
        &Setup {
            breaks: 1,
            ..Setup::small(3)
        },
        None,
    )
    .expect("no fault");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("history.jsonl");
    history.write(&path).unwrap();
    assert!(History::read(&path).unwrap() == history);
    std::fs::write(&path, "{\"client\":0}\n").unwrap();
    let error = History::read(&path).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}
