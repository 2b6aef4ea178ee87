//! The protocol's two small threads: the one that asks the view register, and the timer.

use std::time::Duration;

use crossbeam_channel::Receiver;
use ftlog::replica::Phase;
use ftlog::{ClaimAnswer, ClaimRequest, VmId};
use wire::register::{RegisterClient, RegisterError};

use super::protocol::Protocol;
use crate::link::spawn;

/// The timer looks at least this seldom (a flush is due after a millisecond).
const TICK_MIN: Duration = Duration::from_micros(250);

/// Asks the register what the protocol wants to ask; without a register there is nobody else who
/// could be live.
pub fn ask(
    mut register: RegisterClient,
    vm: VmId,
    protocol: Protocol,
    claims: Receiver<ClaimRequest>,
) -> std::io::Result<()> {
    spawn("register", move || {
        for request in &claims {
            if protocol.phase() != Phase::Claiming {
                continue; // a repetition of a question that was answered meanwhile
            }
            let answer = claim(&mut register, vm, request);
            protocol.register_answered(answer);
        }
    })
}

fn claim(register: &mut RegisterClient, vm: VmId, request: ClaimRequest) -> ClaimAnswer {
    match register.claim(vm, request.from_view, request.claimant) {
        Ok(wire::register::ClaimAnswer::Won(view)) => ClaimAnswer::Won(view),
        Ok(wire::register::ClaimAnswer::Lost(view)) => ClaimAnswer::Lost(view),
        Err(RegisterError::Refused { reason, .. }) => ClaimAnswer::Refused(reason),
        Err(why @ RegisterError::Unknown { .. }) => {
            tracing::warn!(%why, "the claim is undecided; asking again");
            ClaimAnswer::Unknown
        }
    }
}

/// Calls the protocol when it wants to be called.
pub fn tick(protocol: Protocol) -> std::io::Result<()> {
    spawn("timer", move || {
        while protocol.phase() != Phase::Halted {
            std::thread::sleep(protocol.tick().max(TICK_MIN));
        }
    })
}
