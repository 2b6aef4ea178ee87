//! From bytes to `Op`s.
//!
//! iced-x86 decodes; `int`, `system`, `sse` and `x87` each pick the handlers of their own
//! instructions and fill in the operands through [`Decoding`]. What nobody knows raises #UD.

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};

use crate::chain::{Code, NOTHING};
use crate::cpu::{CodeMode, Cpu, seg};
use crate::native::NativeCode;
use crate::op::{BASE_RIP, NONE, Op};
use crate::stop::Stop;
use crate::{int, sse, system, x87};

/// How a memory operand's address is formed: which type of `ea` the handler is to be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ea {
    Flat,
    Rip,
    General,
}

/// One instruction while its handler is picked.
pub struct Decoding<'a> {
    pub ins: &'a Instruction,
    /// The instruction's bytes.
    pub bytes: &'a [u8],
    pub mode: CodeMode,
    /// The op to fill in. Sizes, memory operand, offset and length are already there; register
    /// operands and immediate are up to the picker.
    pub op: Op,
    /// How the address of the memory operand is formed, if there is one.
    pub ea: Ea,
    /// Set with a plain handler for an instruction that must be the last of its block (see
    /// `op::Handler`); linked code says so itself.
    pub ends: bool,
    /// Makes code for the instructions that the host executes.
    pub native: &'a mut NativeCode,
}

/// A decoded instruction.
#[derive(Clone, Copy)]
pub struct Decoded {
    pub op: Op,
    pub code: Code,
}

impl Decoded {
    /// Whether it has a handler: #UD is raised otherwise.
    #[cfg(test)]
    pub fn is_known(&self) -> bool {
        match self.code {
            Code::Plain(handler, _) => handler as usize != ud as *const () as usize,
            Code::Linked(_) => true,
        }
    }
}

/// Why no instruction could be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes end before the instruction does.
    NeedMore,
    /// Longer than 15 bytes: #GP(0).
    TooLong,
}

/// Decodes the instruction at the start of `bytes` (at most 15 of them are looked at).
pub fn decode(
    bytes: &[u8],
    mode: CodeMode,
    offset: u16,
    native: &mut NativeCode,
) -> Result<Decoded, DecodeError> {
    let bitness = match mode {
        CodeMode::Bits16 => 16,
        CodeMode::Bits32 => 32,
        CodeMode::Bits64 => 64,
    };
    let window = &bytes[..bytes.len().min(15)];
    let mut decoder = Decoder::with_ip(bitness, window, 0, DecoderOptions::NONE);
    let ins = decoder.decode();
    if ins.is_invalid() {
        // With 15 bytes and no end in sight iced says that it is invalid.
        if window.len() == 15 && ins.len() == 15 {
            return Err(DecodeError::TooLong);
        }
        if decoder.last_error() == iced_x86::DecoderError::NoMoreBytes {
            return Err(DecodeError::NeedMore);
        }
        return Ok(undefined(offset));
    }
    let mut d = Decoding::new(&ins, &window[..ins.len()], mode, offset, native);
    if let Some(link) = int::decode(&mut d) {
        return Ok(Decoded {
            op: d.op,
            code: Code::Linked(link),
        });
    }
    let handler = system::decode(&mut d)
        .or_else(|| sse::decode(&mut d))
        .or_else(|| x87::decode(&mut d));
    Ok(match handler {
        Some(handler) => Decoded {
            op: d.op,
            code: Code::Plain(handler, d.ends),
        },
        None => undefined(offset),
    })
}

/// #UD, for an instruction that is not offered.
pub fn ud(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    Err(cpu.raise_ud())
}

fn undefined(offset: u16) -> Decoded {
    Decoded {
        op: Op { offset, ..NOTHING },
        code: Code::Plain(ud, true),
    }
}

impl<'a> Decoding<'a> {
    fn new(
        ins: &'a Instruction,
        bytes: &'a [u8],
        mode: CodeMode,
        offset: u16,
        native: &'a mut NativeCode,
    ) -> Self {
        let mut d = Self {
            ins,
            bytes,
            mode,
            op: Op {
                len: ins.len() as u8,
                sizes: sizes(bytes, mode),
                offset,
                ..NOTHING
            },
            ea: Ea::General,
            ends: false,
            native,
        };
        d.memory();
        d
    }

