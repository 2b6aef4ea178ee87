//! SSE and MMX instructions that the host executes through a stub.
//!
//! In an op of this kind `imm` is the stub, `extra` the flags below; a memory operand's size is in
//! `src` (a source) or `dst` (a destination).
#![allow(unsafe_code)]

use iced_x86::{Instruction, Mnemonic, Register};

use crate::cpu::Cpu;
use crate::decode::Decoding;
use crate::fpstate::{MXCSR_MASK_SHIFT, MXCSR_MASKS};
use crate::native::{NativeError, SseStub, clobbers_flags, needs_mxcsr};
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::sse::{CR4_OSXMMEXCPT, has_register};
use crate::stop::{Stop, vector};

/// `Op::extra`: MMX registers are used.
const MMX: u8 = 1;
/// `Op::extra`: SSE must be enabled.
const SSE: u8 = 2;
/// `Op::extra`: rounds, or raises exceptions.
const MXCSR: u8 = 4;
/// `Op::extra`: sets RFLAGS.
const FLAGS: u8 = 8;
/// `Op::extra`: what kind of register the operand is; shifted by `FIRST` or `SECOND`.
const KIND: u8 = 3;
const FIRST: u8 = 4;
const SECOND: u8 = 6;
const KIND_XMM: u8 = 0;
const KIND_MM: u8 = 1;
const KIND_GPR: u8 = 2;

/// Size byte of a memory operand: must be aligned.
const ALIGNED: u8 = 0x80;

/// MXCSR: invalid, denormal, divide by zero are found before computing.
const BEFORE: u32 = 0b111;
/// MXCSR: underflow flag.
const UE: u32 = 1 << 4;
/// MXCSR: the exception flags.
const EXCEPTIONS: u32 = 0x3f;
/// MXCSR: flush to zero.
const FZ: u32 = 1 << 15;

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    let mmx = has_register(d.ins, Register::is_mm);
    // From memory to a general register, and yet SSE.
    let to_integer = matches!(
        d.ins.mnemonic(),
        Mnemonic::Cvtsd2si | Mnemonic::Cvtss2si | Mnemonic::Cvttsd2si | Mnemonic::Cvttss2si
    );
    let xmm = to_integer || has_register(d.ins, Register::is_xmm);
    if !mmx && !xmm {
        return None;
    }
    let stub = match d.native.sse(d.ins) {
        Ok(stub) => stub,
        Err(NativeError::Encode(_)) => return None,
        // The number of stubs is bounded by the ISA and they all fit.
        Err(error) => panic!("native code: {error}"),
    };
    d.op.imm = stub.to_bits();
    d.op.extra = if mmx { MMX } else { 0 }
        | if xmm { SSE } else { 0 }
        | if needs_mxcsr(d.ins) { MXCSR } else { 0 }
        | if clobbers_flags(d.ins) { FLAGS } else { 0 };
    let size = d.ins.memory_size().size() as u8 | if needs_alignment(d.ins) { ALIGNED } else { 0 };
    operand(d, 0, FIRST);
    operand(d, 1, SECOND);
    let hot = super::packed::decode(d).or_else(|| super::scalar::decode(d));
    if d.is_memory(0) {
        d.op.dst = size;
        return Some(to_memory);
    }
    if d.ins.op_count() > 1 && d.is_memory(1) {
        d.op.src = size;
        return hot.or(Some(from_memory));
    }
    hot.or(Some(registers))
}

fn operand(d: &mut Decoding, i: u32, shift: u8) {
    if i >= d.ins.op_count() || !d.is_register(i) {
        return;
    }
    let register = d.ins.op_register(i);
    let kind = if register.is_xmm() {
        KIND_XMM
    } else if register.is_mm() {
        KIND_MM
    } else {
        KIND_GPR
    };
    d.op.extra |= kind << shift;
    *(if i == 0 { &mut d.op.dst } else { &mut d.op.src }) = register.number() as u8;
}

/// Legacy SSE instructions want 16-byte operands aligned, but for those made for unaligned ones
/// (SDM vol. 2, table 2-21 and the instructions' pages).
fn needs_alignment(ins: &Instruction) -> bool {
    ins.memory_size().size() == 16
        && !matches!(
            ins.mnemonic(),
            Mnemonic::Movups
                | Mnemonic::Movupd
                | Mnemonic::Movdqu
                | Mnemonic::Lddqu
                | Mnemonic::Pcmpestri
                | Mnemonic::Pcmpestri64
                | Mnemonic::Pcmpestrm
                | Mnemonic::Pcmpestrm64
                | Mnemonic::Pcmpistri
                | Mnemonic::Pcmpistrm
        )
}

fn check(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if op.extra & SSE != 0 {
        cpu.check_sse()?;
    }
    if op.extra & MMX != 0 {
        cpu.check_mmx()?;
    }
    Ok(())
}

/// The slot of a register operand.
#[inline(always)]
fn slot(cpu: &mut Cpu, kind: u8, register: u8) -> *mut u8 {
    match kind & KIND {
        KIND_XMM => (&raw mut cpu.fp.xmm[usize::from(register & 15)]).cast(),
        KIND_MM => (&raw mut cpu.fp.st[usize::from(register & 7)]).cast(),
        _ => (&raw mut cpu.gpr[usize::from(register & 15)]).cast(),
    }
}

pub fn registers(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    check(cpu, op)?;
    let first = slot(cpu, op.extra >> FIRST, op.dst);
    let second = slot(cpu, op.extra >> SECOND, op.src);
    execute(cpu, op, first, second)
}

