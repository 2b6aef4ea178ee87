//! Replaying: every recorded event must come at its place, with the same guest there.

use super::guest::TIMER_VECTOR;
use super::record::{Event, exited};
use super::{Refused, Report, Subject, fingerprint, vcpu};
use crate::counter::BranchCounter;
use crate::land::{Landing, land};
use crate::stepper::{Motion, Stop};

/// Runs the guest by the log.
pub fn replay<S: Subject, C: BranchCounter>(
    stepper: &mut S,
    counter: &mut C,
    log: &[Event],
    report: &mut Report,
) -> Result<(), Refused> {
    for (i, expected) in log.iter().enumerate() {
        let got = step(stepper, counter, expected, report).map_err(|e| e.at_event(i))?;
        if got != *expected {
            return Err(Refused::Differs {
                recording: 0,
                replay: 0,
                event: i,
                what: format!("recorded {expected:x?}, replayed {got:x?}"),
            });
        }
    }
    Ok(())
}

/// Goes on to the next event, by the log's word.
fn step<S: Subject, C: BranchCounter>(
    stepper: &mut S,
    counter: &mut C,
    expected: &Event,
    report: &mut Report,
) -> Result<Event, Refused> {
    let Event::At {
        position,
        interrupted,
        fingerprint: recorded,
    } = expected
    else {
        return loop {
            // A kick of the last landing may still come.
            if let Stop::Exit(exit) = stepper.go(Motion::Run, &[]).map_err(vcpu)? {
                report.exits += 1;
                break exited(stepper, counter, exit);
            }
        };
    };
    loop {
        let landing = land(stepper, counter, position).map_err(|source| Refused::Landing {
            recording: 0,
            replay: 0,
            event: 0,
            source,
        })?;
        match landing {
            Landing::Kicked => {}
            Landing::Exit(exit) => return exited(stepper, counter, exit),
            Landing::Landed => break,
        }
    }
    report.landings += 1;
    let state = stepper.state().map_err(vcpu)?;
    let fingerprint = fingerprint(stepper, &state);
    if *interrupted && fingerprint == *recorded {
        stepper.inject(TIMER_VECTOR).map_err(vcpu)?;
    }
    Ok(Event::At {
        position: *position,
        fingerprint,
        interrupted: *interrupted,
    })
}

impl Refused {
    pub(super) fn at_event(mut self, i: usize) -> Self {
        if let Refused::Landing { event, .. } | Refused::Differs { event, .. } = &mut self {
            *event = i;
        }
        self
    }

    pub(super) fn in_recording(mut self, i: u32) -> Self {
        if let Refused::Recording { recording, .. } = &mut self {
            *recording = i;
        }
        self
    }

    pub(super) fn in_replay(mut self, i: u32, n: u32) -> Self {
        match &mut self {
            Refused::Landing {
                recording, replay, ..
            }
            | Refused::Differs {
                recording, replay, ..
            } => (*recording, *replay) = (i, n),
            Refused::Recording { recording, .. } => *recording = i,
            _ => {}
        }
        self
    }
}