    fn memory(&mut self) {
        let ins = self.ins;
        let has_memory = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory);
        if !has_memory {
            return;
        }
        self.op.seg = memory_segment(ins, self.mode);
        self.op.scale = ins.memory_index_scale().trailing_zeros() as u8;
        self.op.idx = register(ins.memory_index());
        self.op.base = register(ins.memory_base());
        let mut displacement = ins.memory_displacement64();
        if self.op.base == BASE_RIP {
            // Absolute in iced, counted from its IP 0.
            displacement = displacement.wrapping_sub(ins.len() as u64);
        }
        self.op.disp = displacement as i32;
        let flat = self.mode == CodeMode::Bits64
            && self.op.address_size() == 8
            && self.op.seg < seg::FS
            && displacement as i32 as i64 == displacement as i64;
        if flat {
            self.ea = if self.op.base == BASE_RIP {
                Ea::Rip
            } else {
                Ea::Flat
            };
        }
    }

    /// The number of the register operand `i` (see `Op`); segment, control, debug, x87, MMX and XMM
    /// registers by their own number.
    pub fn reg(&self, i: u32) -> u8 {
        register(self.ins.op_register(i))
    }

    /// The size of operand `i` in bytes; of an immediate, of the memory operand.
    pub fn width(&self, i: u32) -> usize {
        match self.ins.op_kind(i) {
            OpKind::Register => self.ins.op_register(i).size(),
            _ => self.ins.memory_size().size(),
        }
    }

    /// Whether operand `i` is memory.
    pub fn is_memory(&self, i: u32) -> bool {
        self.ins.op_kind(i) == OpKind::Memory
    }

    /// Whether operand `i` is a register.
    pub fn is_register(&self, i: u32) -> bool {
        self.ins.op_kind(i) == OpKind::Register
    }

    /// The immediate operand `i`, sign- or zero-extended to 64 bits as the instruction says.
    pub fn immediate(&self, i: u32) -> u64 {
        self.ins.immediate(i)
    }
}

/// The number of a register, `NONE` for none, `BASE_RIP` for RIP and EIP.
pub fn register(r: Register) -> u8 {
    match r {
        Register::None => NONE,
        Register::RIP | Register::EIP => BASE_RIP,
        Register::AH | Register::CH | Register::DH | Register::BH => {
            (r as u32 - Register::AH as u32) as u8 | 0x20
        }
        // iced numbers byte registers by its own order.
        _ if r.is_gpr8() => r.full_register().number() as u8,
        _ => r.number() as u8,
    }
}

/// The index of a segment register in `cpu.seg`.
pub fn segment(r: Register) -> u8 {
    match r {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

/// The segment of the memory operand. In 64-bit mode overrides other than FS and GS mean nothing
/// (SDM vol. 1, 3.3.7.1).
pub fn memory_segment(ins: &Instruction, mode: CodeMode) -> u8 {
    let override_counts = matches!(ins.segment_prefix(), Register::FS | Register::GS);
    if mode != CodeMode::Bits64 || override_counts {
        return segment(ins.memory_segment());
    }
    match ins.memory_base() {
        Register::RSP | Register::ESP | Register::RBP | Register::EBP => seg::SS,
        _ => seg::DS,
    }
}

/// `Op::sizes` by mode and prefixes.
fn sizes(bytes: &[u8], mode: CodeMode) -> u8 {
    let (mut osize, mut asize) = (false, false);
    let mut wide = false;
    for &b in bytes {
        match b {
            0x66 => osize = true,
            0x67 => asize = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0 | 0xf2 | 0xf3 => {}
            0x40..=0x4f if mode == CodeMode::Bits64 => {}
            _ => break,
        }
        // REX counts only right before the op code.
        wide = mode == CodeMode::Bits64 && b & 0xf8 == 0x48;
    }
    let (o, a) = match mode {
        CodeMode::Bits16 => (2 + 2 * u8::from(osize), 2 + 2 * u8::from(asize)),
        CodeMode::Bits32 => (4 - 2 * u8::from(osize), 4 - 2 * u8::from(asize)),
        CodeMode::Bits64 if wide => (8, 8 - 4 * u8::from(asize)),
        CodeMode::Bits64 => (4 - 2 * u8::from(osize), 8 - 4 * u8::from(asize)),
    };
    o | a << 4
}

#[cfg(test)]
mod tests;
