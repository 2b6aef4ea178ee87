//! System instructions: which file has what, and the small ones.

use iced_x86::{Code, Mnemonic, OpKind};

use crate::cpu::{CodeMode, Cpu, attention, reg, seg};
use crate::decode::{Decoding, segment};
use crate::ea::{Address, General};
use crate::flags::{AC, IF};
use crate::mmu::is_canonical;
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::stop::{Stop, vector};
use crate::width::{Int, Width};
use crate::{control, cpuid, descriptor_ops, far, fast_call, io, iret, msr};

/// The handler of a system instruction, or None if it is not one.
pub fn decode(d: &mut Decoding) -> Option<Handler> {
    far::decode(d)
        .or_else(|| iret::decode(d))
        .or_else(|| io::decode(d))
        .or_else(|| segment_moves(d))
        .or_else(|| control::decode(d))
        .or_else(|| descriptor_ops::decode(d))
        .or_else(|| fast_call::decode(d))
        .or_else(|| msr::decode(d))
        .or_else(|| small(d))
}

fn small(d: &mut Decoding) -> Option<Handler> {
    let (handler, ends): (Handler, bool) = match d.ins.mnemonic() {
        Mnemonic::Hlt => (hlt, true),
        Mnemonic::Sti => (sti, true),
        Mnemonic::Cli => (cli, false),
        Mnemonic::Stac => (stac, true),
        Mnemonic::Clac => (clac, true),
        Mnemonic::Cpuid => (cpuid::cpuid, false),
        Mnemonic::Int => {
            d.op.imm = d.immediate(0) & 0xff;
            (int_n, true)
        }
        Mnemonic::Int3 => (int3, true),
        Mnemonic::Int1 => (int1, true),
        Mnemonic::Into => (into, true),
        Mnemonic::Invlpg => (invlpg, false),
        Mnemonic::Wbinvd | Mnemonic::Invd => (privileged_nop, false),
        _ => return None,
    };
    d.ends = ends;
    Some(handler)
}

impl Cpu {
    /// #GP(0) unless at privilege level 0.
    pub(crate) fn require_supervisor(&mut self) -> Result<(), Stop> {
        if self.cpl == 0 {
            Ok(())
        } else {
            Err(self.raise_gp(0))
        }
    }

    /// No interrupt before the next instruction has retired.
    pub(crate) fn shadow_next(&mut self) {
        self.interrupt_shadow = true;
        self.attention |= attention::SHADOW;
    }
}

fn hlt(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    cpu.advance(op);
    cpu.halted = true;
    cpu.attention |= attention::HALTED;
    Ok(())
}

fn sti(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if cpu.cpl > cpu.iopl() {
        return Err(cpu.raise_gp(0));
    }
    cpu.advance(op);
    if !cpu.control_flag(IF) {
        cpu.set_rflags(cpu.rflags() | IF);
        cpu.shadow_next();
    }
    Ok(())
}

fn cli(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if cpu.cpl > cpu.iopl() {
        return Err(cpu.raise_gp(0));
    }
    cpu.control &= !IF;
    Ok(())
}

fn stac(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    set_ac(cpu, op, true)
}

fn clac(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    set_ac(cpu, op, false)
}

fn set_ac(cpu: &mut Cpu, op: &Op, on: bool) -> Result<(), Stop> {
    if cpu.cpl != 0 {
        return Err(cpu.raise_ud());
    }
    cpu.advance(op);
    let flags = cpu.rflags() & !AC;
    cpu.set_rflags(if on { flags | AC } else { flags });
    Ok(())
}

fn int_n(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.software_interrupt(op.imm as u8, cpu.next_ip(op), true)
}

fn int3(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.software_interrupt(vector::BP, cpu.next_ip(op), true)
}

fn int1(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.software_interrupt(vector::DB, cpu.next_ip(op), false)
}

fn into(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if cpu.status & crate::flags::OF != 0 {
        return cpu.software_interrupt(vector::OF, cpu.next_ip(op), true);
    }
    cpu.advance(op);
    Ok(())
}

/// The TLB is coherent with the tables: there is nothing to drop.
fn invlpg(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()
}

/// WBINVD, INVD: there is no cache.
fn privileged_nop(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()
}

