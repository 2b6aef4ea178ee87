//! Hot SSE instructions with an XMM destination and an XMM or memory source, each with a handler
//! of its own around the host's instruction.
//!
//! Ops are filled in as for a stub (`native::decode`), so that a handler can fall back on it when
//! the guest does not mask all exceptions.
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
use crate::width::Width;

/// An instruction that neither rounds nor raises exceptions; the source is 16 bytes.
trait Packed: 'static {
    fn run(d: &mut u128, s: &u128);
}

/// An instruction that does; the source is `M`.
trait Float: 'static {
    type M: Width + Into<u128>;
    fn run(d: &mut u128, s: &u128, mxcsr: &mut u32);
}

macro_rules! packed {
    ($($name:ident = $text:literal),* $(,)?) => {$(
        struct $name;
        impl Packed for $name {
            #[inline(always)]
            fn run(d: &mut u128, s: &u128) {
                // SAFETY: reads and writes 16 aligned bytes each; every x86-64-v2 host has it.
                unsafe {
                    asm!(
                        "movdqa {t}, [{d}]",
                        concat!($text, " {t}, [{s}]"),
                        "movdqa [{d}], {t}",
                        t = out(xmm_reg) _,
                        d = in(reg) d,
                        s = in(reg) s,
                        options(nostack, preserves_flags)
                    );
                }
            }
        }
    )*};
}

