//! The instructions that are free, and what they may do.

use std::ops::Range;

use engine::CpuState;
use iced_x86::{Code, CodeSize, Instruction, Mnemonic, OpKind};

use super::{AC, Freedom, GP, PF, SS, Site, UD, take_exception};
use crate::case::{DATA, End, Output, STACK};
use crate::sequence::STATUS;

// Places in `CpuState::gpr`.
const RCX: usize = 1;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;

const OF: u64 = 1 << 11;

const DB: u32 = 1;
/// What an access to memory may raise.
const ACCESS: &[u32] = &[SS, GP, PF, AC];

/// What the instruction may do, if it is one of these. No state after it: it has raised an exception.
pub fn find(
    ins: &Instruction,
    bytes: &[u8],
    before: &CpuState,
    after: Option<&CpuState>,
) -> Option<Freedom> {
    use Mnemonic as M;
    let anything = Freedom {
        anything: true,
        ..Freedom::NONE
    };
    let raises = |vectors| Freedom {
        raises: vectors,
        ..Freedom::NONE
    };
    let leaves = |leaves| Freedom {
        leaves,
        ..Freedom::NONE
    };
    let memory = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory);
    Some(match (ins.mnemonic(), ins.code()) {
        // 16 bytes that need no alignment: whether alignment checks see them is the implementation's
        // affair (SDM vol. 2, MOVUPS).
        _ if memory && ins.memory_size().size() == 16 && checks_alignment(before) => raises(&[AC]),
        (M::Fxsave | M::Fxsave64, _) => leaves(image),
        (M::Ldmxcsr | M::Fxrstor | M::Fxrstor64, _) if after.is_none() => leaves(misaligned_mask),
        (M::Fnstenv | M::Fnsave, _) => leaves(environment),
        // A result that is not stored because of an unmasked exception: AMD's look at the memory
        // operand first (the SDM does not say which comes first; vol. 1, 8.5).
        (M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp, _)
            if memory && raises_x87(before, after?) =>
        {
            raises(ACCESS)
        }
        // The source is 32 bits wide (APM vol. 3, MOVSXD) or 16 (SDM vol. 2, MOVSXD).
        (_, Code::Movsxd_r16_rm16) if memory => raises(ACCESS),
        // PREFETCH of a register is #UD (APM vol. 3, PREFETCH) or a reserved NOP (SDM vol. 2,
        // table A-3).
        (
            _,
            Code::Reservednop_rm16_r16_0F0D
            | Code::Reservednop_rm32_r32_0F0D
            | Code::Reservednop_rm64_r64_0F0D,
        ) => raises(&[UD]),
        (
            _,
            Code::Pushd_ES
            | Code::Pushd_CS
            | Code::Pushd_SS
            | Code::Pushd_DS
            | Code::Pushd_FS
            | Code::Pushd_GS,
        ) => Freedom {
            // If the upper half is written.
            raises: ACCESS,
            ..leaves(pushed_selector)
        },
        (M::Int1, _) => leaves(trap),
        // REX.B before 90h: XCHG with R8, REP or not (APM vol. 3, NOP), or PAUSE, with which Intel's
        // ignore it.
        (M::Pause, _) if bytes[ins.len() - 2] & 0xf1 == 0x41 => anything,
        // Destination and flags are undefined (SDM vol. 2, SHLD and SHRD).
        (M::Shld | M::Shrd, _)
            if ins.op1_register().is_gpr16() && shift_count(ins, 2, before) > 16 =>
        {
            anything
        }
        // All the way round: iced takes OF for untouched, the SDM calls it undefined for every count
        // but 1 (vol. 2, RCL).
        (M::Rcl | M::Rcr, _) if goes_round(ins, before) => leaves(overflow_flag),
        _ if ins.is_string_instruction() && (after.is_none() || clears_halves(ins, before)) => {
            leaves(string)
        }
        _ => return None,
    })
}

fn checks_alignment(before: &CpuState) -> bool {
    const AC_FLAG: u64 = 1 << 18;
    before.rflags & AC_FLAG != 0
}

fn raises_x87(before: &CpuState, after: &CpuState) -> bool {
    const ES: u8 = 1 << 7;
    let summary = |state: &CpuState| state.fxsave.get(2).is_some_and(|fsw| fsw & ES != 0);
    !summary(before) && summary(after)
}

/// The count of a shift of 8, 16 or 32 bits.
fn shift_count(ins: &Instruction, operand: u32, before: &CpuState) -> u64 {
    let count = match ins.op_kind(operand) {
        OpKind::Register => before.gpr[RCX],
        _ => ins.immediate(operand),
    };
    count & 31
}

fn goes_round(ins: &Instruction, before: &CpuState) -> bool {
    let size = match ins.op0_kind() {
        OpKind::Register => ins.op0_register().size(),
        _ => ins.memory_size().size(),
    };
    let count = shift_count(ins, 1, before);
    size < 4 && count != 0 && count.is_multiple_of(8 * size as u64 + 1)
}

/// A REP form with 32-bit addresses in 64-bit code that has nothing to do: see `string`.
fn clears_halves(ins: &Instruction, before: &CpuState) -> bool {
    has_short_registers(ins) && before.gpr[RCX] as u32 == 0
}