/// MOV and POP of segment registers, LDS and its kind.
fn segment_moves(d: &mut Decoding) -> Option<Handler> {
    let mnemonic = d.ins.mnemonic();
    match d.ins.code() {
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
            d.op.src = segment(d.ins.op_register(1));
            if d.is_memory(0) {
                return Some(mov_m_sreg);
            }
            d.op.dst = d.reg(0);
            return Some(mov_r_sreg);
        }
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
            d.op.dst = segment(d.ins.op_register(0));
            d.ends = true;
            // CS cannot be loaded by MOV.
            if d.op.dst == seg::CS {
                return None;
            }
            if d.is_memory(1) {
                return Some(mov_sreg_m);
            }
            d.op.src = d.reg(1);
            return Some(mov_sreg_r);
        }
        _ => {}
    }
    let target = match mnemonic {
        Mnemonic::Pop
            if d.ins.op_kind(0) == OpKind::Register
                && d.ins.op_register(0).is_segment_register() =>
        {
            d.op.dst = segment(d.ins.op_register(0));
            d.op.extra = d.ins.stack_pointer_increment() as u8;
            d.op.seg = seg::SS;
            d.ends = true;
            return Some(pop_sreg);
        }
        Mnemonic::Lds => seg::DS,
        Mnemonic::Les => seg::ES,
        Mnemonic::Lfs => seg::FS,
        Mnemonic::Lgs => seg::GS,
        Mnemonic::Lss => seg::SS,
        _ => return None,
    };
    d.op.src = target;
    d.op.dst = d.reg(0);
    d.ends = true;
    Some(load_far_pointer)
}

fn mov_r_sreg(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = u64::from(cpu.seg[usize::from(op.src)].selector);
    if op.operand_size() == 2 {
        u16::set(&mut cpu.gpr, op.dst, v as u16);
    } else {
        u64::set(&mut cpu.gpr, op.dst, v);
    }
    Ok(())
}

fn mov_m_sreg(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let at = General::linear(cpu, op, 2, Access::Write)?;
    cpu.store::<u16>(at, cpu.seg[usize::from(op.src)].selector)
}

fn mov_sreg_r(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let selector = u16::get(&cpu.gpr, op.src);
    mov_sreg(cpu, op, selector)
}

fn mov_sreg_m(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let at = General::linear(cpu, op, 2, Access::Read)?;
    let selector = cpu.load::<u16>(at)?;
    mov_sreg(cpu, op, selector)
}

fn mov_sreg(cpu: &mut Cpu, op: &Op, selector: u16) -> Result<(), Stop> {
    cpu.load_segment(op.dst, selector)?;
    cpu.advance(op);
    if op.dst == seg::SS {
        cpu.shadow_next();
    }
    Ok(())
}

fn pop_sreg(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    // Only the selector's 16 bits are read.
    let selector = cpu.peek_at(0, 2)? as u16;
    // The old SS says how wide the stack pointer is.
    let new = cpu.segment_for(op.dst, selector)?;
    cpu.drop_stack(u64::from(op.extra));
    cpu.seg[usize::from(op.dst)] = new;
    cpu.advance(op);
    if op.dst == seg::SS {
        cpu.shadow_next();
    }
    Ok(())
}

fn load_far_pointer(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = op.operand_size();
    let (selector, offset) = far::far_pointer(cpu, op, size)?;
    cpu.load_segment(op.src, selector)?;
    match size {
        2 => u16::set(&mut cpu.gpr, op.dst, offset as u16),
        4 => u32::set(&mut cpu.gpr, op.dst, offset as u32),
        _ => u64::set(&mut cpu.gpr, op.dst, offset),
    }
    cpu.advance(op);
    Ok(())
}

/// RDFSBASE and its kind; also used by WRMSR: the base of FS or GS, if it is canonical.
pub(crate) fn set_base(cpu: &mut Cpu, segment: u8, base: u64) -> Result<(), Stop> {
    if !is_canonical(base) {
        return Err(cpu.raise_gp(0));
    }
    cpu.seg[usize::from(segment)].base = base;
    Ok(())
}

/// Whether an operand of 64-bit code only.
pub(crate) fn is_64(cpu: &Cpu) -> bool {
    cpu.code_mode == CodeMode::Bits64
}

/// Loads an operand of type `T` from the instruction's memory operand.
pub(crate) fn operand<T: Width>(cpu: &mut Cpu, op: &Op) -> Result<T, Stop> {
    let at = General::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    cpu.load::<T>(at)
}

/// RAX and RDX as the halves of a 64-bit value.
pub(crate) fn edx_eax(cpu: &Cpu) -> u64 {
    let low = cpu.gpr[usize::from(reg::RAX)] & 0xffff_ffff;
    low | cpu.gpr[usize::from(reg::RDX)] << 32
}

/// Puts a 64-bit value into EDX:EAX.
pub(crate) fn set_edx_eax(cpu: &mut Cpu, v: u64) {
    cpu.gpr[usize::from(reg::RAX)] = v & 0xffff_ffff;
    cpu.gpr[usize::from(reg::RDX)] = v >> 32;
}
