//! A decoded instruction.

use crate::cpu::Cpu;
use crate::stop::Stop;

/// Executes one instruction: completes it, or changes nothing and stops.
///
/// Within a block `cpu.rip` is the IP of the block's first instruction and `cpu.count` the count
/// at its begin; an instruction's own are [`Cpu::ip`], [`Cpu::next_ip`], [`Cpu::count_before`].
/// An op that ends its block (`Decoding::ends`, `chain::ending`) must set `cpu.rip` itself, to the target or by
/// [`Cpu::advance`]; other ops must leave it alone. Whatever changes control flow, mode, privilege,
/// translation, IF, TF, or may make an exit, must end its block.
pub type Handler = fn(&mut Cpu, &Op) -> Result<(), Stop>;

/// Executes an instruction and those behind it in its block (see `chain`): `Op::run`. To be called
/// only with a pointer into a block's ops.
pub type Chain = unsafe fn(&mut Cpu, *const Op) -> Result<(), Stop>;

/// "No register": its slot in `cpu.gpr` is always 0.
pub const NONE: u8 = 16;

/// A decoded instruction, 32 bytes. What `dst`, `src`, `imm` and `extra` mean is the handler's
/// business. (One with a plain handler takes two; see `chain`.)
///
/// Register operands are numbers 0 to 15 (indices into `cpu.gpr`); as a byte operand AH, CH, DH, BH
/// are 0x20 to 0x23.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Op {
    pub run: Chain,
    /// Immediate, sign-extended to 64 bits; or the absolute 64-bit offset of a MOFFS form; or a
    /// branch displacement.
    pub imm: u64,
    /// Displacement of the memory operand, as encoded (RIP-relative: from the next instruction).
    pub disp: i32,
    /// Offset of the instruction from the start of its block, in bytes.
    pub offset: u16,
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// Number of instructions before it in its block.
    pub index: u8,
    pub dst: u8,
    pub src: u8,
    /// Base register of the memory operand, `NONE`, or `BASE_RIP`.
    pub base: u8,
    /// Index register of the memory operand, or `NONE`.
    pub idx: u8,
    /// Shift of the index: 0 to 3.
    pub scale: u8,
    /// Segment of the memory operand, as an index into `cpu.seg`: the default or the override. SS
    /// for stack instructions.
    pub seg: u8,
    /// Low nibble: operand size, high nibble: address size, both in bytes (2, 4, 8).
    pub sizes: u8,
    pub extra: u8,
}

/// `Op::base` of RIP-relative operands; its slot in `cpu.gpr` is always 0 too.
pub const BASE_RIP: u8 = 17;

impl Op {
    /// Operand size in bytes: 2, 4 or 8.
    #[inline(always)]
    pub fn operand_size(&self) -> u8 {
        self.sizes & 15
    }

    /// Address size in bytes: 2, 4 or 8.
    #[inline(always)]
    pub fn address_size(&self) -> u8 {
        self.sizes >> 4
    }

    /// Offset of the end of the instruction from the start of its block.
    #[inline(always)]
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Op")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Cpu {
    /// IP of the instruction.
    #[inline(always)]
    pub fn ip(&self, op: &Op) -> u64 {
        self.wrap_ip(self.rip.wrapping_add(u64::from(op.offset)))
    }

    /// IP of the next instruction.
    #[inline(always)]
    pub fn next_ip(&self, op: &Op) -> u64 {
        self.wrap_ip(self.rip.wrapping_add(op.end()))
    }

    /// Goes on with the next instruction; for ops that end their block.
    #[inline(always)]
    pub fn advance(&mut self, op: &Op) {
        self.rip = self.next_ip(op);
    }

    /// Instructions retired before this one.
    #[inline(always)]
    pub fn count_before(&self, op: &Op) -> u64 {
        self.count + u64::from(op.index)
    }

    /// Truncates an IP to the width of the code segment.
    #[inline(always)]
    pub fn wrap_ip(&self, ip: u64) -> u64 {
        ip & self.ip_mask
    }
}
