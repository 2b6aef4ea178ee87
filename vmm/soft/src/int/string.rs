//! MOVS, STOS, LODS, SCAS, CMPS and their REP forms. INS and OUTS are in `system`.
//!
//! Each iteration of a REP form retires by itself: registers, count and memory are exact after each,
//! so that the instruction can stop and go on at any of them. MOVS and STOS take whole stretches of
//! a page at once where nothing in them needs care.
#![allow(unsafe_code)]

use iced_x86::Mnemonic;

use super::pick::sized;
use crate::alu::Arith;
use crate::chain::{Link, chained, ending};
use crate::cpu::{CodeMode, Cpu, reg, seg};
use crate::decode::{Decoding, memory_segment, segment};
use crate::ea::truncate;
use crate::flags::{DF, ZF};
use crate::op::Op;
use crate::segments::Access;
use crate::stop::Stop;
use crate::width::Int;

/// `Op::src`: no prefix, REP or REPE, REPNE.
const PLAIN: u8 = 0;
const REPE: u8 = 1;
const REPNE: u8 = 2;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    // The mnemonics of MOVSD and CMPSD are those of SSE instructions too.
    if !d.ins.is_string_instruction() {
        return None;
    }
    use Mnemonic as M;
    let (size, compares, pick): (_, _, fn(u8, bool) -> Link) = match d.ins.mnemonic() {
        M::Movsb => (1, false, pick::<Movs>),
        M::Movsw => (2, false, pick::<Movs>),
        M::Movsd => (4, false, pick::<Movs>),
        M::Movsq => (8, false, pick::<Movs>),
        M::Stosb => (1, false, pick::<Stos>),
        M::Stosw => (2, false, pick::<Stos>),
        M::Stosd => (4, false, pick::<Stos>),
        M::Stosq => (8, false, pick::<Stos>),
        M::Lodsb => (1, false, pick::<Lods>),
        M::Lodsw => (2, false, pick::<Lods>),
        M::Lodsd => (4, false, pick::<Lods>),
        M::Lodsq => (8, false, pick::<Lods>),
        M::Scasb => (1, true, pick::<Scas>),
        M::Scasw => (2, true, pick::<Scas>),
        M::Scasd => (4, true, pick::<Scas>),
        M::Scasq => (8, true, pick::<Scas>),
        M::Cmpsb => (1, true, pick::<Cmps>),
        M::Cmpsw => (2, true, pick::<Cmps>),
        M::Cmpsd => (4, true, pick::<Cmps>),
        M::Cmpsq => (8, true, pick::<Cmps>),
        _ => return None,
    };
    d.op.seg = match d.ins.segment_prefix() {
        iced_x86::Register::None => seg::DS,
        _ if d.mode == CodeMode::Bits64 => memory_segment(d.ins, d.mode),
        r => segment(r),
    };
    d.op.src = if d.ins.has_repne_prefix() {
        // Without a comparison REPNE acts as REP.
        if compares { REPNE } else { REPE }
    } else if d.ins.has_rep_prefix() {
        REPE
    } else {
        PLAIN
    };
    // REP changes the count by itself, so it must come last.
    Some(pick(size, d.op.src != PLAIN))
}

fn pick<O: StringOp>(size: u8, repeated: bool) -> Link {
    match repeated {
        true => sized!(size, T => ending(repeat::<T, O>)),
        false => sized!(size, T => chained(single::<T, O>)),
    }
}

/// One of the string operations.
trait StringOp: 'static {
    /// It sets the flags, and REPE, REPNE look at ZF.
    const COMPARES: bool = false;

    /// Registers whose upper halves a REP form with 32-bit addresses clears even if it does nothing
    /// else.
    const CLEARED: &'static [u8] = &[reg::RCX];

    /// One iteration: memory, accumulator, flags, index registers. Nothing is changed on a stop.
    fn one<T: Arith>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop>;

    /// Up to `max` iterations at once; how many were done. 0: try one by one.
    fn many<T: Arith>(_cpu: &mut Cpu, _op: &Op, _max: u64) -> u64 {
        0
    }
}

