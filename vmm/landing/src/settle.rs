//! From wherever the vCPU was kicked to the next position that names one instant.

use engine::Exit;
use ftlog::Position;
use iced_x86::FlowControl;

use crate::advance::advance;
use crate::counter::BranchCounter;
use crate::land::{LandError, vcpu};
use crate::stepper::{Motion, Stepper, Stop};
use crate::successors::{blocks_debug, code_linear, decode};

/// Stops after which a loop is taken to be without conditional branches.
const MAX_STOPS: u32 = 4096;
/// Instructions looked through for the next one that may branch.
const MAX_STRAIGHT: u32 = 64;
/// Branches after which the counter calls back a vCPU that was lost sight of.
const GUARD: u64 = 64;

/// Where [`settle`] has brought the vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "only a settled position may be logged"]
pub enum Settled {
    /// At a position that names one instant.
    At(Position),
    /// An exit came first.
    Exit(Exit),
    /// The guest is in a loop without conditional branches: no position is near. Let it run on, or
    /// close the stretch by state.
    Nowhere,
}

/// Goes on to the first instant after a conditional branch has retired; or stays in `jmp .`, where
/// any instant is the same.
///
/// The vCPU must stand between two instructions, with every exit answered and completed. Usually
/// this takes one or two stops for each basic block until a conditional branch.
pub fn settle<S: Stepper, C: BranchCounter>(
    stepper: &mut S,
    counter: &mut C,
) -> Result<Settled, LandError> {
    let result = seek(stepper, counter);
    counter.disarm()?;
    result
}

fn seek<S: Stepper, C: BranchCounter>(
    stepper: &mut S,
    counter: &mut C,
) -> Result<Settled, LandError> {
    let mut armed_at = 0;
    for _ in 0..MAX_STOPS {
        let count = counter.read()?;
        if count >= armed_at {
            // What faults may run far without meeting a breakpoint.
            armed_at = count + GUARD;
            counter.arm(armed_at)?;
        }
        if let Some(stop) = run_straight(stepper)? {
            match stop {
                Stop::Exit(exit) => return Ok(Settled::Exit(exit)),
                _ => continue,
            }
        }
        let advanced = advance(stepper, None).map_err(vcpu)?;
        if let Stop::Exit(exit) = advanced.stop {
            return Ok(Settled::Exit(exit));
        }
        let Some(from) = advanced.from else { continue };
        let place = stepper.place().map_err(vcpu)?;
        let now = counter.read()?;
        let stopped = matches!(advanced.stop, Stop::Breakpoint | Stop::Stepped);
        // More than one: a handler ran, or the branch was followed by others.
        let first = from.is_conditional() && stopped && now == count + 1;
        let endless = from.is_endless() && now == count && place.rip == from.instruction.ip();
        if first || endless {
            return Ok(Settled::At(Position::new(now, place.rip, place.rcx)));
        }
    }
    Ok(Settled::Nowhere)
}

/// Runs to the next instruction that may branch; `None` if the vCPU stands at one.
fn run_straight<S: Stepper>(stepper: &mut S) -> Result<Option<Stop>, LandError> {
    let state = stepper.state().map_err(vcpu)?;
    let mut rip = state.rip;
    for _ in 0..MAX_STRAIGHT {
        let Some(current) = decode(stepper, &state, rip) else {
            break;
        };
        let ins = &current.instruction;
        // After MOV SS no breakpoint strikes.
        if ins.flow_control() != FlowControl::Next || blocks_debug(ins) {
            break;
        }
        rip = ins.next_ip();
    }
    if rip == state.rip {
        return Ok(None);
    }
    let there = code_linear(&state, rip);
    stepper.go(Motion::Run, &[there]).map(Some).map_err(vcpu)
}
