//! Executes one SSE, MMX or x87 instruction of the guest with the host's own.
//!
//! The instruction is rewritten so that its operands are in fixed host registers or behind fixed
//! pointers, wrapped in code that loads them and stores the results, and kept: the number of
//! different rewritten instructions is bounded by the ISA (op codes times immediates), whatever the
//! guest executes. Only *pure* instructions come here: they read and write the operands they are
//! given and nothing else, and neither fault nor trap, since the guest's unmasked exceptions are
//! dealt with by the callers ([`crate::sse`], [`crate::x87`]).
#![allow(unsafe_code)]

mod arena;
mod emit;
mod fingerprint;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;

use iced_x86::{Encoder, IcedError, Instruction};

use crate::fpstate::FpState;
use arena::Arena;
pub use emit::{clobbers_flags, needs_mxcsr};

/// Room for generated code, in bytes: several times what all of the ISA's stubs need.
const ARENA_SIZE: usize = 16 << 20;

/// Why no code could be made for an instruction.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    #[error("the instruction cannot be executed natively: {0}")]
    Encode(#[from] IcedError),
    #[error("no memory for generated code: {0}")]
    Memory(#[from] io::Error),
    #[error("the area for generated code is full")]
    Full,
}

type Entry = unsafe extern "sysv64" fn(*mut u8, *mut u8, *mut FpState, *mut u64) -> u64;

/// Generated code for one SSE or MMX instruction.
#[derive(Clone, Copy)]
pub struct SseStub(Entry);

/// Generated code for one x87 instruction.
#[derive(Clone, Copy)]
pub struct X87Stub(Entry);

impl SseStub {
    /// Executes the instruction on its operands and returns RFLAGS if it sets them.
    ///
    /// `op0` and `op1` point to the first and second operand: a slot of `fp.xmm` or `fp.st`, a
    /// general register (8 bytes; a 32-bit result is zero-extended), or a copy of the memory
    /// operand; any pointer if there is no such operand. `gpr` are the guest's general registers,
    /// for implied operands. MXCSR is taken from `fp` and its flags go there; all exceptions must be
    /// masked in it.
    ///
    /// # Safety
    ///
    /// The pointers are valid for as many bytes as the operands have, and aligned to 16 bytes where
    /// the operand has 16.
    #[inline]
    pub unsafe fn call(
        self,
        op0: *mut u8,
        op1: *mut u8,
        fp: *mut FpState,
        gpr: *mut [u64; 16],
    ) -> u64 {
        // SAFETY: the code was made by `emit::sse` for exactly these arguments.
        unsafe { (self.0)(op0, op1, fp, gpr.cast()) }
    }

    /// As a number, to be kept in a decoded instruction.
    pub fn to_bits(self) -> u64 {
        self.0 as usize as u64
    }

    /// # Safety
    ///
    /// `bits` came from [`Self::to_bits`] of a stub whose [`NativeCode`] still exists.
    #[inline]
    pub unsafe fn from_bits(bits: u64) -> Self {
        // SAFETY: by the caller's promise these are the bits of a function pointer.
        Self(unsafe { std::mem::transmute::<usize, Entry>(bits as usize) })
    }
}

impl X87Stub {
    /// Executes the instruction on the image `fp` and returns RFLAGS if it sets them.
    ///
    /// `memory` points to a copy of the memory operand. `flags` is what the instruction sees as
    /// RFLAGS (only arithmetic flags may be set). FIP, FDP and FOP of the image are left with
    /// values of the host.
    ///
    /// # Safety
    ///
    /// `memory` is valid for the operand's size; no unmasked exception is pending in `fp`.
    #[inline]
    pub unsafe fn call(self, memory: *mut u8, fp: *mut FpState, flags: u64) -> u64 {
        // SAFETY: the code was made by `emit::x87` for exactly these arguments.
        unsafe { (self.0)(memory, memory, fp, flags as *mut u64) }
    }

    /// As a number, to be kept in a decoded instruction.
    pub fn to_bits(self) -> u64 {
        self.0 as usize as u64
    }

    /// # Safety
    ///
    /// `bits` came from [`Self::to_bits`] of a stub whose [`NativeCode`] still exists.
    #[inline]
    pub unsafe fn from_bits(bits: u64) -> Self {
        // SAFETY: by the caller's promise these are the bits of a function pointer.
        Self(unsafe { std::mem::transmute::<usize, Entry>(bits as usize) })
    }
}

/// All code generated so far.
pub struct NativeCode {
    arena: Arena,
    /// By the rewritten instruction's bytes.
    stubs: HashMap<[u8; 16], Entry>,
}

impl NativeCode {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            arena: Arena::new(ARENA_SIZE)?,
            stubs: HashMap::new(),
        })
    }

    /// Code for an SSE or MMX instruction without implied memory operands.
    pub fn sse(&mut self, instruction: &Instruction) -> Result<SseStub, NativeError> {
        let rewritten = emit::rewrite(instruction);
        self.stub(&rewritten, emit::sse).map(SseStub)
    }

    /// Code for an x87 instruction whose memory operand, if any, is a number.
    pub fn x87(&mut self, instruction: &Instruction) -> Result<X87Stub, NativeError> {
        let rewritten = emit::rewrite(instruction);
        self.stub(&rewritten, emit::x87).map(X87Stub)
    }

    fn stub(
        &mut self,
        rewritten: &Instruction,
        emit: fn(&Instruction, u64) -> Result<Vec<u8>, IcedError>,
    ) -> Result<Entry, NativeError> {
        let mut encoder = Encoder::new(64);
        let len = encoder.encode(rewritten, 0)?;
        let mut key = [0; 16];
        key[..len].copy_from_slice(&encoder.take_buffer());
        key[15] = len as u8;
        if let Some(&entry) = self.stubs.get(&key) {
            return Ok(entry);
        }
        let code = emit(rewritten, self.arena.next() as u64)?;
        let at = self.arena.append(&code).ok_or(NativeError::Full)?;
        // SAFETY: `at` is the start of a function with this signature, made by `emit`; it stays
        // mapped as long as the arena, which lives as long as `self`.
        let entry = unsafe { std::mem::transmute::<*const u8, Entry>(at) };
        self.stubs.insert(key, entry);
        Ok(entry)
    }
}