fn single<T: Arith, O: StringOp>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    O::one::<T>(cpu, op)
}

fn repeat<T: Arith, O: StringOp>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if op.address_size() == 4 {
        for &r in O::CLEARED {
            cpu.gpr[usize::from(r)] &= 0xffff_ffff;
        }
    }
    let total = truncate(cpu.gpr[usize::from(reg::RCX)], op.address_size());
    if total == 0 {
        cpu.advance(op);
        return Ok(());
    }
    let room = if cpu.stepping {
        1
    } else {
        (cpu.until - cpu.count_before(op)).min(total)
    };
    let status = cpu.status;
    let mut done = 0;
    let mut ended = false;
    let mut result = Ok(());
    while done < room && !ended {
        let many = if cpu.stepping {
            0
        } else {
            O::many::<T>(cpu, op, room - done)
        };
        if many != 0 {
            done += many;
            continue;
        }
        result = O::one::<T>(cpu, op);
        if result.is_err() {
            break;
        }
        done += 1;
        ended = O::COMPARES && (cpu.status & ZF != 0) != (op.src == REPE);
    }
    set_low(cpu, reg::RCX, total - done, op.address_size());
    if O::COMPARES && !ended && done != total {
        // Flags are those of before until the last iteration (SDM vol. 2, REP).
        cpu.status = status;
    }
    if result.is_err() {
        // The iterations before it have retired.
        cpu.count += done;
        return result;
    }
    cpu.count += done - 1;
    if ended || done == total {
        cpu.advance(op);
    } else {
        cpu.rip = cpu.ip(op);
    }
    Ok(())
}

/// Writes an index or count register at the address size.
#[inline(always)]
fn set_low(cpu: &mut Cpu, register: u8, v: u64, size: u8) {
    match size {
        2 => u16::set(&mut cpu.gpr, register, v as u16),
        4 => u32::set(&mut cpu.gpr, register, v as u32),
        _ => u64::set(&mut cpu.gpr, register, v),
    }
}

/// Moves an index register by `count` elements in the direction of DF.
#[inline(always)]
fn advance_index<T: Int>(cpu: &mut Cpu, op: &Op, register: u8, count: u64) {
    let bytes = count.wrapping_mul(T::BYTES as u64);
    let old = cpu.gpr[usize::from(register)];
    let new = if cpu.control_flag(DF) {
        old.wrapping_sub(bytes)
    } else {
        old.wrapping_add(bytes)
    };
    set_low(cpu, register, new, op.address_size());
}

/// The linear address of the element at an index register, or of `count` of them upwards.
#[inline(always)]
fn element<T: Int>(
    cpu: &mut Cpu,
    op: &Op,
    segment: u8,
    register: u8,
    access: Access,
) -> Result<u64, Stop> {
    let offset = truncate(cpu.gpr[usize::from(register)], op.address_size());
    if cpu.code_mode == CodeMode::Bits64 && segment < seg::FS {
        return Ok(offset);
    }
    cpu.linear(segment, offset, T::BYTES as u64, access)
}

struct Movs;
impl StringOp for Movs {
    const CLEARED: &'static [u8] = &[reg::RCX, reg::RSI, reg::RDI];
    fn one<T: Arith>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        let from = element::<T>(cpu, op, op.seg, reg::RSI, Access::Read)?;
        let v = cpu.load::<T>(from)?;
        let to = element::<T>(cpu, op, seg::ES, reg::RDI, Access::Write)?;
        cpu.store(to, v)?;
        advance_index::<T>(cpu, op, reg::RSI, 1);
        advance_index::<T>(cpu, op, reg::RDI, 1);
        Ok(())
    }

    fn many<T: Arith>(cpu: &mut Cpu, op: &Op, max: u64) -> u64 {
        if !can_bulk(cpu, op, max) {
            return 0;
        }
        let from = match cpu.seg_base_64(op.seg) {
            0 => cpu.gpr[usize::from(reg::RSI)],
            base => cpu.gpr[usize::from(reg::RSI)].wrapping_add(base),
        };
        let to = cpu.gpr[usize::from(reg::RDI)];
        let size = T::BYTES as u64;
        let bytes = max.saturating_mul(size);
        let Some((source, n)) = cpu.bulk(from, bytes, false) else {
            return 0;
        };
        let Some((target, m)) = cpu.bulk(to, n, true) else {
            return 0;
        };
        let count = n.min(m) / size;
        let bytes = (count * size) as usize;
        let ahead = (target as usize).wrapping_sub(source as usize);
        if count == 0 || ahead < bytes {
            // The copy would read what it wrote: element by element it repeats a pattern.
            return 0;
        }
        // SAFETY: `bulk` vouches for both stretches. They may overlap, the target below the source:
        // copying upwards element by element gives the same as a move.
        unsafe { std::ptr::copy(source, target, bytes) };
        advance_index::<T>(cpu, op, reg::RSI, count);
        advance_index::<T>(cpu, op, reg::RDI, count);
        count
    }
}

