//! MOV, MOVZX, MOVSX, LEA, XCHG, BSWAP, MOVBE, XLAT and the sign extensions of the accumulator.

use iced_x86::{Code, Mnemonic, OpKind};

use super::pick::{addressed, sized, sized_word};
use crate::chain::{Link, chained};
use crate::cpu::{Cpu, reg};
use crate::decode::Decoding;
use crate::ea::{Address, truncate};
use crate::op::Op;
use crate::segments::Access;
use crate::stop::Stop;
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Mov => return mov(d),
        Mnemonic::Movzx => extend(d, false),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend(d, true),
        Mnemonic::Lea => {
            d.op.dst = d.reg(0);
            lea(d)
        }
        Mnemonic::Xchg => xchg(d),
        Mnemonic::Bswap => {
            d.op.dst = d.reg(0);
            sized_word!(d.width(0), T => chained(bswap::<T>))
        }
        Mnemonic::Movbe => movbe(d),
        Mnemonic::Xlatb => chained(xlat),
        Mnemonic::Cbw => chained(cbw),
        Mnemonic::Cwde => chained(cwde),
        Mnemonic::Cdqe => chained(cdqe),
        Mnemonic::Cwd => chained(cwd::<u16>),
        Mnemonic::Cdq => chained(cwd::<u32>),
        Mnemonic::Cqo => chained(cwd::<u64>),
        _ => return None,
    })
}

fn mov(d: &mut Decoding) -> Option<Link> {
    match d.ins.code() {
        // Segment, control and debug registers are system's.
        Code::Mov_rm16_Sreg
        | Code::Mov_r32m16_Sreg
        | Code::Mov_r64m16_Sreg
        | Code::Mov_Sreg_rm16
        | Code::Mov_Sreg_r32m16
        | Code::Mov_Sreg_r64m16
        | Code::Mov_r32_cr
        | Code::Mov_r64_cr
        | Code::Mov_r32_dr
        | Code::Mov_r64_dr
        | Code::Mov_cr_r32
        | Code::Mov_cr_r64
        | Code::Mov_dr_r32
        | Code::Mov_dr_r64
        | Code::Mov_r32_tr
        | Code::Mov_tr_r32 => return None,
        Code::Mov_AL_moffs8
        | Code::Mov_AX_moffs16
        | Code::Mov_EAX_moffs32
        | Code::Mov_RAX_moffs64 => {
            d.op.imm = d.ins.memory_displacement64();
            return Some(sized!(d.width(0), T => chained(mov_a_offset::<T>)));
        }
        Code::Mov_moffs8_AL
        | Code::Mov_moffs16_AX
        | Code::Mov_moffs32_EAX
        | Code::Mov_moffs64_RAX => {
            d.op.imm = d.ins.memory_displacement64();
            return Some(sized!(d.width(0), T => chained(mov_offset_a::<T>)));
        }
        _ => {}
    }
    let width = d.width(0);
    Some(match (d.is_register(0), d.ins.op_kind(1)) {
        (true, OpKind::Register) => {
            d.op.dst = d.reg(0);
            d.op.src = d.reg(1);
            sized!(width, T => chained(r_r::<T>))
        }
        (true, OpKind::Memory) => {
            d.op.dst = d.reg(0);
            sized!(width, T => addressed!(d, A => chained(r_m::<T, A>)))
        }
        (true, _) => {
            d.op.dst = d.reg(0);
            d.op.imm = d.immediate(1);
            sized!(width, T => chained(r_i::<T>))
        }
        (false, OpKind::Register) => {
            d.op.src = d.reg(1);
            sized!(width, T => addressed!(d, A => chained(m_r::<T, A>)))
        }
        (false, _) => {
            d.op.imm = d.immediate(1);
            sized!(width, T => addressed!(d, A => chained(m_i::<T, A>)))
        }
    })
}

fn r_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = T::get(&cpu.gpr, op.src);
    T::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}

fn r_i<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    T::set(&mut cpu.gpr, op.dst, T::from_u64(op.imm));
    Ok(())
}

fn r_m<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let v = cpu.load::<T>(linear)?;
    T::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}

fn m_r<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    cpu.store(linear, T::get(&cpu.gpr, op.src))
}

fn m_i<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    cpu.store(linear, T::from_u64(op.imm))
}

fn mov_a_offset<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = cpu.linear(op.seg, op.imm, T::BYTES as u64, Access::Read)?;
    let v = cpu.load::<T>(linear)?;
    T::set(&mut cpu.gpr, reg::RAX, v);
    Ok(())
}

fn mov_offset_a<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = cpu.linear(op.seg, op.imm, T::BYTES as u64, Access::Write)?;
    cpu.store(linear, T::get(&cpu.gpr, reg::RAX))
}

fn extend(d: &mut Decoding, signed: bool) -> Link {
    let (to, from) = (d.width(0), d.width(1));
    d.op.dst = d.reg(0);
    if d.is_register(1) {
        d.op.src = d.reg(1);
        return sized_word!(to, T => match from {
            1 => if signed { chained(sx_r::<T, u8>) } else { chained(zx_r::<T, u8>) },
            2 => if signed { chained(sx_r::<T, u16>) } else { chained(zx_r::<T, u16>) },
            _ => if signed { chained(sx_r::<T, u32>) } else { chained(zx_r::<T, u32>) },
        });
    }
    sized_word!(to, T => addressed!(d, A => match from {
        1 => if signed { chained(sx_m::<T, u8, A>) } else { chained(zx_m::<T, u8, A>) },
        2 => if signed { chained(sx_m::<T, u16, A>) } else { chained(zx_m::<T, u16, A>) },
        _ => if signed { chained(sx_m::<T, u32, A>) } else { chained(zx_m::<T, u32, A>) },
    }))
}

