//! Bringing the vCPU to a position exactly.

use std::error::Error;

use engine::Exit;
use ftlog::Position;

use crate::advance::advance;
use crate::counter::{BranchCounter, CounterError};
use crate::stepper::{Motion, Place, Stepper, Stop};
use crate::successors::{code_linear, decode};

/// Branches past the target at which the counter calls back a vCPU that has missed its breakpoint.
const GUARD: u64 = 64;
const RCX: usize = 1;

/// How a call of [`land`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the vCPU may not have arrived"]
pub enum Landing {
    /// The vCPU stands at the position; the instruction there has not begun.
    Landed,
    /// An exit on the way: handle it, then call [`land`] again.
    Exit(Exit),
    /// Something else than the counter has kicked the vCPU, which is on its way: call again. Only
    /// such a kick ends a run into a loop without conditional branches and without the target.
    Kicked,
}

/// Why the vCPU cannot be brought to a position. After any of these the replica is not where the
/// log is: it must be discarded, and protection restored from the primary's state.
#[derive(Debug, thiserror::Error)]
pub enum LandError {
    #[error(
        "overshot: asked for {target}, and the vCPU stands at count {count} rip {:#x} rcx {:#x}",
        place.rip, place.rcx
    )]
    Overshot {
        target: Position,
        count: u64,
        place: Place,
    },
    #[error(
        "stuck: asked for {target}, and the vCPU is in an endless jump at count {count} rip {rip:#x}"
    )]
    Stuck {
        target: Position,
        count: u64,
        rip: u64,
    },
    #[error("the branch counter failed")]
    Counter(#[from] CounterError),
    #[error("the vCPU failed")]
    Vcpu(#[source] Box<dyn Error + Send + Sync>),
}

pub(crate) fn vcpu<E: Error + Send + Sync + 'static>(e: E) -> LandError {
    LandError::Vcpu(Box::new(e))
}

/// Runs the vCPU to the first instant at which it has retired `target.count` conditional branches
/// and RIP and RCX are the target's. Returns at once if it stands there.
///
/// The vCPU must stand between two instructions, with every exit answered and completed. It is
/// brought to every settled position unless the counter's kick is later than its skid. A position of
/// another kind may be overshot, and is then said to be: right after MOV SS, and where an instruction
/// raises another exception than those that `advance` looks for.
pub fn land<S: Stepper, C: BranchCounter>(
    stepper: &mut S,
    counter: &mut C,
    target: &Position,
) -> Result<Landing, LandError> {
    let result = approach(stepper, counter, target);
    counter.disarm()?;
    result
}

fn approach<S: Stepper, C: BranchCounter>(
    stepper: &mut S,
    counter: &mut C,
    target: &Position,
) -> Result<Landing, LandError> {
    let margin = counter.skid();
    let mut guarded = false;
    loop {
        let count = counter.read()?;
        let place = stepper.place().map_err(vcpu)?;
        if count > target.count {
            return Err(LandError::Overshot {
                target: *target,
                count,
                place,
            });
        }
        if count == target.count && place.rip == target.rip && place.rcx == target.rcx {
            return Ok(Landing::Landed);
        }
        let armed_at = if target.count - count > margin {
            target.count - margin
        } else {
            target.count + GUARD
        };
        let far = armed_at < target.count;
        if far || !guarded {
            counter.arm(armed_at)?;
            guarded = !far;
        }
        let stop = if far {
            stepper.go(Motion::Run, &[]).map_err(vcpu)?
        } else {
            search(stepper, target, count)?
        };
        let now = counter.read()?;
        match stop {
            // An exit behind the target is not one on the way: the next turn says so.
            Stop::Exit(exit) if now <= target.count => return Ok(Landing::Exit(exit)),
            Stop::Kicked if now < armed_at => return Ok(Landing::Kicked),
            _ => {}
        }
    }
}

/// Close to the target: on to the next place where it may be.
fn search<S: Stepper>(stepper: &mut S, target: &Position, count: u64) -> Result<Stop, LandError> {
    let state = stepper.state().map_err(vcpu)?;
    let here = code_linear(&state, state.rip);
    let current = decode(stepper, &state, state.rip);
    if current.is_some_and(|current| current.is_endless()) {
        return Err(LandError::Stuck {
            target: *target,
            count,
            rip: state.rip,
        });
    }
    // With a base, the target's segment cannot be foreseen: every instruction is looked at.
    let flat = here == state.rip;
    if flat && here != target.rip {
        return stepper.go(Motion::Run, &[target.rip]).map_err(vcpu);
    }
    let within = count == target.count && here == target.rip && state.gpr[RCX] > target.rcx;
    if within && current.is_some_and(|current| current.repeats()) {
        // In the middle of it; an iteration that faults shows TF to its handler.
        return stepper.go(Motion::Step, &[]).map_err(vcpu);
    }
    let also = flat.then_some(target.rip);
    Ok(advance(stepper, also).map_err(vcpu)?.stop)
}

#[cfg(test)]
mod tests;
