//! What AMD's processors do otherwise than Intel's, where the architecture leaves it open or the two
//! makers define it differently. The engines do as Intel's, on every host.
//!
//! A case that differs on a host by AMD runs again up to the first instruction of this list, with
//! what that one may do and no more. What comes behind it in the case is left to cases without one.

mod list;

use std::collections::HashSet;

use engine::CpuState;
use iced_x86::{
    CodeSize, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register,
};

use crate::case::{CODE, CODE_SIZE, End, GS_BASE, Input, Mode, Output};
use crate::guest::Guest;

// Vectors.
const BR: u32 = 5;
const UD: u32 = 6;
const SS: u32 = 12;
const GP: u32 = 13;
const PF: u32 = 14;
const AC: u32 = 17;

/// Error code of a page fault: a fetch.
const FETCH: u64 = 1 << 4;

/// What one instruction may do otherwise.
#[derive(Clone, Copy)]
pub struct Freedom {
    /// Anything.
    pub anything: bool,
    /// Raise one of these and do nothing else, where the engine raises nothing.
    pub raises: &'static [u32],
    /// Leave something else in what this makes equal.
    leaves: fn(&Site, native: &mut Output, guest: &Output),
}

impl Freedom {
    const NONE: Self = Self {
        anything: false,
        raises: &[],
        leaves: |_, _, _| (),
    };
}

/// An instruction of a case that may do something else than on the engine.
pub struct Site {
    pub ins: Instruction,
    pub freedom: Freedom,
    /// The engine's position before it.
    pub position: u64,
    /// It has raised an exception on the engine.
    pub last: bool,
    /// What is behind it has not run before.
    pub first: bool,
    /// It runs again later.
    pub again: bool,
    /// General registers before it.
    gpr: [u64; 16],
}

/// All of a case, in the order in which they first run.
pub fn sites(guest: &mut Guest, mode: Mode, input: &Input) -> anyhow::Result<Vec<Site>> {
    let mut code = [0xcc; CODE_SIZE + 16];
    let (at, bytes) = input.placed_code();
    code[at..at + bytes.len()].copy_from_slice(bytes);
    let mut sites: Vec<Site> = Vec::new();
    let mut seen = HashSet::new();
    guest.walk(input, |before, after| {
        let place = before.rip.wrapping_sub(CODE) as usize;
        seen.insert(before.rip);
        if place >= CODE_SIZE {
            return;
        }
        let Some(mut site) = Site::new(mode, &code[place..], before, after) else {
            return;
        };
        if let Some(first) = sites.iter_mut().find(|s| s.ins.ip() == before.rip) {
            first.again = true;
            return;
        }
        site.last = after.is_none();
        site.first = !seen.contains(&site.ins.next_ip());
        sites.push(site);
    })?;
    Ok(sites)
}

impl Site {
    /// If this is such an instruction: its bytes, and the engine's state before and after it. No
    /// state after it: it has raised an exception, and the case ends.
    pub fn new(
        mode: Mode,
        bytes: &[u8],
        before: &CpuState,
        after: Option<&CpuState>,
    ) -> Option<Self> {
        let decoded = |options| Decoder::with_ip(mode.bits(), bytes, before.rip, options).decode();
        let ins = decoded(DecoderOptions::NONE);
        let branches = ins.flow_control() != FlowControl::Next;
        let freedom = if branches && decoded(DecoderOptions::AMD).code() != ins.code() {
            // With an operand size prefix in 64-bit code, near branches go to 64-bit addresses on
            // Intel's (SDM vol. 1, 7.2.4), to 16-bit ones on AMD's (APM vol. 3, CALL, JMP, RET).
            Some(Freedom {
                anything: true,
                ..Freedom::NONE
            })
        } else {
            list::find(&ins, bytes, before, after)
        };
        Some(Self {
            ins,
            // For exceptions there is `may_raise`.
            freedom: freedom.or(after.is_none().then_some(Freedom::NONE))?,
            position: before.count,
            last: false,
            first: false,
            again: false,
            gpr: before.gpr,
        })
    }

    fn operand(&self, kind: impl Fn(OpKind) -> bool) -> Option<u32> {
        (0..self.ins.op_count()).find(|&i| kind(self.ins.op_kind(i)))
    }

    /// Linear address of an operand with these general registers.
    fn linear(&self, operand: u32, gpr: &[u64; 16]) -> Option<u64> {
        self.ins
            .virtual_address(operand, 0, |register, _, _| match register {
                Register::ES | Register::CS | Register::SS | Register::DS => Some(0),
                Register::GS => Some(GS_BASE),
                r if r.is_gpr() => {
                    let value = gpr[r.full_register().number()];
                    Some(value & (u64::MAX >> (64 - 8 * r.size())))
                }
                _ => None,
            })
    }

