//! MUL, IMUL, DIV, IDIV.
//!
//! Undefined flags: after a multiplication SF, ZF and PF are those of the low half and AF is clear;
//! a division leaves them all.

use iced_x86::{Mnemonic, OpKind};

use super::pick::{addressed, sized, sized_word};
use crate::alu::{Arith, flags_with};
use crate::chain::{Link, chained};
use crate::cpu::{Cpu, reg};
use crate::decode::Decoding;
use crate::ea::Address;
use crate::op::Op;
use crate::segments::Access;
use crate::stop::{Stop, vector};
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    Some(match (d.ins.mnemonic(), d.ins.op_count()) {
        (Mnemonic::Mul, _) => wide::<Mul>(d),
        (Mnemonic::Imul, 1) => wide::<Imul>(d),
        (Mnemonic::Imul, _) => imul(d),
        (Mnemonic::Div, _) => wide::<Div>(d),
        (Mnemonic::Idiv, _) => wide::<Idiv>(d),
        _ => return None,
    })
}

/// An operation of the accumulator pair with one operand.
trait Wide: 'static {
    fn run<T: Arith>(cpu: &mut Cpu, b: T) -> Result<(), Stop>;
}

fn wide<O: Wide>(d: &mut Decoding) -> Link {
    let width = d.width(0);
    if d.is_register(0) {
        d.op.src = d.reg(0);
        return sized!(width, T => chained(wide_r::<T, O>));
    }
    sized!(width, T => addressed!(d, A => chained(wide_m::<T, A, O>)))
}

fn wide_r<T: Arith, O: Wide>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let b = T::get(&cpu.gpr, op.src);
    O::run(cpu, b)
}

fn wide_m<T: Arith, A: Address, O: Wide>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let b = cpu.load::<T>(linear)?;
    O::run(cpu, b)
}

/// The accumulator pair: AH:AL, DX:AX, EDX:EAX, RDX:RAX.
fn pair<T: Int>(cpu: &Cpu) -> u128 {
    if T::BITS == 8 {
        return u128::from(u16::get(&cpu.gpr, reg::RAX));
    }
    let (low, high) = (T::get(&cpu.gpr, reg::RAX), T::get(&cpu.gpr, reg::RDX));
    u128::from(high.to_u64()) << T::BITS | u128::from(low.to_u64())
}

/// Sets the pair, high half apart.
fn set_pair<T: Int>(cpu: &mut Cpu, low: u64, high: u64) {
    if T::BITS == 8 {
        u16::set(&mut cpu.gpr, reg::RAX, (low & 0xff | high << 8) as u16);
        return;
    }
    T::set(&mut cpu.gpr, reg::RAX, T::from_u64(low));
    T::set(&mut cpu.gpr, reg::RDX, T::from_u64(high));
}

struct Mul;
impl Wide for Mul {
    fn run<T: Arith>(cpu: &mut Cpu, b: T) -> Result<(), Stop> {
        let a = T::get(&cpu.gpr, reg::RAX);
        let product = u128::from(a.to_u64()) * u128::from(b.to_u64());
        let high = (product >> T::BITS) as u64;
        set_pair::<T>(cpu, product as u64, high);
        cpu.status = flags_with(T::from_u64(product as u64), high != 0, high != 0);
        Ok(())
    }
}

struct Imul;
impl Wide for Imul {
    fn run<T: Arith>(cpu: &mut Cpu, b: T) -> Result<(), Stop> {
        let a = T::get(&cpu.gpr, reg::RAX);
        let (product, low, lost) = signed_product(a, b);
        set_pair::<T>(cpu, product as u64, (product >> T::BITS) as u64);
        cpu.status = flags_with(low, lost, lost);
        Ok(())
    }
}

/// The whole product, its low half, and whether that is not all of it.
fn signed_product<T: Int>(a: T, b: T) -> (i128, T, bool) {
    let product = i128::from(a.to_i64()) * i128::from(b.to_i64());
    let low = T::from_u64(product as u64);
    (product, low, i128::from(low.to_i64()) != product)
}

