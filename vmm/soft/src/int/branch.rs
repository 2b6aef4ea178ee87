//! Near control flow: JMP, Jcc, CALL, RET, LOOP, JCXZ. Far transfers are in `system`.

use iced_x86::{Code, Mnemonic};

use super::cond::{by_condition, code, holds};
use super::pick::{addressed, sized_word};
use crate::chain::{Link, ending};
use crate::cpu::{CodeMode, Cpu, reg, seg};
use crate::decode::Decoding;
use crate::ea::{Address, truncate};
use crate::flags::ZF;
use crate::op::Op;
use crate::segments::Access;
use crate::stop::Stop;
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    let ins = d.ins;
    let long = d.mode == CodeMode::Bits64;
    let link = if ins.is_jcc_short_or_near() {
        relative(d);
        by_condition!(code(d), C => if long { ending(jcc_64::<C>) } else { ending(jcc::<C>) })
    } else if ins.is_jmp_short_or_near() {
        relative(d);
        if long { ending(jmp_64) } else { ending(jmp) }
    } else if ins.is_call_near() {
        relative(d);
        if long { ending(call_64) } else { ending(call) }
    } else if ins.is_jmp_near_indirect() {
        indirect(d, false)
    } else if ins.is_call_near_indirect() {
        indirect(d, true)
    } else {
        match ins.mnemonic() {
            Mnemonic::Ret => ret(d),
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
                relative(d);
                match ins.mnemonic() {
                    Mnemonic::Loop => ending(loop_any),
                    Mnemonic::Loope => ending(loop_flag::<true>),
                    _ => ending(loop_flag::<false>),
                }
            }
            Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => {
                relative(d);
                ending(jcxz)
            }
            _ => return None,
        }
    };
    Some(link)
}

/// Puts the target, as an offset from the start of the block, into `imm`; the size to which it is
/// truncated into `extra`; the size of the counter register of LOOP and JCXZ into `dst`.
fn relative(d: &mut Decoding) {
    let target = d.ins.near_branch_target();
    d.op.extra = match d.ins.op0_kind() {
        iced_x86::OpKind::NearBranch16 => 2,
        iced_x86::OpKind::NearBranch32 => 4,
        _ => 8,
    };
    d.op.imm = target.wrapping_add(u64::from(d.op.offset));
    d.op.dst = match d.ins.mnemonic() {
        Mnemonic::Jcxz => 2,
        Mnemonic::Jecxz => 4,
        Mnemonic::Jrcxz => 8,
        _ => d.op.address_size(),
    };
}

/// Whether a linear address is canonical with 48 bits.
#[inline(always)]
pub fn canonical(linear: u64) -> bool {
    ((linear as i64) << 16 >> 16) as u64 == linear
}

impl Cpu {
    /// Checks the target of a near branch, truncated to `size` bytes; #GP(0) outside CS or if not
    /// canonical.
    pub fn near_target(&mut self, target: u64, size: u8) -> Result<u64, Stop> {
        let target = truncate(target, size);
        let good = if self.code_mode == CodeMode::Bits64 {
            canonical(target)
        } else {
            target <= u64::from(self.seg[usize::from(seg::CS)].limit)
        };
        if good {
            Ok(target)
        } else {
            Err(self.raise_gp(0))
        }
    }

    /// Whether `bytes` of code at RIP lie within the limit of CS.
    #[inline(always)]
    pub fn within_code_segment(&self, bytes: u64) -> bool {
        self.code_mode == CodeMode::Bits64
            || self.rip + (bytes - 1) <= u64::from(self.seg[usize::from(seg::CS)].limit)
            || self.seg[usize::from(seg::CS)].limit == u32::MAX
    }

    #[inline(always)]
    fn relative_target_64(&mut self, op: &Op) -> Result<u64, Stop> {
        let target = self.rip.wrapping_add(op.imm);
        if canonical(target) {
            Ok(target)
        } else {
            Err(self.raise_gp(0))
        }
    }

    fn relative_target(&mut self, op: &Op) -> Result<u64, Stop> {
        self.near_target(self.rip.wrapping_add(op.imm), op.extra)
    }
}

fn jcc_64<const C: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if holds::<C>(cpu.status) {
        cpu.rip = cpu.relative_target_64(op)?;
    } else {
        cpu.rip = cpu.rip.wrapping_add(op.end());
    }
    Ok(())
}

fn jcc<const C: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    branch_if(cpu, op, holds::<C>(cpu.status))
}

fn branch_if(cpu: &mut Cpu, op: &Op, taken: bool) -> Result<(), Stop> {
    if taken {
        cpu.rip = cpu.relative_target(op)?;
    } else {
        cpu.advance(op);
    }
    Ok(())
}

fn jmp_64(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.rip = cpu.relative_target_64(op)?;
    Ok(())
}

fn jmp(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.rip = cpu.relative_target(op)?;
    Ok(())
}

