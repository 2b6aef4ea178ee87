//! CMPXCHG, CMPXCHG8B, CMPXCHG16B, XADD. There is one vCPU: LOCK changes nothing but what is legal,
//! which the decoder checks.

use iced_x86::Mnemonic;

use super::pick::{addressed, sized};
use crate::alu::Arith;
use crate::chain::{Link, chained};
use crate::cpu::{Cpu, reg};
use crate::decode::Decoding;
use crate::ea::Address;
use crate::flags::ZF;
use crate::op::Op;
use crate::segments::Access;
use crate::stop::Stop;
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Cmpxchg => {
            let width = d.width(0);
            d.op.src = d.reg(1);
            if d.is_register(0) {
                d.op.dst = d.reg(0);
                return Some(sized!(width, T => chained(cmpxchg_r::<T>)));
            }
            sized!(width, T => addressed!(d, A => chained(cmpxchg_m::<T, A>)))
        }
        Mnemonic::Xadd => {
            let width = d.width(0);
            d.op.src = d.reg(1);
            if d.is_register(0) {
                d.op.dst = d.reg(0);
                return Some(sized!(width, T => chained(xadd_r::<T>)));
            }
            sized!(width, T => addressed!(d, A => chained(xadd_m::<T, A>)))
        }
        Mnemonic::Cmpxchg8b => addressed!(d, A => chained(cmpxchg8b::<A>)),
        Mnemonic::Cmpxchg16b => addressed!(d, A => chained(cmpxchg16b::<A>)),
        _ => return None,
    })
}

fn cmpxchg_r<T: Arith>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (accumulator, old) = (T::get(&cpu.gpr, reg::RAX), T::get(&cpu.gpr, op.dst));
    accumulator.sub(old, &mut cpu.status);
    if accumulator == old {
        let new = T::get(&cpu.gpr, op.src);
        T::set(&mut cpu.gpr, op.dst, new);
    } else {
        T::set(&mut cpu.gpr, reg::RAX, old);
    }
    Ok(())
}

/// Memory is written in any case, with its own value if the comparison fails.
fn cmpxchg_m<T: Arith, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    let old = cpu.load_rmw::<T>(linear)?;
    let accumulator = T::get(&cpu.gpr, reg::RAX);
    if accumulator == old {
        cpu.store(linear, T::get(&cpu.gpr, op.src))?;
    } else {
        cpu.store(linear, old)?;
        T::set(&mut cpu.gpr, reg::RAX, old);
    }
    accumulator.sub(old, &mut cpu.status);
    Ok(())
}

fn xadd_r<T: Arith>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (a, b) = (T::get(&cpu.gpr, op.dst), T::get(&cpu.gpr, op.src));
    let sum = a.add(b, &mut cpu.status);
    T::set(&mut cpu.gpr, op.src, a);
    T::set(&mut cpu.gpr, op.dst, sum);
    Ok(())
}

fn xadd_m<T: Arith, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    let a = cpu.load_rmw::<T>(linear)?;
    let b = T::get(&cpu.gpr, op.src);
    let mut status = cpu.status;
    let sum = a.add(b, &mut status);
    cpu.store(linear, sum)?;
    cpu.status = status;
    T::set(&mut cpu.gpr, op.src, a);
    Ok(())
}

fn cmpxchg8b<A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, 8, Access::Write)?;
    let old = cpu.load_rmw::<u64>(linear)?;
    let low_half = |cpu: &Cpu, r: u8| u64::from(u32::get(&cpu.gpr, r));
    let expected = low_half(cpu, reg::RDX) << 32 | low_half(cpu, reg::RAX);
    let equal = expected == old;
    if equal {
        let new = low_half(cpu, reg::RCX) << 32 | low_half(cpu, reg::RBX);
        cpu.store(linear, new)?;
    } else {
        cpu.store(linear, old)?;
        u32::set(&mut cpu.gpr, reg::RAX, old as u32);
        u32::set(&mut cpu.gpr, reg::RDX, (old >> 32) as u32);
    }
    cpu.status = cpu.status & !ZF | if equal { ZF } else { 0 };
    Ok(())
}

/// #GP(0) unless aligned to 16 bytes.
fn cmpxchg16b<A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, 16, Access::Write)?;
    if linear & 15 != 0 {
        return Err(cpu.raise_gp(0));
    }
    let old = cpu.load_rmw::<u128>(linear)?;
    let whole = |cpu: &Cpu, r: u8| u128::from(u64::get(&cpu.gpr, r));
    let expected = whole(cpu, reg::RDX) << 64 | whole(cpu, reg::RAX);
    let equal = expected == old;
    if equal {
        let new = whole(cpu, reg::RCX) << 64 | whole(cpu, reg::RBX);
        cpu.store(linear, new)?;
    } else {
        cpu.store(linear, old)?;
        u64::set(&mut cpu.gpr, reg::RAX, old as u64);
        u64::set(&mut cpu.gpr, reg::RDX, (old >> 64) as u64);
    }
    cpu.status = cpu.status & !ZF | if equal { ZF } else { 0 };
    Ok(())
}
