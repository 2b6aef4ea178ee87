//! State and cache instructions: FXSAVE, LDMXCSR, EMMS, fences, prefetches, masked and
//! non-temporal moves.

use iced_x86::{Code, Mnemonic};

use crate::cpu::{CodeMode, Cpu, reg};
use crate::decode::Decoding;
use crate::fpstate::{FpState, MXCSR_MASK};
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::sse::{CR0_EM, CR0_TS, nothing};
use crate::stop::{Stop, vector};

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Fxsave => fxsave::<false>,
        Mnemonic::Fxsave64 => fxsave::<true>,
        Mnemonic::Fxrstor => fxrstor::<false>,
        Mnemonic::Fxrstor64 => fxrstor::<true>,
        Mnemonic::Ldmxcsr => ldmxcsr,
        Mnemonic::Stmxcsr => stmxcsr,
        Mnemonic::Emms => emms,
        Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => nothing,
        Mnemonic::Clflush => clflush,
        Mnemonic::Movnti => {
            d.op.src = d.reg(1);
            match d.ins.code() {
                Code::Movnti_m64_r64 => movnti::<true>,
                _ => movnti::<false>,
            }
        }
        Mnemonic::Maskmovdqu => masked(d, maskmovdqu),
        Mnemonic::Maskmovq => masked(d, maskmovq),
        Mnemonic::Prefetch
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1 => nothing,
        _ => return None,
    })
}

/// Size of the FXSAVE area that is written; the rest is reserved or the software's.
const AREA: u64 = FpState::USED as u64;

/// #NM unless x87 and SSE state may be touched.
fn check_state(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.cr0 & (CR0_EM | CR0_TS) != 0 {
        return Err(cpu.raise(vector::NM, None));
    }
    Ok(())
}

/// FXSAVE; `WIDE`: FXSAVE64. The 32-bit form has room for 32 bits of FIP and FDP; FCS and FDS are
/// written as 0 (CPUID.7.EBX[13]).
fn fxsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    check_state(cpu)?;
    let linear = cpu.operand(op, FpState::SIZE as u64, Access::Write)?;
    cpu.check_aligned(linear)?;
    cpu.prepare_store(linear, FpState::SIZE as u64)?;
    let mut image = cpu.fp.to_image();
    if !WIDE {
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    let used = if cpu.code_mode == CodeMode::Bits64 {
        AREA
    } else {
        288 // XMM0 to XMM7
    };
    cpu.store_bytes(linear, &image[..used as usize])
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    check_state(cpu)?;
    let linear = cpu.operand(op, FpState::SIZE as u64, Access::Read)?;
    cpu.check_aligned(linear)?;
    let mut image = [0; FpState::SIZE];
    cpu.load_bytes(linear, &mut image)?;
    if !WIDE {
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    let Some(mut state) = FpState::from_image(&image) else {
        return Err(cpu.raise_gp(0));
    };
    (state.fip, state.fdp) = (canonical(state.fip), canonical(state.fdp));
    if cpu.code_mode != CodeMode::Bits64 {
        state.xmm[8..].copy_from_slice(&cpu.fp.xmm[8..]);
    }
    cpu.fp = state;
    Ok(())
}

/// With bits 48 to 63 like bit 47 (SDM vol. 2, FXRSTOR).
fn canonical(linear: u64) -> u64 {
    ((linear << 16) as i64 >> 16) as u64
}

fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let linear = cpu.operand(op, 4, Access::Read)?;
    let value = cpu.load::<u32>(linear)?;
    if value & !MXCSR_MASK != 0 {
        return Err(cpu.raise_gp(0));
    }
    cpu.fp.mxcsr = value;
    Ok(())
}

fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let linear = cpu.operand(op, 4, Access::Write)?;
    cpu.store(linear, cpu.fp.mxcsr)
}

fn emms(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.check_mmx()?;
    cpu.fp.rotate_to_top(0);
    cpu.fp.ftw = 0;
    Ok(())
}

/// Caches are invisible; but the address is checked as a load of a byte is.
fn clflush(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = cpu.operand(op, 1, Access::Read)?;
    cpu.load::<u8>(linear).map(drop)
}

fn movnti<const WIDE: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let value = cpu.gpr[usize::from(op.src & 31)];
    if WIDE {
        let linear = cpu.operand(op, 8, Access::Write)?;
        cpu.store(linear, value)
    } else {
        let linear = cpu.operand(op, 4, Access::Write)?;
        cpu.store(linear, value as u32)
    }
}

/// MASKMOVDQU and MASKMOVQ store to DS:RDI without naming it.
fn masked(d: &mut Decoding, handler: Handler) -> Handler {
    d.op.dst = d.ins.op_register(1).number() as u8;
    d.op.src = d.ins.op_register(2).number() as u8;
    d.op.base = reg::RDI;
    d.op.seg = crate::decode::memory_segment(d.ins, d.mode);
    handler
}

fn maskmovdqu(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let data = cpu.fp.xmm[usize::from(op.dst & 15)].to_le_bytes();
    let mask = cpu.fp.xmm[usize::from(op.src & 15)].to_le_bytes();
    store_masked(cpu, op, &data, &mask)
}

fn maskmovq(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_mmx()?;
    // The registers' places after the switch to MMX, which must wait until the stores are done.
    let shift = 8 - cpu.fp.top();
    let slot = |r: u8| (usize::from(r) + shift as usize) & 7;
    let data = cpu.fp.st[slot(op.dst)].to_le_bytes();
    let mask = cpu.fp.st[slot(op.src)].to_le_bytes();
    store_masked(cpu, op, &data[..8], &mask[..8])?;
    cpu.fp.enter_mmx();
    Ok(())
}

/// Stores the bytes whose mask byte has its top bit set. Faults as a store of all of them.
fn store_masked(cpu: &mut Cpu, op: &Op, data: &[u8], mask: &[u8]) -> Result<(), Stop> {
    let len = data.len() as u64;
    let linear = cpu.operand(op, len, Access::Write)?;
    cpu.check_alignment_of(linear, 8)?;
    cpu.prepare_store(linear, len)?;
    for i in (0..data.len()).filter(|&i| mask[i] & 0x80 != 0) {
        cpu.store(linear.wrapping_add(i as u64), data[i])?;
    }
    Ok(())
}
