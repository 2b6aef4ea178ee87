//! x87 control instructions: control and status word, environment, whole state.

use iced_x86::{Code, Mnemonic};

use crate::cpu::{Cpu, reg};
use crate::decode::Decoding;
use crate::fpstate::{FSW_B, FSW_ES, FSW_SF, FpState, X87_EXCEPTIONS};
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::stop::Stop;

/// CR0.PE.
const CR0_PE: u64 = 1;
/// Bytes of the ten-byte registers in FNSAVE's area.
const REGISTERS: usize = 80;

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Wait => fwait,
        Mnemonic::Fninit => fninit,
        Mnemonic::Fnclex => fnclex,
        Mnemonic::Fldcw => fldcw,
        Mnemonic::Fnstcw => fnstcw,
        Mnemonic::Fnstsw if d.ins.code() == Code::Fnstsw_AX => fnstsw_ax,
        Mnemonic::Fnstsw => fnstsw_memory,
        Mnemonic::Fnstenv if d.op.operand_size() == 2 => fnstenv::<2>,
        Mnemonic::Fnstenv => fnstenv::<4>,
        Mnemonic::Fldenv if d.op.operand_size() == 2 => fldenv::<2>,
        Mnemonic::Fldenv => fldenv::<4>,
        Mnemonic::Fnsave if d.op.operand_size() == 2 => fnsave::<2>,
        Mnemonic::Fnsave => fnsave::<4>,
        Mnemonic::Frstor if d.op.operand_size() == 2 => frstor::<2>,
        Mnemonic::Frstor => frstor::<4>,
        // No-operations on everything since the 387.
        Mnemonic::Fneni | Mnemonic::Fndisi | Mnemonic::Fnsetpm | Mnemonic::Frstpm => no_wait,
        _ => return None,
    })
}

fn no_wait(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.check_x87()
}

fn fwait(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.check_wait()
}

fn fninit(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.check_x87()?;
    cpu.fp.init();
    Ok(())
}

fn fnclex(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.check_x87()?;
    cpu.fp.fsw &= !(X87_EXCEPTIONS | FSW_SF | FSW_ES | FSW_B);
    Ok(())
}

fn fldcw(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_x87_waiting()?;
    let linear = cpu.operand(op, 2, Access::Read)?;
    let value = cpu.load::<u16>(linear)?;
    set_control(&mut cpu.fp, value);
    Ok(())
}

/// Reserved bits read as zero, but for bit 6, which reads as one.
fn set_control(fp: &mut FpState, value: u16) {
    fp.fcw = value & 0x1f7f | 0x40;
    fp.update_summary();
}

fn fnstcw(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_x87()?;
    let linear = cpu.operand(op, 2, Access::Write)?;
    cpu.store(linear, cpu.fp.fcw)
}

fn fnstsw_memory(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_x87()?;
    let linear = cpu.operand(op, 2, Access::Write)?;
    cpu.store(linear, cpu.fp.fsw)
}

fn fnstsw_ax(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.check_x87()?;
    let rax = &mut cpu.gpr[usize::from(reg::RAX)];
    *rax = *rax & !0xffff | u64::from(cpu.fp.fsw);
    Ok(())
}

/// Tag of each physical register, two bits each: 0 valid, 1 zero, 2 special, 3 empty.
fn full_tags(fp: &FpState) -> u16 {
    (0..8u32).fold(0, |tags, physical| {
        let tag = if fp.ftw >> physical & 1 == 0 {
            3
        } else {
            let value = fp.st[((physical + 8 - fp.top()) & 7) as usize];
            let exponent = (value >> 64) as u16 & 0x7fff;
            let significand = value as u64;
            match (exponent, significand) {
                (0, 0) => 1,
                (0 | 0x7fff, _) => 2,
                (_, s) if s >> 63 == 0 => 2,
                _ => 0,
            }
        };
        tags | tag << (2 * physical)
    })
}

fn abridged_tags(tags: u16) -> u8 {
    (0..8).fold(0, |bits, n| bits | u8::from(tags >> (2 * n) & 3 != 3) << n)
}

/// Size of the environment in bytes, by operand size.
const fn environment_size(size: usize) -> usize {
    7 * size
}

