//! Moves between XMM registers, general registers and memory: the hot part of SSE, done here
//! rather than by a stub.

use iced_x86::Code;

use crate::cpu::Cpu;
use crate::decode::Decoding;
use crate::ea::Address;
use crate::int::pick::addressed;
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::stop::Stop;
use crate::width::Int;

/// The handler of a move; `op.dst` and `op.src` are register numbers.
pub fn decode(d: &mut Decoding) -> Option<Handler> {
    let handler = match d.ins.code() {
        Code::Movaps_xmm_xmmm128
        | Code::Movapd_xmm_xmmm128
        | Code::Movdqa_xmm_xmmm128
        | Code::Movntdqa_xmm_m128 => whole::<true>(d),
        Code::Movups_xmm_xmmm128
        | Code::Movupd_xmm_xmmm128
        | Code::Movdqu_xmm_xmmm128
        | Code::Lddqu_xmm_m128 => whole::<false>(d),
        Code::Movaps_xmmm128_xmm
        | Code::Movapd_xmmm128_xmm
        | Code::Movdqa_xmmm128_xmm
        | Code::Movntdq_m128_xmm
        | Code::Movntps_m128_xmm
        | Code::Movntpd_m128_xmm => whole_store::<true>(d),
        Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm => {
            whole_store::<false>(d)
        }
        Code::Movss_xmm_xmmm32 if d.is_register(1) => merge::<u32>,
        Code::Movsd_xmm_xmmm64 if d.is_register(1) => merge::<u64>,
        Code::Movss_xmmm32_xmm if d.is_register(0) => merge::<u32>,
        Code::Movsd_xmmm64_xmm if d.is_register(0) => merge::<u64>,
        Code::Movss_xmm_xmmm32 => addressed!(d, A => load_low::<u32, A>),
        Code::Movsd_xmm_xmmm64 => addressed!(d, A => load_low::<u64, A>),
        Code::Movss_xmmm32_xmm => addressed!(d, A => store_low::<u32, A>),
        Code::Movsd_xmmm64_xmm => addressed!(d, A => store_low::<u64, A>),
        Code::Movq_xmm_xmmm64 if d.is_register(1) => movq,
        Code::Movq_xmmm64_xmm if d.is_register(0) => movq,
        Code::Movq_xmm_xmmm64 => addressed!(d, A => load_low::<u64, A>),
        Code::Movq_xmmm64_xmm => addressed!(d, A => store_low::<u64, A>),
        Code::Movd_xmm_rm32 if d.is_register(1) => from_gpr::<u32>,
        Code::Movq_xmm_rm64 if d.is_register(1) => from_gpr::<u64>,
        Code::Movd_xmm_rm32 => addressed!(d, A => load_low::<u32, A>),
        Code::Movq_xmm_rm64 => addressed!(d, A => load_low::<u64, A>),
        Code::Movd_rm32_xmm if d.is_register(0) => to_gpr::<u32>,
        Code::Movq_rm64_xmm if d.is_register(0) => to_gpr::<u64>,
        Code::Movd_rm32_xmm => addressed!(d, A => store_low::<u32, A>),
        Code::Movq_rm64_xmm => addressed!(d, A => store_low::<u64, A>),
        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => addressed!(d, A => load_half::<false, A>),
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 => addressed!(d, A => load_half::<true, A>),
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => addressed!(d, A => store_low::<u64, A>),
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => addressed!(d, A => store_high::<A>),
        _ => return None,
    };
    for i in 0..2 {
        if d.is_register(i) {
            let number = d.reg(i);
            *(if i == 0 { &mut d.op.dst } else { &mut d.op.src }) = number;
        }
    }
    Some(handler)
}

fn whole<const ALIGNED: bool>(d: &Decoding) -> Handler {
    if d.is_register(1) {
        return copy;
    }
    addressed!(d, A => load::<ALIGNED, A>)
}

fn whole_store<const ALIGNED: bool>(d: &Decoding) -> Handler {
    if d.is_register(0) {
        return copy;
    }
    addressed!(d, A => store::<ALIGNED, A>)
}

#[inline(always)]
fn xmm(cpu: &mut Cpu, n: u8) -> &mut u128 {
    &mut cpu.fp.xmm[usize::from(n & 15)]
}

fn copy(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    *xmm(cpu, op.dst) = *xmm(cpu, op.src);
    Ok(())
}

fn load<const ALIGNED: bool, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, 16, Access::Read)?;
    if ALIGNED {
        cpu.check_aligned(linear)?;
    }
    *xmm(cpu, op.dst) = cpu.load::<u128>(linear)?;
    Ok(())
}

fn store<const ALIGNED: bool, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, 16, Access::Write)?;
    if ALIGNED {
        cpu.check_aligned(linear)?;
    }
    let value = *xmm(cpu, op.src);
    cpu.store(linear, value)
}

/// The low element of one register into another.
fn merge<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let mask = (1u128 << T::BITS) - 1;
    let low = *xmm(cpu, op.src) & mask;
    let d = xmm(cpu, op.dst);
    *d = *d & !mask | low;
    Ok(())
}

fn load_low<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    *xmm(cpu, op.dst) = u128::from(cpu.load::<T>(linear)?.to_u64());
    Ok(())
}

fn store_low<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Write)?;
    let value = T::from_u64(*xmm(cpu, op.src) as u64);
    cpu.store(linear, value)
}

fn movq(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    *xmm(cpu, op.dst) = u128::from(*xmm(cpu, op.src) as u64);
    Ok(())
}

fn from_gpr<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    *xmm(cpu, op.dst) = u128::from(T::get(&cpu.gpr, op.src).to_u64());
    Ok(())
}

fn to_gpr<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let value = *xmm(cpu, op.src) as u64;
    T::set(&mut cpu.gpr, op.dst, T::from_u64(value));
    Ok(())
}

fn load_half<const HIGH: bool, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, 8, Access::Read)?;
    let value = u128::from(cpu.load::<u64>(linear)?);
    let d = xmm(cpu, op.dst);
    *d = if HIGH {
        *d as u64 as u128 | value << 64
    } else {
        *d >> 64 << 64 | value
    };
    Ok(())
}

fn store_high<A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, 8, Access::Write)?;
    let value = (*xmm(cpu, op.src) >> 64) as u64;
    cpu.store(linear, value)
}
