//! Passing one instruction without a trace in the guest.

use iced_x86::Mnemonic;

use crate::stepper::{Motion, Stepper, Stop};
use crate::successors::{Current, code_linear, decode, handler, successors};

/// A CPU's breakpoints.
const MAX_BREAKPOINTS: usize = 4;
const DIVIDE_ERROR: u8 = 0;
const INVALID_OPCODE: u8 = 6;
const PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;

/// What [`advance`] has passed.
#[derive(Clone, Copy, Debug)]
pub struct Advanced {
    pub stop: Stop,
    /// The instruction at which the vCPU stood; `None` if there was none that could be decoded.
    pub from: Option<Current>,
}

/// Lets the instruction at which the vCPU stands retire (all iterations of a REP) and stops there, or
/// before that at `also` (a linear address), at an exit, or when kicked.
///
/// If the instruction faults the vCPU stops at its handler, where that can be told; otherwise, and
/// where it cannot be told where the instruction leads (a far transfer), it runs until one of those
/// places, an exit or a kick.
pub fn advance<S: Stepper>(stepper: &mut S, also: Option<u64>) -> Result<Advanced, S::Error> {
    let state = stepper.state()?;
    let here = code_linear(&state, state.rip);
    let from = decode(stepper, &state, state.rip);
    let known = from.and_then(|current| successors(stepper, &state, &current));
    // A breakpoint at a branch to itself would strike again before it has retired. It cannot fault,
    // so that nobody sees TF.
    let motion = match &known {
        Some(all) if all.contains(&here) => Motion::Step,
        _ => Motion::Run,
    };
    let mut stops: Vec<u64> = also
        .into_iter()
        .chain(known.into_iter().flatten())
        .collect();
    for vector in faults(from.as_ref()) {
        stops.extend(handler(stepper, &state, vector));
    }
    let mut distinct = Vec::with_capacity(MAX_BREAKPOINTS);
    for stop in stops {
        if stop != here && !distinct.contains(&stop) && distinct.len() < MAX_BREAKPOINTS {
            distinct.push(stop);
        }
    }
    let stop = stepper.go(motion, &distinct)?;
    Ok(Advanced { stop, from })
}

/// The exceptions that an instruction is most likely to raise.
fn faults(from: Option<&Current>) -> [u8; 3] {
    match from.map(|current| current.instruction.mnemonic()) {
        Some(Mnemonic::Div | Mnemonic::Idiv) => [PAGE_FAULT, DIVIDE_ERROR, PROTECTION],
        Some(Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2) | None => {
            [INVALID_OPCODE, PAGE_FAULT, PROTECTION]
        }
        _ => [PAGE_FAULT, PROTECTION, INVALID_OPCODE],
    }
}