fn has_short_registers(ins: &Instruction) -> bool {
    ins.code_size() == CodeSize::Code64
        && (ins.has_rep_prefix() || ins.has_repne_prefix())
        && (0..ins.op_count())
            .any(|i| matches!(ins.op_kind(i), OpKind::MemorySegESI | OpKind::MemoryESEDI))
}

/// Makes memory at these linear addresses equal.
fn free(native: &mut Output, guest: &Output, range: Range<u64>) {
    for at in range {
        let data = at.wrapping_sub(DATA) as usize;
        let stack = at.wrapping_sub(STACK) as usize;
        if data < native.data.len() {
            native.data[data] = guest.data[data];
        } else if stack < native.stack.len() {
            native.stack[stack] = guest.stack[stack];
        }
    }
}

/// Bit 17 of MXCSR_MASK: AMD's have the misaligned exception mask (APM vol. 2, MXCSR; SDM vol. 1,
/// 11.6.6: the mask tells what a processor has). FOP, FIP and FDP: AMD's save them only while an
/// unmasked exception is pending (APM vol. 5, FXSAVE).
fn image(site: &Site, native: &mut Output, guest: &Output) {
    let Some(at) = site.address() else { return };
    free(native, guest, at + 30..at + 31);
    let pending = native.fx[2] & 1 << 7 != 0;
    if !pending {
        free(native, guest, at + 6..at + 24);
        return;
    }
    // As in `environment`.
    free(native, guest, at + 6..at + 8);
    free(native, guest, at + 16..at + 24);
    if site.ins.mnemonic() == Mnemonic::Fxsave {
        free(native, guest, at + 12..at + 14);
    }
}

/// MXCSR with bit 17 set: AMD's have it, see `image`. For the engine it is reserved (SDM vol. 2,
/// LDMXCSR: #GP).
fn misaligned_mask(site: &Site, native: &mut Output, guest: &Output) {
    const MM: u8 = 1 << 1;
    let behind = native.end == End::Exception && native.rip == site.ins.next_ip();
    if !(behind && native.fx[26] & MM != 0 && site.raised(guest) && guest.vector == GP) {
        return;
    }
    native.rip = guest.rip;
    take_exception(native, guest);
    if site.ins.mnemonic() == Mnemonic::Ldmxcsr {
        native.fx[24..28].copy_from_slice(&guest.fx[24..28]);
    } else {
        native.fx = guest.fx;
    }
}

/// The environment in protected mode: selectors, which newer processors by Intel have no more
/// (CPUID.7.EBX[13]), and FOP and FDP, which they set with an unmasked exception only
/// (CPUID.7.EBX[6]).
fn environment(site: &Site, native: &mut Output, guest: &Output) {
    if let Some(at) = site.address() {
        let short = matches!(
            site.ins.code(),
            Code::Fnstenv_m14byte | Code::Fnsave_m94byte
        );
        // Behind FIP.
        let pointers = if short { 8..14 } else { 16..26 };
        free(native, guest, at + pointers.start..at + pointers.end);
    }
}

/// The upper half of a selector's doubleword is 0 or left as it was (SDM vol. 2, PUSH).
fn pushed_selector(site: &Site, native: &mut Output, guest: &Output) {
    let top = site.gpr[RSP];
    free(native, guest, top.wrapping_sub(2)..top);
}

/// The #DB of INT1 is a trap (SDM vol. 3, table 6-1); below a hypervisor on AMD's, which intercepts
/// it, RIP may still be the instruction's own.
fn trap(site: &Site, native: &mut Output, guest: &Output) {
    if native.vector == DB && guest.vector == DB && site.raised(native) {
        native.rip = site.ins.next_ip();
    }
}

fn overflow_flag(_site: &Site, native: &mut Output, guest: &Output) {
    native.rflags = native.rflags & !OF | guest.rflags & OF;
}

/// What string instructions leave when they have not come to their end.
fn string(site: &Site, native: &mut Output, guest: &Output) {
    if has_short_registers(&site.ins) {
        // Without an iteration, Intel's clear the upper halves of registers, AMD's leave them.
        for r in [RCX, RSI, RDI] {
            let untouched = native.gpr[r] == site.gpr[r];
            if untouched && guest.gpr[r] == native.gpr[r] & 0xffff_ffff {
                native.gpr[r] = guest.gpr[r];
            }
        }
    }
    if !site.raised(native) || !site.raised(guest) {
        return;
    }
    use Mnemonic as M;
    let compares = matches!(
        site.ins.mnemonic(),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq
    );
    let scans = matches!(
        site.ins.mnemonic(),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq
    );
    if compares || scans {
        // Intel's restore the flags of before the first iteration (SDM vol. 2, REP), AMD's leave
        // those of the last one.
        native.rflags = native.rflags & !STATUS | guest.rflags & STATUS;
    }
    if compares {
        // Both operands fault: Intel's read the one at rDI first, AMD's the one at rSI.
        let first = site
            .operand(|k| {
                matches!(
                    k,
                    OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemorySegSI
                )
            })
            .and_then(|i| site.linear(i, &native.gpr));
        let size = site.ins.memory_size().size() as u64;
        let of_first = match native.vector {
            PF => first.is_some_and(|a| native.cr2.wrapping_sub(a) < size),
            vector => native.error == 0 && ACCESS.contains(&vector),
        };
        if of_first {
            take_exception(native, guest);
        }
    }
}
