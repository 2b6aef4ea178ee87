//! Shifts and rotates, SHLD and SHRD.

use iced_x86::{Mnemonic, OpKind};

use super::pick::{addressed, sized, sized_word};
use crate::alu::{Arith, Rcl, Rcr, Rol, Ror, Sar, Shift, Shl, Shr, flags_with};
use crate::chain::{Link, chained};
use crate::cpu::{Cpu, reg};
use crate::decode::Decoding;
use crate::ea::Address;
use crate::op::Op;
use crate::segments::Access;
use crate::stop::Stop;
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => pick::<Shl>(d),
        Mnemonic::Shr => pick::<Shr>(d),
        Mnemonic::Sar => pick::<Sar>(d),
        Mnemonic::Rol => pick::<Rol>(d),
        Mnemonic::Ror => pick::<Ror>(d),
        Mnemonic::Rcl => pick::<Rcl>(d),
        Mnemonic::Rcr => pick::<Rcr>(d),
        Mnemonic::Shld => double::<true>(d),
        Mnemonic::Shrd => double::<false>(d),
        _ => return None,
    })
}

/// `imm`: the count, or `src`: CL, chosen by the handler.
fn pick<S: Shift>(d: &mut Decoding) -> Link {
    let width = d.width(0);
    let by_cl = d.ins.op_kind(1) == OpKind::Register;
    if !by_cl {
        let mask = if width == 8 { 63 } else { 31 };
        d.op.imm = d.immediate(1) & mask;
    }
    if d.is_register(0) {
        d.op.dst = d.reg(0);
        return match by_cl {
            true => sized!(width, T => chained(r_cl::<T, S>)),
            false => sized!(width, T => chained(r_i::<T, S>)),
        };
    }
    match by_cl {
        true => sized!(width, T => addressed!(d, A => chained(m_cl::<T, A, S>))),
        false => sized!(width, T => addressed!(d, A => chained(m_i::<T, A, S>))),
    }
}

/// CL masked to the operand's 5 or 6 bits.
#[inline(always)]
fn count_cl<T: Int>(cpu: &Cpu) -> u32 {
    let mask = if T::BITS == 64 { 63 } else { 31 };
    cpu.gpr[usize::from(reg::RCX)] as u32 & mask
}

fn r_cl<T: Arith, S: Shift>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let count = count_cl::<T>(cpu);
    register::<T, S>(cpu, op, count);
    Ok(())
}

fn r_i<T: Arith, S: Shift>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    register::<T, S>(cpu, op, op.imm as u32 & 63);
    Ok(())
}

#[inline(always)]
fn register<T: Arith, S: Shift>(cpu: &mut Cpu, op: &Op, count: u32) {
    let mut v = T::get(&cpu.gpr, op.dst);
    if count != 0 {
        v = S::run(v, count, &mut cpu.status);
    }
    // Also for a count of 0: 32 bits clear the upper half.
    T::set(&mut cpu.gpr, op.dst, v);
}

fn m_cl<T: Arith, A: Address, S: Shift>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let count = count_cl::<T>(cpu);
    memory::<T, A, S>(cpu, op, count)
}

fn m_i<T: Arith, A: Address, S: Shift>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    memory::<T, A, S>(cpu, op, op.imm as u32 & 63)
}

#[inline(always)]
fn memory<T: Arith, A: Address, S: Shift>(cpu: &mut Cpu, op: &Op, count: u32) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    let v = cpu.load_rmw::<T>(linear)?;
    if count == 0 {
        return cpu.store(linear, v);
    }
    let mut status = cpu.status;
    let v = S::run(v, count, &mut status);
    cpu.store(linear, v)?;
    cpu.status = status;
    Ok(())
}

/// SHLD (`LEFT`) and SHRD. `extra`: the count is in CL.
fn double<const LEFT: bool>(d: &mut Decoding) -> Link {
    let width = d.width(0);
    d.op.src = d.reg(1);
    if d.ins.op_kind(2) == OpKind::Register {
        d.op.extra = 1;
    } else {
        d.op.imm = d.immediate(2) & if width == 8 { 63 } else { 31 };
    }
    if d.is_register(0) {
        d.op.dst = d.reg(0);
        return sized_word!(width, T => chained(double_r::<T, LEFT>));
    }
    sized_word!(width, T => addressed!(d, A => chained(double_m::<T, A, LEFT>)))
}

fn double_count<T: Int>(cpu: &Cpu, op: &Op) -> u32 {
    if op.extra == 1 {
        count_cl::<T>(cpu)
    } else {
        op.imm as u32
    }
}

fn double_r<T: Arith, const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let count = double_count::<T>(cpu, op);
    let mut v = T::get(&cpu.gpr, op.dst);
    if count != 0 {
        let filler = T::get(&cpu.gpr, op.src);
        v = double_shift::<T, LEFT>(v, filler, count, &mut cpu.status);
    }
    T::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}

fn double_m<T: Arith, A: Address, const LEFT: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    let v = cpu.load_rmw::<T>(linear)?;
    let count = double_count::<T>(cpu, op);
    if count == 0 {
        return cpu.store(linear, v);
    }
    let filler = T::get(&cpu.gpr, op.src);
    let mut status = cpu.status;
    let v = double_shift::<T, LEFT>(v, filler, count, &mut status);
    cpu.store(linear, v)?;
    cpu.status = status;
    Ok(())
}

/// `count` is not 0. Counts above 16 of a 16-bit operand (undefined) go on with the destination's
/// own bits. OF (defined for a count of 1): the sign has changed. AF clear.
fn double_shift<T: Arith, const LEFT: bool>(v: T, filler: T, count: u32, status: &mut u64) -> T {
    let bits = T::BITS;
    let (a, b) = (u128::from(v.to_u64()), u128::from(filler.to_u64()));
    let (wide, total) = if bits == 16 {
        (a << 32 | b << 16 | a, 48)
    } else if LEFT {
        (a << bits | b, 2 * bits)
    } else {
        (b << bits | a, 2 * bits)
    };
    let (result, carry) = if LEFT {
        (wide >> (total - bits - count), total - count)
    } else {
        (wide >> count, count - 1)
    };
    let result = T::from_u64(result as u64);
    let sign_changed = (result.to_u64() ^ v.to_u64()) & T::SIGN != 0;
    *status = flags_with(result, wide >> carry & 1 != 0, sign_changed);
    result
}
