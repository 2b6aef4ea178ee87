//! A short differential run of the software CPU; `cargo run --release -p differential` does long
//! ones.

use differential::case::Mode;
use differential::compare::Strictness;
use differential::{Options, Tester};
use soft::SoftEngine;

#[test]
fn agrees_with_the_host_in_64_bit_code() -> anyhow::Result<()> {
    agrees(Mode::Bits64)
}

#[test]
fn agrees_with_the_host_in_32_bit_code() -> anyhow::Result<()> {
    agrees(Mode::Bits32)
}

fn agrees(mode: Mode) -> anyhow::Result<()> {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        // The same each time: a red run is a change of ours. New cases are searched for by hand.
        .unwrap_or(1);
    let options = Options {
        seed,
        mode,
        first: 0,
        cases: 20_000,
        filter: String::new(),
        strictness: Strictness::for_this_host(),
        failures: 1,
    };
    println!("repeat: SEED={seed} cargo test --release -p differential");
    let mut tester = Tester::new(options, |memory| Ok(Box::new(SoftEngine::new(memory)?)))?;
    let summary = tester.run(|_| ())?;
    for failure in &summary.failures {
        println!(
            "case {}:\n{}{}",
            failure.case, failure.listing, failure.differences
        );
    }
    assert!(summary.failures.is_empty());
    assert_eq!(summary.cases, 20_000);
    assert!(summary.skipped < 100, "{} skipped", summary.skipped);
    Ok(())
}