/// Bulk work is for 64-bit addresses upwards, and worth it for a few elements.
fn can_bulk(cpu: &Cpu, op: &Op, max: u64) -> bool {
    max >= 4 && cpu.code_mode == CodeMode::Bits64 && op.address_size() == 8 && !cpu.control_flag(DF)
}

impl Cpu {
    /// The base of a segment in 64-bit mode.
    fn seg_base_64(&self, segment: u8) -> u64 {
        if segment < seg::FS {
            0
        } else {
            self.seg[usize::from(segment)].base
        }
    }
}

struct Stos;
impl StringOp for Stos {
    const CLEARED: &'static [u8] = &[reg::RCX, reg::RDI];

    fn one<T: Arith>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        let to = element::<T>(cpu, op, seg::ES, reg::RDI, Access::Write)?;
        cpu.store(to, T::get(&cpu.gpr, reg::RAX))?;
        advance_index::<T>(cpu, op, reg::RDI, 1);
        Ok(())
    }

    fn many<T: Arith>(cpu: &mut Cpu, op: &Op, max: u64) -> u64 {
        if !can_bulk(cpu, op, max) {
            return 0;
        }
        let to = cpu.gpr[usize::from(reg::RDI)];
        let size = T::BYTES as u64;
        let Some((target, n)) = cpu.bulk(to, max.saturating_mul(size), true) else {
            return 0;
        };
        let count = n / size;
        let v = T::get(&cpu.gpr, reg::RAX);
        for i in 0..count as usize {
            // SAFETY: `bulk` vouches for `n` bytes at `target`.
            unsafe { target.cast::<T>().add(i).write_unaligned(v) };
        }
        advance_index::<T>(cpu, op, reg::RDI, count);
        count
    }
}

struct Lods;
impl StringOp for Lods {
    fn one<T: Arith>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        let from = element::<T>(cpu, op, op.seg, reg::RSI, Access::Read)?;
        let v = cpu.load::<T>(from)?;
        T::set(&mut cpu.gpr, reg::RAX, v);
        advance_index::<T>(cpu, op, reg::RSI, 1);
        Ok(())
    }
}

struct Scas;
impl StringOp for Scas {
    const COMPARES: bool = true;

    fn one<T: Arith>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        let at = element::<T>(cpu, op, seg::ES, reg::RDI, Access::Read)?;
        let v = cpu.load::<T>(at)?;
        T::get(&cpu.gpr, reg::RAX).sub(v, &mut cpu.status);
        advance_index::<T>(cpu, op, reg::RDI, 1);
        Ok(())
    }
}

struct Cmps;
impl StringOp for Cmps {
    const COMPARES: bool = true;

    fn one<T: Arith>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
        // In this order: it shows when both fault.
        let second = element::<T>(cpu, op, seg::ES, reg::RDI, Access::Read)?;
        let b = cpu.load::<T>(second)?;
        let first = element::<T>(cpu, op, op.seg, reg::RSI, Access::Read)?;
        let a = cpu.load::<T>(first)?;
        a.sub(b, &mut cpu.status);
        advance_index::<T>(cpu, op, reg::RSI, 1);
        advance_index::<T>(cpu, op, reg::RDI, 1);
        Ok(())
    }
}
