//! PUSH, POP, PUSHA, POPA, ENTER, LEAVE. POP of segment registers and PUSHF, POPF are in `system`.

use iced_x86::{Code, Mnemonic, OpKind, Register};

use super::pick::addressed;
use super::pick::sized_word;
use crate::chain::{Link, chained};
use crate::cpu::{CodeMode, Cpu, reg, seg};
use crate::decode::{Decoding, segment};
use crate::ea::{Address, truncate};
use crate::op::Op;
use crate::segments::Access;
use crate::stop::{Stop, StopReason, vector};
use crate::width::Int;

const RSP: usize = reg::RSP as usize;
const RBP: usize = reg::RBP as usize;

impl Cpu {
    /// A stop of a stack access: what is not canonical is #SS(0).
    #[cold]
    fn stack_stop(&mut self, stop: Stop) -> Stop {
        if self.stop == StopReason::NonCanonical {
            return self.raise(vector::SS, Some(0));
        }
        stop
    }

    /// Pushes 8 bytes in 64-bit mode.
    #[inline(always)]
    pub fn push_64(&mut self, v: u64) -> Result<(), Stop> {
        let rsp = self.gpr[RSP].wrapping_sub(8);
        if let Err(stop) = self.store(rsp, v) {
            return Err(self.stack_stop(stop));
        }
        self.gpr[RSP] = rsp;
        Ok(())
    }

    /// The 8 bytes on top of the stack in 64-bit mode.
    #[inline(always)]
    pub fn peek_64(&mut self) -> Result<u64, Stop> {
        match self.load(self.gpr[RSP]) {
            Ok(v) => Ok(v),
            Err(stop) => Err(self.stack_stop(stop)),
        }
    }

    /// The stack pointer moved by `delta`, at the width of the stack.
    fn moved_rsp(&self, rsp: u64, delta: u64) -> u64 {
        let moved = rsp.wrapping_add(delta);
        match self.stack_size() {
            2 => rsp & !0xffff | moved & 0xffff,
            4 => moved & 0xffff_ffff,
            _ => moved,
        }
    }

    /// Loads `size` bytes (2, 4, 8) of the stack at RSP + `delta`.
    fn load_stack(&mut self, rsp: u64, size: u8) -> Result<u64, Stop> {
        let offset = truncate(rsp, self.stack_size());
        let result = self
            .linear(seg::SS, offset, u64::from(size), Access::Read)
            .and_then(|at| match size {
                2 => self.load::<u16>(at).map(u64::from),
                4 => self.load::<u32>(at).map(u64::from),
                _ => self.load::<u64>(at),
            });
        result.map_err(|stop| self.stack_stop(stop))
    }

    fn store_stack(&mut self, rsp: u64, size: u8, v: u64) -> Result<(), Stop> {
        let offset = truncate(rsp, self.stack_size());
        let result = self
            .linear(seg::SS, offset, u64::from(size), Access::Write)
            .and_then(|at| match size {
                2 => self.store(at, v as u16),
                4 => self.store(at, v as u32),
                _ => self.store(at, v),
            });
        result.map_err(|stop| self.stack_stop(stop))
    }

    /// Makes sure that `size` bytes at RSP value `rsp` can be stored.
    fn probe_stack(&mut self, rsp: u64, size: u64) -> Result<(), Stop> {
        let offset = truncate(rsp, self.stack_size());
        let linear = self.linear(seg::SS, offset, size, Access::Write)?;
        let result = self.prepare_store(linear, size);
        result.map_err(|stop| self.stack_stop(stop))
    }

    /// Pushes `size` bytes (2, 4, 8) in any mode.
    pub fn push(&mut self, size: u8, v: u64) -> Result<(), Stop> {
        let rsp = self.moved_rsp(self.gpr[RSP], 0u64.wrapping_sub(u64::from(size)));
        self.store_stack(rsp, size, v)?;
        self.gpr[RSP] = rsp;
        Ok(())
    }

    /// Makes sure that a push of `size` bytes will not stop.
    pub fn prepare_push(&mut self, size: u8) -> Result<(), Stop> {
        let rsp = self.moved_rsp(self.gpr[RSP], 0u64.wrapping_sub(u64::from(size)));
        self.prepare_stack(rsp, size)
    }

    fn prepare_stack(&mut self, rsp: u64, size: u8) -> Result<(), Stop> {
        let offset = truncate(rsp, self.stack_size());
        let linear = self.linear(seg::SS, offset, u64::from(size), Access::Write)?;
        self.prepare_store(linear, u64::from(size))
            .map_err(|stop| self.stack_stop(stop))
    }

