//! Hot SSE instructions that have to do with general registers or flags: byte masks, scalar
//! comparisons and conversions. As in `packed`, ops are filled in as for a stub.
#![allow(unsafe_code)]

use std::arch::asm;

use iced_x86::Code;

use super::native;
use crate::cpu::Cpu;
use crate::decode::Decoding;
use crate::ea::Address;
use crate::fpstate::{MXCSR_DEFAULT, MXCSR_MASKS};
use crate::int::pick::addressed;
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::stop::Stop;
use crate::width::{Int, Width};

/// A comparison that sets flags; the source is `M`.
trait Compare: 'static {
    type M: Width + Into<u128>;
    fn run(a: &u128, b: &u128, mxcsr: &mut u32) -> u64;
}

/// A conversion of a general register of `M` into the low element.
trait FromInt: 'static {
    type M: Int;
    fn run(d: &mut u128, s: u64, mxcsr: &mut u32);
}

/// A conversion of the low element `M` into a general register.
trait ToInt: 'static {
    type M: Width + Into<u128>;
    fn run(s: &u128, mxcsr: &mut u32) -> u64;
}

macro_rules! compare {
    ($($name:ident = $text:literal, $m:ty);* $(;)?) => {$(
        struct $name;
        impl Compare for $name {
            type M = $m;
            #[inline(always)]
            fn run(a: &u128, b: &u128, mxcsr: &mut u32) -> u64 {
                let host = MXCSR_DEFAULT;
                let flags: u64;
                // SAFETY: reads 16 aligned bytes each; MXCSR is the host's own again at the end.
                unsafe {
                    asm!(
                        "movdqa {t}, [{a}]",
                        "ldmxcsr [{m}]",
                        concat!($text, " {t}, [{b}]"),
                        "stmxcsr [{m}]",
                        "ldmxcsr [{h}]",
                        "pushfq",
                        "pop {f}",
                        t = out(xmm_reg) _,
                        a = in(reg) a,
                        b = in(reg) b,
                        m = in(reg) mxcsr,
                        h = in(reg) &host,
                        f = lateout(reg) flags,
                    );
                }
                flags
            }
        }
    )*};
}