macro_rules! float {
    ($($name:ident = $text:literal, $m:ty);* $(;)?) => {$(
        struct $name;
        impl Float for $name {
            type M = $m;
            #[inline(always)]
            fn run(d: &mut u128, s: &u128, mxcsr: &mut u32) {
                let host = MXCSR_DEFAULT;
                // SAFETY: reads and writes 16 aligned bytes each; every x86-64-v2 host has it. MXCSR
                // is the host's own again at the end.
                unsafe {
                    asm!(
                        "movdqa {t}, [{d}]",
                        "ldmxcsr [{m}]",
                        concat!($text, " {t}, [{s}]"),
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

packed! {
    Paddb = "paddb", Paddw = "paddw", Paddd = "paddd", Paddq = "paddq",
    Psubb = "psubb", Psubw = "psubw", Psubd = "psubd", Psubq = "psubq",
    Pcmpeqb = "pcmpeqb", Pcmpeqw = "pcmpeqw", Pcmpeqd = "pcmpeqd", Pcmpgtb = "pcmpgtb",
    Pminub = "pminub", Pmaxub = "pmaxub", Pmuludq = "pmuludq", Pmulld = "pmulld",
    Psubusb = "psubusb", Pshufb = "pshufb",
    Punpcklbw = "punpcklbw", Punpcklwd = "punpcklwd", Punpckldq = "punpckldq",
    Punpcklqdq = "punpcklqdq", Punpckhbw = "punpckhbw", Punpckhwd = "punpckhwd",
    Punpckhdq = "punpckhdq", Punpckhqdq = "punpckhqdq",
    Unpcklpd = "unpcklpd", Unpcklps = "unpcklps",
    Pand = "pand", Pandn = "pandn", Por = "por", Pxor = "pxor",
}

float! {
    Addsd = "addsd", u64; Subsd = "subsd", u64; Mulsd = "mulsd", u64; Divsd = "divsd", u64;
    Sqrtsd = "sqrtsd", u64; Minsd = "minsd", u64; Maxsd = "maxsd", u64;
    Addss = "addss", u32; Subss = "subss", u32; Mulss = "mulss", u32; Divss = "divss", u32;
    Addpd = "addpd", u128; Subpd = "subpd", u128; Mulpd = "mulpd", u128; Divpd = "divpd", u128;
    Addps = "addps", u128; Subps = "subps", u128; Mulps = "mulps", u128; Divps = "divps", u128;
    Cvtsd2ss = "cvtsd2ss", u64; Cvtss2sd = "cvtss2sd", u32; Cvtdq2pd = "cvtdq2pd", u64;
}

/// The handler of such an instruction, given what `native::decode` made of it.
pub fn decode(d: &Decoding) -> Option<Handler> {
    macro_rules! pick {
        (packed: $($code:ident)|+ => $p:ident $(, $codes:ident => $ps:ident)*; float: $($fcode:ident => $f:ident),*) => {
            match d.ins.code() {
                $(Code::$code)|+ => packed_handler::<$p>(d),
                $(Code::$codes => packed_handler::<$ps>(d),)*
                $(Code::$fcode => float_handler::<$f>(d),)*
                _ => return None,
            }
        };
    }
    Some(pick! {
        packed: Pxor_xmm_xmmm128 | Xorps_xmm_xmmm128 | Xorpd_xmm_xmmm128 => Pxor,
        Pand_xmm_xmmm128 => Pand, Andps_xmm_xmmm128 => Pand, Andpd_xmm_xmmm128 => Pand,
        Pandn_xmm_xmmm128 => Pandn, Andnps_xmm_xmmm128 => Pandn, Andnpd_xmm_xmmm128 => Pandn,
        Por_xmm_xmmm128 => Por, Orps_xmm_xmmm128 => Por, Orpd_xmm_xmmm128 => Por,
        Paddb_xmm_xmmm128 => Paddb, Paddw_xmm_xmmm128 => Paddw,
        Paddd_xmm_xmmm128 => Paddd, Paddq_xmm_xmmm128 => Paddq,
        Psubb_xmm_xmmm128 => Psubb, Psubw_xmm_xmmm128 => Psubw,
        Psubd_xmm_xmmm128 => Psubd, Psubq_xmm_xmmm128 => Psubq,
        Pcmpeqb_xmm_xmmm128 => Pcmpeqb, Pcmpeqw_xmm_xmmm128 => Pcmpeqw,
        Pcmpeqd_xmm_xmmm128 => Pcmpeqd, Pcmpgtb_xmm_xmmm128 => Pcmpgtb,
        Pminub_xmm_xmmm128 => Pminub, Pmaxub_xmm_xmmm128 => Pmaxub,
        Pmuludq_xmm_xmmm128 => Pmuludq, Pmulld_xmm_xmmm128 => Pmulld,
        Psubusb_xmm_xmmm128 => Psubusb, Pshufb_xmm_xmmm128 => Pshufb,
        Punpcklbw_xmm_xmmm128 => Punpcklbw, Punpcklwd_xmm_xmmm128 => Punpcklwd,
        Punpckldq_xmm_xmmm128 => Punpckldq, Punpcklqdq_xmm_xmmm128 => Punpcklqdq,
        Punpckhbw_xmm_xmmm128 => Punpckhbw, Punpckhwd_xmm_xmmm128 => Punpckhwd,
        Punpckhdq_xmm_xmmm128 => Punpckhdq, Punpckhqdq_xmm_xmmm128 => Punpckhqdq,
        Unpcklpd_xmm_xmmm128 => Unpcklpd, Unpcklps_xmm_xmmm128 => Unpcklps;
        float: Addsd_xmm_xmmm64 => Addsd, Subsd_xmm_xmmm64 => Subsd, Mulsd_xmm_xmmm64 => Mulsd,
        Divsd_xmm_xmmm64 => Divsd, Sqrtsd_xmm_xmmm64 => Sqrtsd, Minsd_xmm_xmmm64 => Minsd,
        Maxsd_xmm_xmmm64 => Maxsd, Addss_xmm_xmmm32 => Addss, Subss_xmm_xmmm32 => Subss,
        Mulss_xmm_xmmm32 => Mulss, Divss_xmm_xmmm32 => Divss, Addpd_xmm_xmmm128 => Addpd,
        Subpd_xmm_xmmm128 => Subpd, Mulpd_xmm_xmmm128 => Mulpd, Divpd_xmm_xmmm128 => Divpd,
        Addps_xmm_xmmm128 => Addps, Subps_xmm_xmmm128 => Subps, Mulps_xmm_xmmm128 => Mulps,
        Divps_xmm_xmmm128 => Divps, Cvtsd2ss_xmm_xmmm64 => Cvtsd2ss,
        Cvtss2sd_xmm_xmmm32 => Cvtss2sd, Cvtdq2pd_xmm_xmmm64 => Cvtdq2pd
    })
}

fn packed_handler<P: Packed>(d: &Decoding) -> Handler {
    if d.is_register(1) {
        packed_registers::<P>
    } else {
        addressed!(d, A => packed_memory::<P, A>)
    }
}

fn float_handler<F: Float>(d: &Decoding) -> Handler {
    if d.is_register(1) {
        float_registers::<F>
    } else {
        addressed!(d, A => float_memory::<F, A>)
    }
}

fn packed_registers<P: Packed>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let s = cpu.fp.xmm[usize::from(op.src & 15)];
    P::run(&mut cpu.fp.xmm[usize::from(op.dst & 15)], &s);
    Ok(())
}

fn packed_memory<P: Packed, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, 16, Access::Read)?;
    cpu.check_aligned(linear)?;
    let s = cpu.load::<u128>(linear)?;
    P::run(&mut cpu.fp.xmm[usize::from(op.dst & 15)], &s);
    Ok(())
}

fn float_registers<F: Float>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if cpu.fp.mxcsr & MXCSR_MASKS != MXCSR_MASKS {
        return native::registers(cpu, op);
    }
    cpu.check_sse()?;
    let s = cpu.fp.xmm[usize::from(op.src & 15)];
    let fp = &mut cpu.fp;
    F::run(&mut fp.xmm[usize::from(op.dst & 15)], &s, &mut fp.mxcsr);
    Ok(())
}

fn float_memory<F: Float, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if cpu.fp.mxcsr & MXCSR_MASKS != MXCSR_MASKS {
        return native::from_memory(cpu, op);
    }
    cpu.check_sse()?;
    let linear = A::linear(cpu, op, F::M::BYTES as u64, Access::Read)?;
    if F::M::BYTES == 16 {
        cpu.check_aligned(linear)?;
    }
    let s = cpu.load::<F::M>(linear)?.into();
    let fp = &mut cpu.fp;
    F::run(&mut fp.xmm[usize::from(op.dst & 15)], &s, &mut fp.mxcsr);
    Ok(())
}