fn call_64(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let target = cpu.relative_target_64(op)?;
    cpu.push_64(cpu.rip.wrapping_add(op.end()))?;
    cpu.rip = target;
    Ok(())
}

fn call(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let target = cpu.relative_target(op)?;
    cpu.push(op.extra, cpu.next_ip(op))?;
    cpu.rip = target;
    Ok(())
}

fn indirect(d: &mut Decoding, call: bool) -> Link {
    let width = d.width(0);
    d.op.extra = width as u8;
    if d.is_register(0) {
        d.op.src = d.reg(0);
        return match (width, call) {
            (8, false) => ending(jmp_r64),
            (8, true) => ending(call_r64),
            (_, false) => sized_word!(width, T => ending(jmp_r::<T>)),
            (_, true) => sized_word!(width, T => ending(call_r::<T>)),
        };
    }
    sized_word!(width, T => addressed!(d, A => if call { ending(call_m::<T, A>) } else { ending(jmp_m::<T, A>) }))
}

fn jmp_r64(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let target = u64::get(&cpu.gpr, op.src);
    cpu.rip = cpu.near_target(target, 8)?;
    Ok(())
}

fn call_r64(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let target = u64::get(&cpu.gpr, op.src);
    let target = call_target(cpu, target, 8)?;
    cpu.push_64(cpu.rip.wrapping_add(op.end()))?;
    cpu.rip = target;
    Ok(())
}

fn jmp_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let target = T::get(&cpu.gpr, op.src).to_u64();
    cpu.rip = cpu.near_target(target, T::BYTES as u8)?;
    Ok(())
}

fn call_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let target = T::get(&cpu.gpr, op.src).to_u64();
    call_to::<T>(cpu, op, target)
}

/// As `near_target`; a fault of the push to come goes before the target's.
#[inline(always)]
fn call_target(cpu: &mut Cpu, target: u64, size: u8) -> Result<u64, Stop> {
    match cpu.near_target(target, size) {
        Ok(target) => Ok(target),
        Err(_) => Err(call_fault(cpu, size)),
    }
}

#[cold]
fn call_fault(cpu: &mut Cpu, size: u8) -> Stop {
    let reason = cpu.stop;
    match cpu.prepare_push(size) {
        Ok(()) => cpu.stop_for(reason),
        Err(stop) => stop,
    }
}

fn call_to<T: Int>(cpu: &mut Cpu, op: &Op, target: u64) -> Result<(), Stop> {
    let target = call_target(cpu, target, T::BYTES as u8)?;
    cpu.push(T::BYTES as u8, cpu.next_ip(op))?;
    cpu.rip = target;
    Ok(())
}

fn jmp_m<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let target = cpu.load::<T>(linear)?.to_u64();
    cpu.rip = cpu.near_target(target, T::BYTES as u8)?;
    Ok(())
}

fn call_m<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let target = cpu.load::<T>(linear)?.to_u64();
    call_to::<T>(cpu, op, target)
}

fn ret(d: &mut Decoding) -> Link {
    d.op.extra = match d.ins.code() {
        Code::Retnw | Code::Retnw_imm16 => 2,
        Code::Retnd | Code::Retnd_imm16 => 4,
        _ => 8,
    };
    if d.ins.op_count() == 1 {
        d.op.imm = d.immediate(0);
    }
    if d.op.extra == 8 {
        ending(ret_64)
    } else {
        ending(ret_any)
    }
}

fn ret_64(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let target = cpu.peek_64()?;
    if !canonical(target) {
        return Err(cpu.raise_gp(0));
    }
    let rsp = &mut cpu.gpr[usize::from(reg::RSP)];
    *rsp = rsp.wrapping_add(8 + op.imm);
    cpu.rip = target;
    Ok(())
}

fn ret_any(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let target = cpu.peek(op.extra)?;
    let target = cpu.near_target(target, op.extra)?;
    cpu.release_stack(u64::from(op.extra) + op.imm);
    cpu.rip = target;
    Ok(())
}

/// Counts RCX down at the counter's size; true if it is not 0 afterwards. The caller commits.
fn counted(cpu: &Cpu, op: &Op) -> (u64, bool) {
    let rcx = cpu.gpr[usize::from(reg::RCX)];
    let count = truncate(rcx.wrapping_sub(1), op.dst);
    let new = match op.dst {
        2 => rcx & !0xffff | count,
        _ => count,
    };
    (new, count != 0)
}

fn loop_any(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (rcx, taken) = counted(cpu, op);
    branch_if(cpu, op, taken)?;
    cpu.gpr[usize::from(reg::RCX)] = rcx;
    Ok(())
}

fn loop_flag<const SET: bool>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (rcx, more) = counted(cpu, op);
    branch_if(cpu, op, more && (cpu.status & ZF != 0) == SET)?;
    cpu.gpr[usize::from(reg::RCX)] = rcx;
    Ok(())
}

fn jcxz(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let zero = truncate(cpu.gpr[usize::from(reg::RCX)], op.dst) == 0;
    branch_if(cpu, op, zero)
}
