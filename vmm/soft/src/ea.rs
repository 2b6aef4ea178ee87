//! Effective addresses of memory operands.
//!
//! Handlers with a memory operand are generic over [`Address`]: [`Flat`] and [`Rip`] are what nearly
//! all operands of 64-bit code are; [`General`] is everything else.

use crate::cpu::Cpu;
use crate::op::{BASE_RIP, Op};
use crate::segments::Access;
use crate::stop::Stop;

/// How the linear address of an operand is formed.
pub trait Address: 'static {
    /// The linear address of the memory operand of `len` bytes.
    fn linear(cpu: &mut Cpu, op: &Op, len: u64, access: Access) -> Result<u64, Stop>;
}

/// 64-bit mode, 64-bit addresses, base and index, no segment base.
pub struct Flat;
/// 64-bit mode, relative to the next instruction.
pub struct Rip;
/// Any mode, size and segment.
pub struct General;

impl Address for Flat {
    #[inline(always)]
    fn linear(cpu: &mut Cpu, op: &Op, _len: u64, _access: Access) -> Result<u64, Stop> {
        let base = cpu.gpr[usize::from(op.base & 31)];
        let index = cpu.gpr[usize::from(op.idx & 31)] << (op.scale & 3);
        Ok(base.wrapping_add(index).wrapping_add(op.disp as i64 as u64))
    }
}

impl Address for Rip {
    #[inline(always)]
    fn linear(cpu: &mut Cpu, op: &Op, _len: u64, _access: Access) -> Result<u64, Stop> {
        Ok(cpu
            .rip
            .wrapping_add(op.end())
            .wrapping_add(op.disp as i64 as u64))
    }
}

impl Address for General {
    #[inline(always)]
    fn linear(cpu: &mut Cpu, op: &Op, len: u64, access: Access) -> Result<u64, Stop> {
        cpu.operand(op, len, access)
    }
}

impl Cpu {
    /// The offset of the memory operand in its segment, truncated to the address size (what LEA
    /// computes).
    pub fn offset(&self, op: &Op) -> u64 {
        let mut sum = self.gpr[usize::from(op.base & 31)]
            .wrapping_add(self.gpr[usize::from(op.idx & 31)] << (op.scale & 3))
            .wrapping_add(op.disp as i64 as u64);
        if op.base == BASE_RIP {
            sum = sum.wrapping_add(self.next_ip(op));
        }
        truncate(sum, op.address_size())
    }

    /// The linear address of the memory operand of `len` bytes, in any mode.
    pub fn operand(&mut self, op: &Op, len: u64, access: Access) -> Result<u64, Stop> {
        let offset = self.offset(op);
        self.linear(op.seg, offset, len, access)
    }
}

/// The low `size` bytes of an address: 2, 4 or 8.
#[inline(always)]
pub fn truncate(v: u64, size: u8) -> u64 {
    match size {
        2 => v & 0xffff,
        4 => v & 0xffff_ffff,
        _ => v,
    }
}