/// The environment as FNSTENV stores it, in its 16- or 32-bit form, of protected or real mode (SDM
/// vol. 1, figures 8-9 to 8-12). FCS and FDS are 0.
fn environment(cpu: &Cpu, size: usize) -> [u8; 28] {
    let fp = &cpu.fp;
    let real = cpu.cr0 & CR0_PE == 0;
    let (fip, fdp) = (fp.fip as u32, fp.fdp as u32);
    let fop = u32::from(fp.fop);
    let head = [fp.fcw, fp.fsw, full_tags(fp)].map(u32::from);
    let tail = match (size, real) {
        (2, false) => [fip, 0, fdp, 0],
        (2, true) => [fip, fip >> 4 & 0xf000 | fop, fdp, fdp >> 4 & 0xf000],
        (_, false) => [fip, fop << 16, fdp, 0xffff_0000],
        (_, true) => [
            fip & 0xffff | 0xffff_0000,
            (fip >> 16) << 12 | fop,
            fdp & 0xffff | 0xffff_0000,
            (fdp >> 16) << 12,
        ],
    };
    let mut out = [0; 28];
    let words = head.map(|w| w | 0xffff_0000).into_iter().chain(tail);
    for (slot, word) in out.chunks_exact_mut(size).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes()[..size]);
    }
    out
}

fn set_environment(cpu: &mut Cpu, bytes: &[u8], size: usize) {
    let word = |i: usize| {
        let mut w = [0; 4];
        w[..size].copy_from_slice(&bytes[i * size..(i + 1) * size]);
        u32::from_le_bytes(w)
    };
    let real = cpu.cr0 & CR0_PE == 0;
    let (fip, fdp, fop) = match (size, real) {
        (2, false) => (word(3), word(5), 0),
        (2, true) => (
            word(3) | (word(4) & 0xf000) << 4,
            word(5) | (word(6) & 0xf000) << 4,
            word(4),
        ),
        (_, false) => (word(3), word(5), word(4) >> 16),
        (_, true) => (
            word(3) & 0xffff | (word(4) >> 12) << 16,
            word(5) & 0xffff | (word(6) >> 12) << 16,
            word(4),
        ),
    };
    let fp = &mut cpu.fp;
    // The registers keep their physical places.
    fp.rotate_to_top(word(1) >> 11 & 7);
    fp.fsw = word(1) as u16;
    fp.ftw = abridged_tags(word(2) as u16);
    fp.fip = u64::from(fip);
    fp.fdp = u64::from(fdp);
    fp.fop = (fop & 0x7ff) as u16;
    set_control(fp, word(0) as u16);
}

fn fnstenv<const SIZE: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_x87()?;
    let len = environment_size(SIZE);
    let linear = cpu.operand(op, len as u64, Access::Write)?;
    cpu.check_alignment_of(linear, SIZE as u64)?;
    let bytes = environment(cpu, SIZE);
    cpu.store_bytes(linear, &bytes[..len])?;
    cpu.fp.fcw |= X87_EXCEPTIONS;
    cpu.fp.update_summary();
    Ok(())
}

fn fldenv<const SIZE: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_x87_waiting()?;
    let len = environment_size(SIZE);
    let linear = cpu.operand(op, len as u64, Access::Read)?;
    cpu.check_alignment_of(linear, SIZE as u64)?;
    let mut bytes = [0; 28];
    cpu.load_bytes(linear, &mut bytes[..len])?;
    set_environment(cpu, &bytes, SIZE);
    Ok(())
}

fn fnsave<const SIZE: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_x87()?;
    let len = environment_size(SIZE);
    let linear = cpu.operand(op, (len + REGISTERS) as u64, Access::Write)?;
    cpu.check_alignment_of(linear, SIZE as u64)?;
    let mut bytes = [0; 28 + REGISTERS];
    bytes[..len].copy_from_slice(&environment(cpu, SIZE)[..len]);
    for (i, st) in cpu.fp.st.iter().enumerate() {
        let at = len + 10 * i;
        bytes[at..at + 10].copy_from_slice(&st.to_le_bytes()[..10]);
    }
    cpu.store_bytes(linear, &bytes[..len + REGISTERS])?;
    cpu.fp.init();
    Ok(())
}

fn frstor<const SIZE: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_x87_waiting()?;
    let len = environment_size(SIZE);
    let linear = cpu.operand(op, (len + REGISTERS) as u64, Access::Read)?;
    cpu.check_alignment_of(linear, SIZE as u64)?;
    let mut bytes = [0; 28 + REGISTERS];
    cpu.load_bytes(linear, &mut bytes[..len + REGISTERS])?;
    set_environment(cpu, &bytes[..len], SIZE);
    for (i, st) in cpu.fp.st.iter_mut().enumerate() {
        let at = len + 10 * i;
        let mut value = [0; 16];
        value[..10].copy_from_slice(&bytes[at..at + 10]);
        *st = u128::from_le_bytes(value);
    }
    Ok(())
}