macro_rules! from_int {
    ($($name:ident = $text:literal, $m:ty);* $(;)?) => {$(
        struct $name;
        impl FromInt for $name {
            type M = $m;
            #[inline(always)]
            fn run(d: &mut u128, s: u64, mxcsr: &mut u32) {
                let host = MXCSR_DEFAULT;
                // SAFETY: reads and writes 16 aligned bytes; MXCSR is the host's own again.
                unsafe {
                    asm!(
                        "movdqa {t}, [{d}]",
                        "ldmxcsr [{m}]",
                        $text,
                        "stmxcsr [{m}]",
                        "ldmxcsr [{h}]",
                        "movdqa [{d}], {t}",
                        t = out(xmm_reg) _,
                        d = in(reg) d,
                        s = in(reg) s,
                        m = in(reg) mxcsr,
                        h = in(reg) &host,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    )*};
}

macro_rules! to_int {
    ($($name:ident = $text:literal, $m:ty);* $(;)?) => {$(
        struct $name;
        impl ToInt for $name {
            type M = $m;
            #[inline(always)]
            fn run(s: &u128, mxcsr: &mut u32) -> u64 {
                let host = MXCSR_DEFAULT;
                let out: u64;
                // SAFETY: reads at most 16 bytes; MXCSR is the host's own again at the end.
                unsafe {
                    asm!(
                        "ldmxcsr [{m}]",
                        $text,
                        "stmxcsr [{m}]",
                        "ldmxcsr [{h}]",
                        s = in(reg) s,
                        d = out(reg) out,
                        m = in(reg) mxcsr,
                        h = in(reg) &host,
                        options(nostack, preserves_flags)
                    );
                }
                out
            }
        }
    )*};
}

compare! {
    Ucomisd = "ucomisd", u64; Comisd = "comisd", u64;
    Ucomiss = "ucomiss", u32; Comiss = "comiss", u32;
}
from_int! {
    Sd32 = "cvtsi2sd {t}, {s:e}", u32; Sd64 = "cvtsi2sd {t}, {s:r}", u64;
    Ss32 = "cvtsi2ss {t}, {s:e}", u32; Ss64 = "cvtsi2ss {t}, {s:r}", u64;
}
to_int! {
    TruncateSd32 = "cvttsd2si {d:e}, qword ptr [{s}]", u64;
    TruncateSd64 = "cvttsd2si {d:r}, qword ptr [{s}]", u64;
    TruncateSs32 = "cvttss2si {d:e}, dword ptr [{s}]", u32;
    TruncateSs64 = "cvttss2si {d:r}, dword ptr [{s}]", u32;
}

/// The handler of such an instruction, given what `native::decode` made of it.
pub fn decode(d: &Decoding) -> Option<Handler> {
    Some(match d.ins.code() {
        Code::Pmovmskb_r32_xmm | Code::Pmovmskb_r64_xmm => pmovmskb,
        Code::Ucomisd_xmm_xmmm64 => compare::<Ucomisd>(d),
        Code::Comisd_xmm_xmmm64 => compare::<Comisd>(d),
        Code::Ucomiss_xmm_xmmm32 => compare::<Ucomiss>(d),
        Code::Comiss_xmm_xmmm32 => compare::<Comiss>(d),
        Code::Cvtsi2sd_xmm_rm32 => from_int::<Sd32>(d),
        Code::Cvtsi2sd_xmm_rm64 => from_int::<Sd64>(d),
        Code::Cvtsi2ss_xmm_rm32 => from_int::<Ss32>(d),
        Code::Cvtsi2ss_xmm_rm64 => from_int::<Ss64>(d),
        Code::Cvttsd2si_r32_xmmm64 => to_int::<TruncateSd32>(d),
        Code::Cvttsd2si_r64_xmmm64 => to_int::<TruncateSd64>(d),
        Code::Cvttss2si_r32_xmmm32 => to_int::<TruncateSs32>(d),
        Code::Cvttss2si_r64_xmmm32 => to_int::<TruncateSs64>(d),
        _ => return None,
    })
}

fn compare<C: Compare>(d: &Decoding) -> Handler {
    if d.is_register(1) {
        compare_registers::<C>
    } else {
        addressed!(d, A => compare_memory::<C, A>)
    }
}

fn from_int<F: FromInt>(d: &Decoding) -> Handler {
    if d.is_register(1) {
        from_int_register::<F>
    } else {
        addressed!(d, A => from_int_memory::<F, A>)
    }
}

fn to_int<F: ToInt>(d: &Decoding) -> Handler {
    if d.is_register(1) {
        to_int_register::<F>
    } else {
        addressed!(d, A => to_int_memory::<F, A>)
    }
}

/// Whether an exception could be raised: then the stub's way is to be taken.
#[inline(always)]
fn unmasked(cpu: &Cpu) -> bool {
    cpu.fp.mxcsr & MXCSR_MASKS != MXCSR_MASKS
}

fn pmovmskb(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let bytes = cpu.fp.xmm[usize::from(op.src & 15)].to_le_bytes();
    let mask: u64;
    // SAFETY: reads 16 bytes of `bytes`.
    unsafe {
        asm!(
            "movdqu {t}, [{s}]",
            "pmovmskb {d:e}, {t}",
            t = out(xmm_reg) _,
            s = in(reg) &bytes,
            d = lateout(reg) mask,
            options(nostack, preserves_flags, readonly)
        );
    }
    cpu.gpr[usize::from(op.dst & 15)] = mask;
    Ok(())
}

fn compare_registers<C: Compare>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if unmasked(cpu) {
        return native::registers(cpu, op);
    }
    cpu.check_sse()?;
    let b = cpu.fp.xmm[usize::from(op.src & 15)];
    let fp = &mut cpu.fp;
    cpu.status = C::run(&fp.xmm[usize::from(op.dst & 15)], &b, &mut fp.mxcsr);
    Ok(())
}

fn compare_memory<C: Compare, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if unmasked(cpu) {
        return native::from_memory(cpu, op);
    }
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, C::M::BYTES as u64, Access::Read)?;
    let b = cpu.load::<C::M>(linear)?.into();
    let fp = &mut cpu.fp;
    cpu.status = C::run(&fp.xmm[usize::from(op.dst & 15)], &b, &mut fp.mxcsr);
    Ok(())
}

fn from_int_register<F: FromInt>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if unmasked(cpu) {
        return native::registers(cpu, op);
    }
    cpu.check_sse()?;
    let s = cpu.gpr[usize::from(op.src & 15)];
    let fp = &mut cpu.fp;
    F::run(&mut fp.xmm[usize::from(op.dst & 15)], s, &mut fp.mxcsr);
    Ok(())
}

fn from_int_memory<F: FromInt, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if unmasked(cpu) {
        return native::from_memory(cpu, op);
    }
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, F::M::BYTES as u64, Access::Read)?;
    let s = cpu.load::<F::M>(linear)?.to_u64();
    let fp = &mut cpu.fp;
    F::run(&mut fp.xmm[usize::from(op.dst & 15)], s, &mut fp.mxcsr);
    Ok(())
}

fn to_int_register<F: ToInt>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if unmasked(cpu) {
        return native::registers(cpu, op);
    }
    cpu.check_sse()?;
    let fp = &mut cpu.fp;
    let v = F::run(&fp.xmm[usize::from(op.src & 15)], &mut fp.mxcsr);
    cpu.gpr[usize::from(op.dst & 15)] = v;
    Ok(())
}

fn to_int_memory<F: ToInt, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if unmasked(cpu) {
        return native::from_memory(cpu, op);
    }
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, F::M::BYTES as u64, Access::Read)?;
    let s = cpu.load::<F::M>(linear)?.into();
    let v = F::run(&s, &mut cpu.fp.mxcsr);
    cpu.gpr[usize::from(op.dst & 15)] = v;
    Ok(())
}
