use std::time::Instant;

use super::*;

fn run_many(seeds: std::ops::Range<u64>, options: Options) -> (Report, Option<Violation>) {
    let mut total = Report::default();
    for seed in seeds {
        match run(seed, options) {
            Ok(report) => total.add(&report),
            Err(violation) => return (total, Some(violation)),
        }
    }
    (total, None)
}

#[test]
fn sound_runs_break_no_rule() {
    let start = u64::from(rand::random::<u32>());
    let began = Instant::now();
    let (total, violation) = run_many(start..start + 2000, Options::default());
    println!("{total:?} in {:?}, from seed {start}", began.elapsed());
    if let Some(violation) = violation {
        panic!("{violation}");
    }
    // The faults bite: each path was taken often.
    let often = [
        ("failovers", total.failovers, 200),
        ("alone", total.alone, 200),
        ("lost", total.lost, 50),
        ("unanswered asks", total.asks_unanswered, 200),
        ("backup reads", total.backup_reads, 1000),
        ("carried reads", total.carried, 100),
        ("stalls", total.stalls, 100),
        ("stretches", total.stretches, 10_000),
        ("unfinished stretches", total.unfinished, 10),
    ];
    for (what, times, least) in often {
        assert!(times >= least, "only {times} {what}");
    }
}

#[test]
fn a_seed_repeats() {
    for seed in 0..20 {
        assert_eq!(run(seed, Options::default()), run(seed, Options::default()));
    }
}

/// Each rule, broken, is noticed within so many seeds: by what clients, the disk and the replicas'
/// hashes show, without looking into the machines.
#[test]
fn every_broken_rule_is_caught() {
    for mutation in Mutation::ALL {
        let options = Options {
            mutation,
            consequences_only: true,
            ..Options::default()
        };
        let (_, violation) = run_many(0..3000, options);
        let Some(violation) = violation else {
            panic!("{mutation:?} was not caught")
        };
        println!(
            "{mutation:?} caught by seed {}: {}",
            violation.seed, violation.what
        );
    }
}

/// The Output Rule's own check sees at once what the clients only notice at a crash.
#[test]
fn an_output_before_its_ack_is_seen() {
    let options = Options {
        mutation: Mutation::ReleaseAtOnce,
        ..Options::default()
    };
    let (_, violation) = run_many(0..10, options);
    assert!(violation.is_some_and(|violation| violation.what.contains("before its ack")));
}