pub fn from_memory(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    check(cpu, op)?;
    let size = op.src & !ALIGNED;
    let linear = cpu.operand(op, u64::from(size), Access::Read)?;
    if op.src & ALIGNED != 0 {
        cpu.check_aligned(linear)?;
    }
    let mut value = match size {
        1 => u128::from(cpu.load::<u8>(linear)?),
        2 => u128::from(cpu.load::<u16>(linear)?),
        4 => u128::from(cpu.load::<u32>(linear)?),
        8 => u128::from(cpu.load::<u64>(linear)?),
        _ => cpu.load::<u128>(linear)?,
    };
    let first = slot(cpu, op.extra >> FIRST, op.dst);
    execute(cpu, op, first, (&raw mut value).cast())
}

fn to_memory(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    check(cpu, op)?;
    let size = op.dst & !ALIGNED;
    let linear = cpu.operand(op, u64::from(size), Access::Write)?;
    if op.dst & ALIGNED != 0 {
        cpu.check_aligned(linear)?;
    }
    cpu.prepare_store(linear, u64::from(size))?;
    let mut value = 0u128;
    let second = slot(cpu, op.extra >> SECOND, op.src);
    execute(cpu, op, (&raw mut value).cast(), second)?;
    match size {
        1 => cpu.store(linear, value as u8),
        2 => cpu.store(linear, value as u16),
        4 => cpu.store(linear, value as u32),
        8 => cpu.store(linear, value as u64),
        _ => cpu.store(linear, value),
    }
}

/// Runs the stub with MMX state and exceptions taken care of.
#[inline]
fn execute(cpu: &mut Cpu, op: &Op, first: *mut u8, second: *mut u8) -> Result<(), Stop> {
    // SAFETY: `decode` put a stub there, and the code outlives the op.
    let stub = unsafe { SseStub::from_bits(op.imm) };
    if op.extra & MMX != 0 {
        return execute_mmx(cpu, op, stub, first, second);
    }
    if op.extra & MXCSR != 0 && cpu.fp.mxcsr & MXCSR_MASKS != MXCSR_MASKS {
        return execute_unmasked(cpu, op, stub, first, second);
    }
    call(cpu, op, stub, first, second);
    Ok(())
}

#[inline(always)]
fn call(cpu: &mut Cpu, op: &Op, stub: SseStub, first: *mut u8, second: *mut u8) {
    let (fp, gpr) = (&raw mut cpu.fp, &raw mut cpu.gpr);
    // SAFETY: the callers give slots of `cpu` or 16-byte buffers.
    let flags = unsafe { stub.call(first, second, fp, gpr.cast()) };
    if op.extra & FLAGS != 0 {
        cpu.status = flags;
    }
}

fn execute_mmx(
    cpu: &mut Cpu,
    op: &Op,
    stub: SseStub,
    first: *mut u8,
    second: *mut u8,
) -> Result<(), Stop> {
    // Stays so even if #XM follows (SDM vol. 2, CVTPD2PI).
    cpu.fp.enter_mmx();
    if op.extra & MXCSR != 0 && cpu.fp.mxcsr & MXCSR_MASKS != MXCSR_MASKS {
        execute_unmasked(cpu, op, stub, first, second)?;
    } else {
        call(cpu, op, stub, first, second);
    }
    if op.extra >> FIRST & KIND == KIND_MM {
        cpu.fp.st[usize::from(op.dst & 7)] |= 0xffff << 64;
    }
    Ok(())
}

/// An instruction that may raise an exception the guest does not mask: runs it with all masked and
/// takes it back if the flags say so (SDM vol. 1, 11.5.3).
#[cold]
fn execute_unmasked(
    cpu: &mut Cpu,
    op: &Op,
    stub: SseStub,
    first: *mut u8,
    second: *mut u8,
) -> Result<(), Stop> {
    let (fp, gpr, status) = (cpu.fp.clone(), cpu.gpr, cpu.status);
    let mxcsr = cpu.fp.mxcsr;
    let unmasked = !(mxcsr >> MXCSR_MASK_SHIFT) & EXCEPTIONS;
    let tries = if unmasked & UE != 0 {
        // Unmasked underflow is raised for every tiny result, exact or not; flushing to zero
        // reports just these when masked.
        [FZ, 0]
    } else {
        [mxcsr & FZ, mxcsr & FZ]
    };
    let mut raised = 0;
    for fz in tries {
        cpu.fp = fp.clone();
        cpu.gpr = gpr;
        cpu.fp.mxcsr = mxcsr & !(EXCEPTIONS | FZ) | fz | MXCSR_MASKS;
        call(cpu, op, stub, first, second);
        let new = cpu.fp.mxcsr & EXCEPTIONS;
        raised = if fz == tries[0] {
            new
        } else {
            new | raised & UE
        };
    }
    if raised & BEFORE & unmasked != 0 {
        raised &= BEFORE;
    }
    if raised & unmasked == 0 {
        cpu.fp.mxcsr = mxcsr | raised;
        return Ok(());
    }
    cpu.fp = fp;
    cpu.gpr = gpr;
    cpu.status = status;
    cpu.fp.mxcsr = mxcsr | raised;
    if cpu.cr4 & CR4_OSXMMEXCPT == 0 {
        return Err(cpu.raise_ud());
    }
    Err(cpu.raise(vector::XM, None))
}