    /// Linear address of the memory operand.
    fn address(&self) -> Option<u64> {
        self.linear(self.operand(|k| k == OpKind::Memory)?, &self.gpr)
    }

    /// Linear addresses where it may access memory, those of operands that it names and of others.
    fn places(&self, gpr: &[u64; 16]) -> Vec<u64> {
        const RSP: usize = 4;
        const RBP: usize = 5;
        let operands = 0..self.ins.op_count();
        let mut places: Vec<u64> = operands.filter_map(|i| self.linear(i, gpr)).collect();
        if self.ins.is_stack_instruction() {
            let below = [0, 2, 4].map(|n| [gpr[RSP].wrapping_sub(n), gpr[RBP].wrapping_sub(n)]);
            places.extend(below.as_flattened());
        }
        places
    }

    /// Makes equal what may differ, where the case ends at the instruction or behind it.
    pub fn settle(&self, native: &mut Output, guest: &Output) {
        (self.freedom.leaves)(self, native, guest);
        if self.raised(native) && self.raised(guest) && self.may_raise(native, guest) {
            take_exception(native, guest);
        }
    }

    /// Whether a side's case ends by an exception of this instruction.
    pub fn raised(&self, output: &Output) -> bool {
        output.end == End::Exception && output.rip == self.ins.ip()
    }

    /// Whether memory goes past the end of a flat segment of 32-bit code.
    fn is_past_limit(&self, first: u64, size: u64) -> bool {
        self.ins.code_size() == CodeSize::Code32 && (first & 0xffff_ffff) + size > 1 << 32
    }

    /// Whether the host's exception may take the place of the engine's.
    fn may_raise(&self, native: &Output, guest: &Output) -> bool {
        let size = self.ins.memory_size().size() as u64;
        match (native.vector, guest.vector) {
            // Past 4 GiB: whether that is beyond a limit of 4 GiB is left to the implementation (SDM
            // vol. 3, Limit Checking). On the engine the first byte has no page, or a bad alignment.
            (SS | GP, PF) => native.error == 0 && self.is_past_limit(guest.cr2, size.max(4)),
            (SS | GP, AC) => {
                let mut first = self.places(&native.gpr).into_iter();
                native.error == 0 && first.any(|at| self.is_past_limit(at, size.max(4)))
            }
            // Bytes of UD1 behind the op code lie on a page that is not there, and AMD's do not fetch
            // them. Both are found while decoding (SDM vol. 3, table 6-2).
            (UD, PF) => self.ins.mnemonic() == Mnemonic::Ud1 && guest.error & FETCH != 0,
            // BOUND below the lower bound, and no page for the upper one: AMD's read both first.
            (PF, BR) => self
                .address()
                .is_some_and(|a| (a..a + size).contains(&native.cr2)),
            _ => false,
        }
    }
}

/// Takes the engine's exception for the host's.
pub fn take_exception(native: &mut Output, guest: &Output) {
    (native.vector, native.error, native.cr2) = (guest.vector, guest.error, guest.cr2);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether an instruction is free, with a value in CL and nothing raised.
    fn is_free(bytes: &[u8], cl: u64) -> bool {
        let mut state = CpuState::at_reset();
        state.gpr[1] = cl;
        Site::new(Mode::Bits64, bytes, &state, Some(&state)).is_some()
    }

    #[test]
    fn as_little_as_possible_is_free() {
        let ret = [0xc3];
        let short_ret = [0x66, 0xc3];
        assert!(!is_free(&ret, 0) && is_free(&short_ret, 0));
        let shld = [0x66, 0x0f, 0xa5, 0xd8]; // SHLD AX, BX, CL
        assert!(!is_free(&shld, 16) && is_free(&shld, 17) && !is_free(&shld, 33));
        let rcl = [0xd2, 0xd0]; // RCL AL, CL
        assert!(!is_free(&rcl, 8) && is_free(&rcl, 9) && is_free(&rcl, 18));
        let lods = [0x67, 0xf3, 0xac]; // REP LODSB with ESI
        assert!(!is_free(&lods, 1) && is_free(&lods, 1 << 32));
        let pause = [0xf3, 0x90];
        let with_r8 = [0xf3, 0x41, 0x90];
        assert!(!is_free(&pause, 0) && is_free(&with_r8, 0));
    }
}