    /// The `size` bytes (2, 4, 8) on top of the stack, in any mode.
    pub fn peek(&mut self, size: u8) -> Result<u64, Stop> {
        self.load_stack(self.gpr[RSP], size)
    }

    /// Moves the stack pointer up by `bytes`.
    pub fn release_stack(&mut self, bytes: u64) {
        self.gpr[RSP] = self.moved_rsp(self.gpr[RSP], bytes);
    }

    /// Pops `size` bytes (2, 4, 8) in any mode.
    pub fn pop(&mut self, size: u8) -> Result<u64, Stop> {
        let v = self.peek(size)?;
        self.release_stack(u64::from(size));
        Ok(v)
    }
}

pub fn decode(d: &mut Decoding) -> Option<Link> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Push => push(d),
        Mnemonic::Pop => return pop(d),
        Mnemonic::Pusha => sized_extra(d, 2, chained(pusha)),
        Mnemonic::Pushad => sized_extra(d, 4, chained(pusha)),
        Mnemonic::Popa => sized_extra(d, 2, chained(popa)),
        Mnemonic::Popad => sized_extra(d, 4, chained(popa)),
        Mnemonic::Enter => {
            let size = match d.ins.code() {
                Code::Enterw_imm16_imm8 => 2,
                Code::Enterd_imm16_imm8 => 4,
                _ => 8,
            };
            d.op.imm = d.immediate(0) & 0xffff | (d.immediate(1) & 31) << 16;
            sized_extra(d, size, chained(enter))
        }
        Mnemonic::Leave => match d.ins.code() {
            Code::Leavew => sized_extra(d, 2, chained(leave)),
            Code::Leaved => sized_extra(d, 4, chained(leave)),
            _ => sized_extra(d, 8, chained(leave)),
        },
        _ => return None,
    })
}

fn sized_extra(d: &mut Decoding, size: u8, link: Link) -> Link {
    d.op.extra = size;
    link
}

/// How many bytes a PUSH or POP moves: iced knows it as the change of the stack pointer.
fn stack_bytes(d: &Decoding) -> u8 {
    d.ins.stack_pointer_increment().unsigned_abs() as u8
}

fn push(d: &mut Decoding) -> Link {
    let size = stack_bytes(d);
    d.op.extra = size;
    match d.ins.op_kind(0) {
        OpKind::Register if d.ins.op_register(0).is_segment_register() => {
            d.op.src = segment(d.ins.op_register(0));
            chained(push_segment)
        }
        OpKind::Register => {
            d.op.src = d.reg(0);
            if d.mode == CodeMode::Bits64 && size == 8 {
                chained(push_r64)
            } else {
                chained(push_r)
            }
        }
        OpKind::Memory => sized_word!(size, T => addressed!(d, A => chained(push_m::<T, A>))),
        _ => {
            d.op.imm = d.immediate(0);
            if d.mode == CodeMode::Bits64 && size == 8 {
                chained(push_i64)
            } else {
                chained(push_i)
            }
        }
    }
}

fn push_r64(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.push_64(u64::get(&cpu.gpr, op.src))
}

fn push_i64(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.push_64(op.imm)
}

fn push_r(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.push(op.extra, u64::get(&cpu.gpr, op.src))
}

fn push_i(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.push(op.extra, op.imm)
}

fn push_m<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let v = cpu.load::<T>(linear)?.to_u64();
    cpu.push(T::BYTES as u8, v)
}

/// A 32-bit push of a selector writes only 16 bits, as Intel's processors do.
fn push_segment(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let selector = u64::from(cpu.seg[usize::from(op.src)].selector);
    if op.extra != 4 {
        return cpu.push(op.extra, selector);
    }
    let rsp = cpu.moved_rsp(cpu.gpr[RSP], 4u64.wrapping_neg());
    cpu.store_stack(rsp, 2, selector)?;
    cpu.gpr[RSP] = rsp;
    Ok(())
}

fn pop(d: &mut Decoding) -> Option<Link> {
    let size = stack_bytes(d);
    d.op.extra = size;
    if d.is_memory(0) {
        return Some(sized_word!(size, T => addressed!(d, A => chained(pop_m::<T, A>))));
    }
    if d.ins.op_register(0).is_segment_register() || d.ins.op_register(0) == Register::None {
        return None;
    }
    d.op.dst = d.reg(0);
    Some(if d.mode == CodeMode::Bits64 && size == 8 {
        chained(pop_r64)
    } else {
        sized_word!(size, T => chained(pop_r::<T>))
    })
}

