//! Recording: the guest is kicked at random, settled, and interrupted there.

use std::time::Duration;

use engine::{Boundary, Exit};
use ftlog::Position;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::guest::{PORT, TIMER_VECTOR};
use super::{Refused, Report, Subject, fingerprint, vcpu};
use crate::counter::BranchCounter;
use crate::settle::{Settled, settle};
use crate::stepper::{Motion, Stop};

/// Longest time between two kicks.
const MAX_MICROS: u64 = 50;
/// Events after which the guest must have ended.
const MAX_EVENTS: usize = 100_000;

/// One thing that happened, with the guest's fingerprint where it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Settled here; an interrupt was put in if one could be taken.
    At {
        position: Position,
        fingerprint: u64,
        interrupted: bool,
    },
    /// A port was written.
    Out { count: u64, value: u32 },
    /// The end.
    Halt { count: u64, fingerprint: u64 },
}

/// What stopped the guest in between.
enum Next {
    Exit(Exit),
    Position(Position),
    Nothing,
}

/// Runs the guest to its end.
pub fn record<S: Subject, C: BranchCounter>(
    stepper: &mut S,
    counter: &mut C,
    rng: &mut ChaCha8Rng,
    report: &mut Report,
) -> Result<Vec<Event>, Refused> {
    let mut log = Vec::new();
    while log.len() < MAX_EVENTS {
        stepper
            .kick_after(Duration::from_micros(rng.random_range(0..=MAX_MICROS)))
            .map_err(vcpu)?;
        let event = match next(stepper, counter)? {
            Next::Position(position) => at(stepper, position, report)?,
            Next::Exit(exit) => exited(stepper, counter, exit)?,
            Next::Nothing => {
                report.nowhere += 1;
                continue;
            }
        };
        log.push(event);
        if let Event::Halt { .. } = event {
            return Ok(log);
        }
    }
    Err(Refused::Recording {
        recording: 0,
        what: format!("the guest has not ended after {MAX_EVENTS} events"),
    })
}

fn next<S: Subject, C: BranchCounter>(stepper: &mut S, counter: &mut C) -> Result<Next, Refused> {
    let stop = stepper.go(Motion::Run, &[]).map_err(vcpu)?;
    if let Stop::Exit(exit) = stop {
        return Ok(Next::Exit(exit));
    }
    let settled = settle(stepper, counter).map_err(|e| Refused::Recording {
        recording: 0,
        what: format!("no position: {e}"),
    })?;
    Ok(match settled {
        Settled::At(position) => Next::Position(position),
        Settled::Exit(exit) => Next::Exit(exit),
        Settled::Nowhere => Next::Nothing,
    })
}

fn at<S: Subject>(
    stepper: &mut S,
    position: Position,
    report: &mut Report,
) -> Result<Event, Refused> {
    let state = stepper.state().map_err(vcpu)?;
    let fingerprint = fingerprint(stepper, &state);
    let interrupted = state.rflags & 0x200 != 0 && !state.interrupt_shadow;
    if interrupted {
        stepper.inject(TIMER_VECTOR).map_err(vcpu)?;
        report.interrupts += 1;
    }
    Ok(Event::At {
        position,
        fingerprint,
        interrupted,
    })
}

/// The event that an exit is.
pub fn exited<S: Subject, C: BranchCounter>(
    stepper: &mut S,
    counter: &mut C,
    exit: Exit,
) -> Result<Event, Refused> {
    let count = counter.read()?;
    match exit {
        Exit::Boundary(Boundary::IoWrite { port, value, .. }) if port == PORT => {
            Ok(Event::Out { count, value })
        }
        Exit::Boundary(Boundary::Halt { .. }) => {
            let state = stepper.state().map_err(vcpu)?;
            Ok(Event::Halt {
                count,
                fingerprint: fingerprint(stepper, &state),
            })
        }
        other => Err(Refused::Recording {
            recording: 0,
            what: format!("the guest must not exit with {other:?}"),
        }),
    }
}