fn zx_r<T: Int, F: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = F::get(&cpu.gpr, op.src).to_u64();
    T::set(&mut cpu.gpr, op.dst, T::from_u64(v));
    Ok(())
}

fn sx_r<T: Int, F: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = F::get(&cpu.gpr, op.src).to_i64() as u64;
    T::set(&mut cpu.gpr, op.dst, T::from_u64(v));
    Ok(())
}

fn zx_m<T: Int, F: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, F::BYTES as u64, Access::Read)?;
    let v = cpu.load::<F>(linear)?.to_u64();
    T::set(&mut cpu.gpr, op.dst, T::from_u64(v));
    Ok(())
}

fn sx_m<T: Int, F: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, F::BYTES as u64, Access::Read)?;
    let v = cpu.load::<F>(linear)?.to_i64() as u64;
    T::set(&mut cpu.gpr, op.dst, T::from_u64(v));
    Ok(())
}

fn lea(d: &mut Decoding) -> Link {
    let plain = d.op.address_size() == 8;
    let rip = d.op.base == crate::op::BASE_RIP;
    match d.width(0) {
        8 if plain && !rip => chained(lea_64),
        4 if plain && !rip => chained(lea_32),
        width => sized_word!(width, T => chained(lea_any::<T>)),
    }
}

fn lea_64(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = lea_sum(cpu, op);
    u64::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}

fn lea_32(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = lea_sum(cpu, op);
    u32::set(&mut cpu.gpr, op.dst, v as u32);
    Ok(())
}

#[inline(always)]
fn lea_sum(cpu: &Cpu, op: &Op) -> u64 {
    cpu.gpr[usize::from(op.base & 31)]
        .wrapping_add(cpu.gpr[usize::from(op.idx & 31)] << (op.scale & 3))
        .wrapping_add(op.disp as i64 as u64)
}

fn lea_any<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = cpu.offset(op);
    T::set(&mut cpu.gpr, op.dst, T::from_u64(v));
    Ok(())
}

fn xchg(d: &mut Decoding) -> Link {
    let width = d.width(0);
    if d.is_register(0) && d.is_register(1) {
        d.op.dst = d.reg(0);
        d.op.src = d.reg(1);
        return sized!(width, T => chained(xchg_r::<T>));
    }
    d.op.src = if d.is_register(0) { d.reg(0) } else { d.reg(1) };
    sized!(width, T => addressed!(d, A => chained(xchg_m::<T, A>)))
}

fn xchg_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (a, b) = (T::get(&cpu.gpr, op.dst), T::get(&cpu.gpr, op.src));
    T::set(&mut cpu.gpr, op.dst, b);
    T::set(&mut cpu.gpr, op.src, a);
    Ok(())
}

fn xchg_m<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    let old = cpu.load_rmw::<T>(linear)?;
    cpu.store(linear, T::get(&cpu.gpr, op.src))?;
    T::set(&mut cpu.gpr, op.src, old);
    Ok(())
}

/// The bytes of a value reversed.
fn reversed<T: Int>(v: T) -> T {
    T::from_u64(v.to_u64().swap_bytes() >> (64 - T::BITS))
}

/// Of 16 bits (undefined) the result is 0, as on Intel's processors.
fn bswap<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = T::get(&cpu.gpr, op.dst);
    let v = if T::BYTES == 2 { T::ZERO } else { reversed(v) };
    T::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}

fn movbe(d: &mut Decoding) -> Link {
    let width = d.width(0);
    if d.is_register(0) {
        d.op.dst = d.reg(0);
        return sized_word!(width, T => addressed!(d, A => chained(movbe_r::<T, A>)));
    }
    d.op.src = d.reg(1);
    sized_word!(width, T => addressed!(d, A => chained(movbe_m::<T, A>)))
}

fn movbe_r<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let v = cpu.load::<T>(linear)?;
    T::set(&mut cpu.gpr, op.dst, reversed(v));
    Ok(())
}

fn movbe_m<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    cpu.store(linear, reversed(T::get(&cpu.gpr, op.src)))
}

fn xlat(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let al = cpu.gpr[usize::from(reg::RAX)] & 0xff;
    let offset = cpu.gpr[usize::from(reg::RBX)].wrapping_add(al);
    let offset = truncate(offset, op.address_size());
    let linear = cpu.linear(op.seg, offset, 1, Access::Read)?;
    let v = cpu.load::<u8>(linear)?;
    u8::set(&mut cpu.gpr, reg::RAX, v);
    Ok(())
}

fn cbw(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let v = u8::get(&cpu.gpr, reg::RAX).to_i64() as u16;
    u16::set(&mut cpu.gpr, reg::RAX, v);
    Ok(())
}

fn cwde(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let v = u16::get(&cpu.gpr, reg::RAX).to_i64() as u32;
    u32::set(&mut cpu.gpr, reg::RAX, v);
    Ok(())
}

fn cdqe(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let v = u32::get(&cpu.gpr, reg::RAX).to_i64() as u64;
    u64::set(&mut cpu.gpr, reg::RAX, v);
    Ok(())
}

fn cwd<T: Int>(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let sign = T::get(&cpu.gpr, reg::RAX).to_i64() >> 63;
    T::set(&mut cpu.gpr, reg::RDX, T::from_u64(sign as u64));
    Ok(())
}