struct Div;
impl Wide for Div {
    fn run<T: Arith>(cpu: &mut Cpu, b: T) -> Result<(), Stop> {
        if b.to_u64() == 0 {
            return Err(cpu.raise(vector::DE, None));
        }
        let dividend = pair::<T>(cpu);
        let divisor = u128::from(b.to_u64());
        // A 128-bit division is slow and hardly ever needed.
        let (quotient, rest) = match u64::try_from(dividend) {
            Ok(small) => (
                u128::from(small / b.to_u64()),
                u128::from(small % b.to_u64()),
            ),
            Err(_) => (dividend / divisor, dividend % divisor),
        };
        if quotient >> T::BITS != 0 {
            return Err(cpu.raise(vector::DE, None));
        }
        set_pair::<T>(cpu, quotient as u64, rest as u64);
        Ok(())
    }
}

struct Idiv;
impl Wide for Idiv {
    fn run<T: Arith>(cpu: &mut Cpu, b: T) -> Result<(), Stop> {
        let spare = 128 - 2 * T::BITS;
        let dividend = (pair::<T>(cpu) << spare) as i128 >> spare;
        let divisor = i128::from(b.to_i64());
        let (quotient, rest) = match (i64::try_from(dividend), b.to_i64()) {
            (_, 0) => return Err(cpu.raise(vector::DE, None)),
            (Ok(small), by) if by != -1 => (i128::from(small / by), i128::from(small % by)),
            _ => match (dividend.checked_div(divisor), dividend.checked_rem(divisor)) {
                (Some(quotient), Some(rest)) => (quotient, rest),
                _ => return Err(cpu.raise(vector::DE, None)),
            },
        };
        let limit = 1i128 << (T::BITS - 1);
        if quotient < -limit || quotient >= limit {
            return Err(cpu.raise(vector::DE, None));
        }
        set_pair::<T>(cpu, quotient as u64, rest as u64);
        Ok(())
    }
}

/// IMUL with two or three operands.
fn imul(d: &mut Decoding) -> Link {
    let width = d.width(0);
    d.op.dst = d.reg(0);
    let three = d.ins.op_count() == 3 && d.ins.op_kind(2) != OpKind::Register;
    if three {
        d.op.imm = d.immediate(2);
    }
    if d.is_register(1) {
        d.op.src = d.reg(1);
        return match three {
            true => sized_word!(width, T => chained(imul_r_i::<T>)),
            false => sized_word!(width, T => chained(imul_r::<T>)),
        };
    }
    match three {
        true => sized_word!(width, T => addressed!(d, A => chained(imul_m_i::<T, A>))),
        false => sized_word!(width, T => addressed!(d, A => chained(imul_m::<T, A>))),
    }
}

#[inline(always)]
fn multiply<T: Arith>(cpu: &mut Cpu, op: &Op, a: T, b: T) {
    let (_, low, lost) = signed_product(a, b);
    cpu.status = flags_with(low, lost, lost);
    T::set(&mut cpu.gpr, op.dst, low);
}

fn imul_r<T: Arith>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (a, b) = (T::get(&cpu.gpr, op.dst), T::get(&cpu.gpr, op.src));
    multiply(cpu, op, a, b);
    Ok(())
}

fn imul_r_i<T: Arith>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let a = T::get(&cpu.gpr, op.src);
    multiply(cpu, op, a, T::from_u64(op.imm));
    Ok(())
}

fn imul_m<T: Arith, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let b = cpu.load::<T>(linear)?;
    let a = T::get(&cpu.gpr, op.dst);
    multiply(cpu, op, a, b);
    Ok(())
}

fn imul_m_i<T: Arith, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let a = cpu.load::<T>(linear)?;
    multiply(cpu, op, a, T::from_u64(op.imm));
    Ok(())
}
