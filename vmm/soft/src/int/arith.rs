//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST; INC, DEC, NEG, NOT.

use iced_x86::Mnemonic;

use super::pick::{addressed, sized};
use crate::alu::Arith;
use crate::alu::{Adc, Add, And, Binary, Cmp, Dec, Inc, Neg, Not, Or, Sbb, Sub, Test, Unary, Xor};
use crate::chain::{Link, chained};
use crate::cpu::Cpu;
use crate::decode::Decoding;
use crate::ea::Address;
use crate::op::Op;
use crate::segments::Access;
use crate::stop::Stop;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Add => binary::<Add>(d),
        Mnemonic::Or => binary::<Or>(d),
        Mnemonic::Adc => binary::<Adc>(d),
        Mnemonic::Sbb => binary::<Sbb>(d),
        Mnemonic::And => binary::<And>(d),
        Mnemonic::Sub => binary::<Sub>(d),
        Mnemonic::Xor => binary::<Xor>(d),
        Mnemonic::Cmp => binary::<Cmp>(d),
        Mnemonic::Test => binary::<Test>(d),
        Mnemonic::Inc => unary::<Inc>(d),
        Mnemonic::Dec => unary::<Dec>(d),
        Mnemonic::Neg => unary::<Neg>(d),
        Mnemonic::Not => unary::<Not>(d),
        _ => return None,
    })
}

fn binary<O: Binary>(d: &mut Decoding) -> Link {
    let width = d.width(0);
    match (d.is_register(0), d.is_register(1), d.is_memory(1)) {
        (true, true, _) => {
            d.op.dst = d.reg(0);
            d.op.src = d.reg(1);
            sized!(width, T => chained(r_r::<T, O>))
        }
        (true, false, true) => {
            d.op.dst = d.reg(0);
            sized!(width, T => addressed!(d, A => chained(r_m::<T, A, O>)))
        }
        (true, false, false) => {
            d.op.dst = d.reg(0);
            d.op.imm = d.immediate(1);
            sized!(width, T => chained(r_i::<T, O>))
        }
        (false, true, _) => {
            d.op.src = d.reg(1);
            sized!(width, T => addressed!(d, A => chained(m_r::<T, A, O>)))
        }
        (false, false, _) => {
            d.op.imm = d.immediate(1);
            sized!(width, T => addressed!(d, A => chained(m_i::<T, A, O>)))
        }
    }
}

fn r_r<T: Arith, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let b = T::get(&cpu.gpr, op.src);
    with_register::<T, O>(cpu, op, b);
    Ok(())
}

fn r_i<T: Arith, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    with_register::<T, O>(cpu, op, T::from_u64(op.imm));
    Ok(())
}

fn r_m<T: Arith, A: Address, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let b = cpu.load::<T>(linear)?;
    with_register::<T, O>(cpu, op, b);
    Ok(())
}

#[inline(always)]
fn with_register<T: Arith, O: Binary>(cpu: &mut Cpu, op: &Op, b: T) {
    let a = T::get(&cpu.gpr, op.dst);
    let result = O::run(a, b, &mut cpu.status);
    if O::WRITES {
        T::set(&mut cpu.gpr, op.dst, result);
    }
}

fn m_r<T: Arith, A: Address, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let b = T::get(&cpu.gpr, op.src);
    with_memory::<T, A, O>(cpu, op, b)
}

fn m_i<T: Arith, A: Address, O: Binary>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    with_memory::<T, A, O>(cpu, op, T::from_u64(op.imm))
}

#[inline(always)]
fn with_memory<T: Arith, A: Address, O: Binary>(cpu: &mut Cpu, op: &Op, b: T) -> Result<(), Stop> {
    if !O::WRITES {
        let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
        let a = cpu.load::<T>(linear)?;
        O::run(a, b, &mut cpu.status);
        return Ok(());
    }
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    let a = cpu.load_rmw::<T>(linear)?;
    let mut status = cpu.status;
    let result = O::run(a, b, &mut status);
    cpu.store(linear, result)?;
    cpu.status = status;
    Ok(())
}

fn unary<O: Unary>(d: &mut Decoding) -> Link {
    let width = d.width(0);
    if d.is_register(0) {
        d.op.dst = d.reg(0);
        return sized!(width, T => chained(unary_r::<T, O>));
    }
    sized!(width, T => addressed!(d, A => chained(unary_m::<T, A, O>)))
}

fn unary_r<T: Arith, O: Unary>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let result = O::run(T::get(&cpu.gpr, op.dst), &mut cpu.status);
    T::set(&mut cpu.gpr, op.dst, result);
    Ok(())
}

fn unary_m<T: Arith, A: Address, O: Unary>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    let a = cpu.load_rmw::<T>(linear)?;
    let mut status = cpu.status;
    let result = O::run(a, &mut status);
    cpu.store(linear, result)?;
    cpu.status = status;
    Ok(())
}
