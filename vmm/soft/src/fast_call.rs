//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, RDFSBASE and its kind.

use engine::Segment;
use iced_x86::Mnemonic;

use crate::control::{cr4, efer};
use crate::cpu::{Cpu, reg, seg};
use crate::decode::Decoding;
use crate::flags::{ALL, IF, RF, TF, VM};
use crate::mmu::is_canonical;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::system::{is_64, set_base};
use crate::width::Int;

const RSP: usize = reg::RSP as usize;
const RCX: usize = reg::RCX as usize;
const R11: usize = 11;

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    let size = d.op.operand_size();
    let handler: Handler = match d.ins.mnemonic() {
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => sysret,
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => sysexit,
        Mnemonic::Swapgs => {
            return Some(swapgs);
        }
        Mnemonic::Rdfsbase => return Some(base_op(d, seg::FS, size, rd_base)),
        Mnemonic::Rdgsbase => return Some(base_op(d, seg::GS, size, rd_base)),
        Mnemonic::Wrfsbase => return Some(base_op(d, seg::FS, size, wr_base)),
        Mnemonic::Wrgsbase => return Some(base_op(d, seg::GS, size, wr_base)),
        _ => return None,
    };
    d.ends = true;
    Some(handler)
}

fn base_op(d: &mut Decoding, segment: u8, size: u8, handler: Handler) -> Handler {
    d.op.dst = d.reg(0);
    d.op.src = segment;
    d.op.extra = size;
    handler
}

/// A flat code segment with this selector: 64-bit or 32-bit.
fn flat_code(selector: u16, long: bool) -> Segment {
    let dpl = u32::from(selector & 3) << 5;
    Segment {
        selector,
        access: if long { 0xa09b } else { 0xc09b } | dpl,
        base: 0,
        limit: u32::MAX,
    }
}

fn flat_data(selector: u16) -> Segment {
    let dpl = u32::from(selector & 3) << 5;
    Segment {
        selector,
        access: 0xc093 | dpl,
        base: 0,
        limit: u32::MAX,
    }
}

impl Cpu {
    /// Enters flat code at the privilege level of its selector.
    fn enter_flat(&mut self, code: u16, stack: u16, long: bool) {
        self.seg[usize::from(seg::CS)] = flat_code(code, long);
        self.seg[usize::from(seg::SS)] = flat_data(stack);
        self.cpl = (code & 3) as u8;
        self.update_mode();
    }
}

fn syscall(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if !is_64(cpu) || cpu.msrs.efer & efer::SCE == 0 {
        return Err(cpu.raise_ud());
    }
    let flags = cpu.rflags() & !RF;
    cpu.gpr[RCX] = cpu.next_ip(op);
    cpu.gpr[R11] = flags;
    cpu.rip = cpu.msrs.lstar;
    let code = (cpu.msrs.star >> 32) as u16 & !3;
    cpu.enter_flat(code, code.wrapping_add(8), true);
    cpu.trap_suppressed = cpu.msrs.sfmask & TF != 0;
    cpu.set_rflags(flags & !cpu.msrs.sfmask);
    Ok(())
}

fn sysret(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if !is_64(cpu) || cpu.msrs.efer & efer::SCE == 0 {
        return Err(cpu.raise_ud());
    }
    cpu.require_supervisor()?;
    let long = op.operand_size() == 8;
    let target = cpu.gpr[RCX];
    if long && !is_canonical(target) {
        return Err(cpu.raise_gp(0));
    }
    let base = (cpu.msrs.star >> 48) as u16;
    let stack = base.wrapping_add(8) | 3;
    if long {
        cpu.enter_flat(base.wrapping_add(16) | 3, stack, true);
        cpu.rip = target;
    } else {
        cpu.enter_flat(base | 3, stack, false);
        cpu.rip = target & 0xffff_ffff;
    }
    let allowed = ALL & !(RF | VM);
    cpu.change_flags(cpu.gpr[R11], allowed);
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let code = cpu.msrs.sysenter_cs as u16 & !3;
    if !cpu.protected() || code == 0 {
        return Err(cpu.raise_gp(0));
    }
    let long = cpu.long_mode();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.rip = cpu.msrs.sysenter_eip & mask;
    cpu.gpr[RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.enter_flat(code, code.wrapping_add(8), long);
    cpu.set_rflags(cpu.rflags() & !(VM | IF | RF));
    Ok(())
}

fn sysexit(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let base = cpu.msrs.sysenter_cs as u16;
    if base & !3 == 0 || !cpu.protected() || cpu.cpl != 0 {
        return Err(cpu.raise_gp(0));
    }
    let (ip, sp) = (cpu.gpr[usize::from(reg::RDX)], cpu.gpr[RCX]);
    if op.operand_size() == 8 {
        if !is_canonical(ip) || !is_canonical(sp) {
            return Err(cpu.raise_gp(0));
        }
        cpu.enter_flat(base.wrapping_add(32) | 3, base.wrapping_add(40) | 3, true);
        cpu.rip = ip;
        cpu.gpr[RSP] = sp;
    } else {
        cpu.enter_flat(base.wrapping_add(16) | 3, base.wrapping_add(24) | 3, false);
        cpu.rip = ip & 0xffff_ffff;
        cpu.gpr[RSP] = sp & 0xffff_ffff;
    }
    Ok(())
}

fn swapgs(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    if !is_64(cpu) {
        return Err(cpu.raise_ud());
    }
    cpu.require_supervisor()?;
    let gs = &mut cpu.seg[usize::from(seg::GS)].base;
    std::mem::swap(gs, &mut cpu.msrs.kernel_gs_base);
    Ok(())
}

fn check_base_op(cpu: &mut Cpu) -> Result<(), Stop> {
    if !is_64(cpu) || cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.raise_ud());
    }
    Ok(())
}

fn rd_base(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    check_base_op(cpu)?;
    let base = cpu.seg[usize::from(op.src)].base;
    if op.extra == 8 {
        u64::set(&mut cpu.gpr, op.dst, base);
    } else {
        u32::set(&mut cpu.gpr, op.dst, base as u32);
    }
    Ok(())
}

fn wr_base(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    check_base_op(cpu)?;
    let v = if op.extra == 8 {
        u64::get(&cpu.gpr, op.dst)
    } else {
        u64::from(u32::get(&cpu.gpr, op.dst))
    };
    set_base(cpu, op.src, v)
}
