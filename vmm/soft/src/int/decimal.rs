//! AAA, AAS, DAA, DAS, AAM, AAD and BOUND: legacy modes only.
//!
//! Undefined flags: AAA and AAS give SF, ZF and PF of AL and clear OF; DAA and DAS clear OF; AAM and
//! AAD clear CF, OF and AF.

use iced_x86::Mnemonic;

use super::pick::sized_word;
use crate::alu::Arith;
use crate::chain::{Link, chained};
use crate::cpu::{Cpu, reg};
use crate::decode::Decoding;
use crate::flags::{AF, CF};
use crate::op::Op;
use crate::segments::Access;
use crate::stop::{Stop, vector};
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Aaa => chained(ascii_adjust::<false>),
        Mnemonic::Aas => chained(ascii_adjust::<true>),
        Mnemonic::Daa => chained(decimal_adjust::<false>),
        Mnemonic::Das => chained(decimal_adjust::<true>),
        Mnemonic::Aam => {
            d.op.imm = d.immediate(0) & 0xff;
            chained(aam)
        }
        Mnemonic::Aad => {
            d.op.imm = d.immediate(0) & 0xff;
            chained(aad)
        }
        Mnemonic::Bound => {
            d.op.dst = d.reg(0);
            sized_word!(d.width(0), T => chained(bound::<T>))
        }
        _ => return None,
    })
}

fn ascii_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let mut ax = u16::get(&cpu.gpr, reg::RAX);
    let adjust = ax & 15 > 9 || cpu.status & AF != 0;
    if adjust {
        ax = if SUBTRACT {
            ax.wrapping_sub(6).wrapping_sub(0x100)
        } else {
            ax.wrapping_add(0x106)
        };
    }
    ax &= 0xff0f;
    cpu.status = (ax as u8).logic_flags() | if adjust { AF | CF } else { 0 };
    u16::set(&mut cpu.gpr, reg::RAX, ax);
    Ok(())
}

fn decimal_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let old = u8::get(&cpu.gpr, reg::RAX);
    let carry = cpu.status & CF != 0;
    let low = old & 15 > 9 || cpu.status & AF != 0;
    let high = old > 0x99 || carry;
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let al = if SUBTRACT {
        old.wrapping_sub(by)
    } else {
        old.wrapping_add(by)
    };
    // DAS: the borrow of its first step shows too.
    let borrow = SUBTRACT && low && old < 6;
    let mut flags = al.logic_flags();
    if low {
        flags |= AF;
    }
    if high || borrow {
        flags |= CF;
    }
    cpu.status = flags;
    u8::set(&mut cpu.gpr, reg::RAX, al);
    Ok(())
}

fn aam(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let base = op.imm as u8;
    if base == 0 {
        return Err(cpu.raise(vector::DE, None));
    }
    let al = u8::get(&cpu.gpr, reg::RAX);
    let (high, low) = (al / base, al % base);
    u16::set(
        &mut cpu.gpr,
        reg::RAX,
        u16::from(high) << 8 | u16::from(low),
    );
    cpu.status = low.logic_flags();
    Ok(())
}

fn aad(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let ax = u16::get(&cpu.gpr, reg::RAX);
    let al = ((ax >> 8).wrapping_mul(op.imm as u16).wrapping_add(ax)) as u8;
    u16::set(&mut cpu.gpr, reg::RAX, u16::from(al));
    cpu.status = al.logic_flags();
    Ok(())
}

fn bound<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = T::BYTES as u64;
    let linear = cpu.operand(op, 2 * size, Access::Read)?;
    let v = T::get(&cpu.gpr, op.dst).to_i64();
    let low = cpu.load::<T>(linear)?.to_i64();
    let above = linear.wrapping_add(size) & 0xffff_ffff;
    // The upper bound is not read if the lower one is broken.
    if v < low || v > cpu.load::<T>(above)?.to_i64() {
        return Err(cpu.raise(vector::BR, None));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