fn pop_r64(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = cpu.peek_64()?;
    cpu.gpr[RSP] = cpu.gpr[RSP].wrapping_add(8);
    u64::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}

fn pop_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = cpu.pop(T::BYTES as u8)?;
    T::set(&mut cpu.gpr, op.dst, T::from_u64(v));
    Ok(())
}

/// The address is formed with RSP already moved (SDM vol. 2, POP).
fn pop_m<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let old = cpu.gpr[RSP];
    let v = cpu.pop(T::BYTES as u8)?;
    let result = A::linear(cpu, op, T::BYTES as u64, Access::Write)
        .and_then(|linear| cpu.store(linear, T::from_u64(v)));
    if result.is_err() {
        cpu.gpr[RSP] = old;
    }
    result
}

/// Each slot is checked by itself, as they may wrap around the segment.
fn pusha(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = u64::from(op.extra);
    let old = cpu.gpr[RSP];
    let slot = |cpu: &Cpu, i: u64| cpu.moved_rsp(old, (size * (i + 1)).wrapping_neg());
    for i in 0..8 {
        cpu.probe_stack(slot(cpu, i), size)?;
    }
    for i in 0..8 {
        let v = cpu.gpr[i as usize];
        cpu.store_stack(slot(cpu, i), op.extra, v)?;
    }
    cpu.gpr[RSP] = slot(cpu, 7);
    Ok(())
}

fn popa(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = u64::from(op.extra);
    let old = cpu.gpr[RSP];
    let mut values = [0; 8];
    for (i, value) in values.iter_mut().enumerate() {
        let at = cpu.moved_rsp(old, size * i as u64);
        *value = cpu.load_stack(at, op.extra)?;
    }
    for (i, value) in values.iter().enumerate() {
        // In memory from EDI up to EAX; the slot of ESP is skipped.
        let register = 7 - i as u8;
        if register == reg::RSP {
            continue;
        }
        if op.extra == 2 {
            u16::set(&mut cpu.gpr, register, *value as u16);
        } else {
            u32::set(&mut cpu.gpr, register, *value as u32);
        }
    }
    cpu.release_stack(size * 8);
    Ok(())
}

fn leave(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let old = cpu.gpr[RSP];
    let base = cpu.gpr[RBP];
    let frame = match cpu.stack_size() {
        2 => old & !0xffff | base & 0xffff,
        4 => base & 0xffff_ffff,
        _ => base,
    };
    let v = cpu.load_stack(frame, op.extra)?;
    cpu.gpr[RSP] = cpu.moved_rsp(frame, u64::from(op.extra));
    sized_word!(op.extra, T => T::set(&mut cpu.gpr, reg::RBP, T::from_u64(v)));
    Ok(())
}

/// Everything is read and checked first, then written (SDM vol. 2, ENTER).
fn enter(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (alloc, level) = (op.imm & 0xffff, op.imm >> 16);
    let size = u64::from(op.extra);
    let (rsp, rbp) = (cpu.gpr[RSP], cpu.gpr[RBP]);
    let slot = |cpu: &Cpu, i: u64| cpu.moved_rsp(rsp, (size * (i + 1)).wrapping_neg());
    let outer = |cpu: &Cpu, i: u64| cpu.moved_rsp(rbp, (size * i).wrapping_neg());
    let frame = slot(cpu, 0);
    let mut display = [0; 32];
    display[0] = rbp;
    if level > 0 {
        display[level as usize] = frame;
    }
    let words = level + 1;
    for i in 0..words {
        if i > 0 && i < level {
            display[i as usize] = cpu.load_stack(outer(cpu, i), op.extra)?;
        }
        cpu.probe_stack(slot(cpu, i), size)?;
    }
    // The new top of the stack must be writable too.
    let bottom = cpu.moved_rsp(rsp, (size * words + alloc).wrapping_neg());
    cpu.probe_stack(bottom, size)?;
    for i in 0..words {
        let at = outer(cpu, i);
        // Slots rsp - size * i .. rsp are written.
        let past = at
            .wrapping_add(size)
            .wrapping_sub(rsp.wrapping_sub(size * i));
        let written = past.wrapping_sub(1) < size * (i + 1) - 1;
        if i > 0 && i < level && written {
            // An outer frame pointer that has just been overwritten.
            display[i as usize] = cpu.load_stack(at, op.extra)?;
        }
        cpu.store_stack(slot(cpu, i), op.extra, display[i as usize])?;
    }
    cpu.gpr[RSP] = bottom;
    sized_word!(op.extra, T => T::set(&mut cpu.gpr, reg::RBP, T::from_u64(frame)));
    Ok(())
}
