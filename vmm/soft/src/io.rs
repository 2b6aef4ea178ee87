//! Port I/O: IN, OUT, INS, OUTS and the permission to do them (SDM vol. 1, chapter 19).

use engine::{Boundary, PendingRead};
use iced_x86::{Mnemonic, OpKind};

use crate::cpu::{Cpu, reg, seg};
use crate::decode::Decoding;
use crate::ea::truncate;
use crate::flags::DF;
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::stop::Stop;
use crate::tasks::is_wide;
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    let (handler, size): (Handler, u8) = match d.ins.mnemonic() {
        Mnemonic::In => {
            port_operand(d, 1);
            let size = d.ins.op_register(0).size() as u8;
            (input, size)
        }
        Mnemonic::Out => {
            port_operand(d, 0);
            let size = d.ins.op_register(1).size() as u8;
            (output, size)
        }
        Mnemonic::Insb => (ins, 1),
        Mnemonic::Insw => (ins, 2),
        Mnemonic::Insd => (ins, 4),
        Mnemonic::Outsb => (outs, 1),
        Mnemonic::Outsw => (outs, 2),
        Mnemonic::Outsd => (outs, 4),
        _ => return None,
    };
    match d.ins.mnemonic() {
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => d.op.seg = seg::ES,
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            d.op.seg = crate::decode::segment(d.ins.memory_segment());
        }
        _ => {}
    }
    d.op.extra = size;
    if d.ins.has_rep_prefix() || d.ins.has_repne_prefix() {
        d.op.dst = 1;
    } else if size_is_string(d.ins.mnemonic()) {
        d.op.dst = 0;
    }
    d.ends = true;
    Some(handler)
}

fn size_is_string(m: Mnemonic) -> bool {
    !matches!(m, Mnemonic::In | Mnemonic::Out)
}

/// `src` is 1 for a port in DX, else `imm` is the port.
fn port_operand(d: &mut Decoding, i: u32) {
    if d.ins.op_kind(i) == OpKind::Register {
        d.op.src = 1;
    } else {
        d.op.src = 0;
        d.op.imm = d.immediate(i) & 0xff;
    }
}

fn port(cpu: &Cpu, op: &Op) -> u16 {
    if op.src == 1 {
        cpu.gpr[usize::from(reg::RDX)] as u16
    } else {
        op.imm as u16
    }
}

impl Cpu {
    /// Whether `size` ports from `port` on may be accessed: #GP(0) if not.
    fn check_port(&mut self, port: u16, size: u8) -> Result<(), Stop> {
        if !self.protected() || self.cpl <= self.iopl() {
            return Ok(());
        }
        if !is_wide(&self.tr) {
            return Err(self.raise_gp(0));
        }
        let limit = u64::from(self.tr.limit);
        if limit < 0x67 {
            return Err(self.raise_gp(0));
        }
        let at = self.system_address(self.tr.base, 0x66);
        let map = u64::from(self.load_sys::<u16>(at)?);
        let byte = map + u64::from(port / 8);
        // Two bytes are read, so both must be there.
        if byte + 1 > limit {
            return Err(self.raise_gp(0));
        }
        let at = self.system_address(self.tr.base, byte);
        let bits = self.load_sys::<u16>(at)? >> (port % 8);
        if bits & ((1 << size) - 1) != 0 {
            return Err(self.raise_gp(0));
        }
        Ok(())
    }
}

fn input(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let port = port(cpu, op);
    cpu.check_port(port, op.extra)?;
    let size = op.extra;
    let v = cpu.external_read(PendingRead::Io { port, size })?;
    match size {
        1 => u8::set(&mut cpu.gpr, reg::RAX, v as u8),
        2 => u16::set(&mut cpu.gpr, reg::RAX, v as u16),
        _ => u32::set(&mut cpu.gpr, reg::RAX, v as u32),
    }
    cpu.advance(op);
    Ok(())
}

fn output(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let port = port(cpu, op);
    let size = op.extra;
    cpu.check_port(port, size)?;
    let value = truncate_to(cpu.gpr[usize::from(reg::RAX)], size);
    cpu.external_write(Boundary::IoWrite { port, size, value });
    cpu.advance(op);
    Ok(())
}

fn truncate_to(v: u64, size: u8) -> u32 {
    (v & (u64::MAX >> (64 - 8 * u32::from(size)))) as u32
}

/// With REP and a count of 0: nothing is done but to go on. Else the count, before the iteration.
fn count(cpu: &mut Cpu, op: &Op) -> Option<u64> {
    if op.dst == 0 {
        return Some(1);
    }
    let left = truncate(cpu.gpr[usize::from(reg::RCX)], op.address_size());
    (left != 0).then_some(left)
}

/// One iteration is done: moves the index register, counts down, goes on with this or the next
/// instruction.
fn iterated(cpu: &mut Cpu, op: &Op, index: u8, left: u64) {
    let size = u64::from(op.extra);
    let step = if cpu.control_flag(DF) {
        size.wrapping_neg()
    } else {
        size
    };
    let moved = cpu.gpr[usize::from(index)].wrapping_add(step);
    set_address(cpu, op, index, moved);
    if op.dst != 0 {
        set_address(cpu, op, reg::RCX, left - 1);
    }
    if op.dst != 0 && left > 1 {
        cpu.rip = cpu.ip(op);
    } else {
        cpu.advance(op);
    }
}

fn set_address(cpu: &mut Cpu, op: &Op, register: u8, v: u64) {
    match op.address_size() {
        2 => u16::set(&mut cpu.gpr, register, v as u16),
        4 => u32::set(&mut cpu.gpr, register, v as u32),
        _ => u64::set(&mut cpu.gpr, register, v),
    }
}

fn ins(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = op.extra;
    let port = cpu.gpr[usize::from(reg::RDX)] as u16;
    // Even if the count is 0.
    cpu.check_port(port, size)?;
    let Some(left) = count(cpu, op) else {
        cpu.advance(op);
        return Ok(());
    };
    let offset = truncate(cpu.gpr[usize::from(reg::RDI)], op.address_size());
    let at = cpu.linear(seg::ES, offset, u64::from(size), Access::Write)?;
    cpu.prepare_store(at, u64::from(size))?;
    let v = cpu.external_read(PendingRead::Io { port, size })?;
    match size {
        1 => cpu.store::<u8>(at, v as u8)?,
        2 => cpu.store::<u16>(at, v as u16)?,
        _ => cpu.store::<u32>(at, v as u32)?,
    }
    iterated(cpu, op, reg::RDI, left);
    Ok(())
}

fn outs(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = op.extra;
    let port = cpu.gpr[usize::from(reg::RDX)] as u16;
    // Even if the count is 0.
    cpu.check_port(port, size)?;
    let Some(left) = count(cpu, op) else {
        cpu.advance(op);
        return Ok(());
    };
    let offset = truncate(cpu.gpr[usize::from(reg::RSI)], op.address_size());
    let at = cpu.linear(op.seg, offset, u64::from(size), Access::Read)?;
    let value = match size {
        1 => u32::from(cpu.load::<u8>(at)?),
        2 => u32::from(cpu.load::<u16>(at)?),
        _ => cpu.load::<u32>(at)?,
    };
    cpu.external_write(Boundary::IoWrite { port, size, value });
    iterated(cpu, op, reg::RSI, left);
    Ok(())
}
