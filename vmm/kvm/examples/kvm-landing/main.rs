//! Positions by branches on real KVM, with a counter that is made of stepping ([`truth`]): the
//! landing's self-test, the conformance guests that stop at positions ([`conforms`]), and where there
//! are none ([`adrift`]); before that, that stopping the guest anywhere leaves no trace ([`kicks`]).
//! `kvm-landing [--on qemu|bochs] [SEED [RECORDINGS REPLAYS PASSES]]`; ends with 1 if something fails.
//!
//! QEMU before 10 does not load a nested guest's breakpoints: there only the last can be tested, and
//! it says so.
//!
//! What it shows: breakpoints, steps, exits and interrupts of the engine's vCPU are what a landing
//! takes them for. What it cannot show is anything of a processor's own counter.

mod adrift;
mod conforms;
mod kicks;
mod truth;

use std::process::ExitCode;
use std::time::Instant;

use landing::{Effort, Guest, Motion, Refused, Stepper, Stop};

/// What each counter says of its lateness, and how late it is: in branches, and instructions.
const LATENESS: [(u64, u64, u64); 2] = [(100, 60, 40), (20, 0, 0)];

fn main() -> ExitCode {
    let numbers: Vec<u32> = std::env::args()
        .skip(1)
        .filter_map(|word| word.parse().ok())
        .collect();
    let number = |i: usize, default: u32| numbers.get(i).copied().unwrap_or(default);
    let effort = Effort {
        recordings: number(1, 1),
        replays: number(2, 1),
        passes: number(3, 2),
        limit: None,
    };
    let seed = u64::from(number(0, 1));
    let strike = match breakpoints_strike() {
        Ok(strike) => strike,
        Err(why) => {
            println!("FAIL {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut passed = kicks::run(seed, strike);
    if strike {
        passed &= self_test(seed, effort);
        passed &= conforms::run();
        passed &= adrift::run();
    } else if is_on("qemu") {
        println!(
            "left out, since this emulated processor does not know a nested guest's breakpoints: \
             everything that needs them"
        );
    } else {
        println!("FAIL a breakpoint did not strike");
        passed = false;
    }
    ExitCode::from(u8::from(!passed))
}

/// The landing's own test, with a counter as late as that.
fn self_test(seed: u64, effort: Effort) -> bool {
    let mut passed = true;
    for (bound, branches, instructions) in LATENESS {
        let lateness = truth::Lateness {
            bound,
            branches,
            instructions,
        };
        let begun = Instant::now();
        let mut made = 0;
        let result = landing::self_test(seed, effort, &mut |guest| {
            made += 1;
            truth::make(guest, lateness, seed + made)
        });
        let took = begun.elapsed().as_secs_f64();
        match result {
            Ok(report) => println!("ok   late by up to {branches}: {report:?}, {took:.1} s"),
            Err(why) => {
                passed = false;
                println!("FAIL late by up to {branches}: {}", chain(&why));
            }
        }
    }
    passed
}

/// The self-test's guest begins with two moves of 5 and 6 bytes.
fn breakpoints_strike() -> Result<bool, String> {
    let guest = Guest::for_self_test(1).map_err(|e| e.to_string())?;
    let mut vcpu = kvm::counted::subject(&guest).map_err(|e| e.to_string())?;
    let behind = guest.state.rip + 5;
    let stop = vcpu.go(Motion::Run, &[behind]).map_err(|e| e.to_string())?;
    let place = vcpu.place().map_err(|e| e.to_string())?;
    Ok(stop == Stop::Breakpoint && place.rip == behind)
}

/// Whether this machine is said to be emulated by that.
fn is_on(emulator: &str) -> bool {
    let words: Vec<String> = std::env::args().collect();
    words
        .windows(2)
        .any(|pair| pair[0] == "--on" && pair[1] == emulator)
}

fn chain(refused: &Refused) -> String {
    let mut text = refused.to_string();
    let mut cause = std::error::Error::source(refused);
    while let Some(why) = cause {
        text.push_str(&format!(": {why}"));
        cause = why.source();
    }
    text
}
