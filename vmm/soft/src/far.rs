//! Far JMP, CALL and RET, with call gates and privilege changes (SDM vol. 3, 5.8; vol. 2, JMP,
//! CALL, RET).

use iced_x86::{Code, Mnemonic, OpKind};

use crate::cpu::{Cpu, reg, seg};
use crate::decode::Decoding;
use crate::descriptor::{Descriptor, access, error_code, is_null, null_segment, system};
use crate::ea::truncate;
use crate::gates::Frame;
use crate::mmu::is_canonical;
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::stop::{Stop, StopReason, vector};

const RSP: usize = reg::RSP as usize;
const CS: usize = seg::CS as usize;
const SS: usize = seg::SS as usize;

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    let size = d.op.operand_size();
    let handler: Handler = match d.ins.mnemonic() {
        Mnemonic::Retf => {
            d.op.extra = match d.ins.code() {
                Code::Retfw | Code::Retfw_imm16 => 2,
                Code::Retfd | Code::Retfd_imm16 => 4,
                _ => 8,
            };
            d.op.imm = if d.ins.op_count() == 1 {
                d.immediate(0) & 0xffff
            } else {
                0
            };
            d.op.seg = seg::SS;
            ret_far
        }
        Mnemonic::Jmp | Mnemonic::Call => {
            let call = d.ins.mnemonic() == Mnemonic::Call;
            d.op.extra = size;
            match d.ins.op_kind(0) {
                OpKind::FarBranch16 => {
                    d.op.imm = u64::from(d.ins.far_branch16());
                    d.op.disp = i32::from(d.ins.far_branch_selector());
                    if call { call_direct } else { jmp_direct }
                }
                OpKind::FarBranch32 => {
                    d.op.imm = u64::from(d.ins.far_branch32());
                    d.op.disp = i32::from(d.ins.far_branch_selector());
                    if call { call_direct } else { jmp_direct }
                }
                OpKind::Memory if is_far(d.ins.code()) => {
                    if call {
                        call_indirect
                    } else {
                        jmp_indirect
                    }
                }
                _ => return None,
            }
        }
        _ => return None,
    };
    d.ends = true;
    Some(handler)
}

fn is_far(code: Code) -> bool {
    matches!(
        code,
        Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Jmp_m1664
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Call_m1664
    )
}

fn jmp_direct(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.far_jump(op.disp as u16, op.imm, op)
}

fn call_direct(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.far_call(op.disp as u16, op.imm, op)
}

fn jmp_indirect(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (selector, offset) = far_pointer(cpu, op, op.extra)?;
    cpu.far_jump(selector, offset, op)
}

fn call_indirect(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let (selector, offset) = far_pointer(cpu, op, op.extra)?;
    cpu.far_call(selector, offset, op)
}

/// Loads the far pointer in memory: selector and offset of `size` bytes.
pub(crate) fn far_pointer(cpu: &mut Cpu, op: &Op, size: u8) -> Result<(u16, u64), Stop> {
    let len = u64::from(size) + 2;
    let at = cpu.operand(op, len, Access::Read)?;
    let offset = match size {
        2 => u64::from(cpu.load::<u16>(at)?),
        4 => u64::from(cpu.load::<u32>(at)?),
        _ => cpu.load::<u64>(at)?,
    };
    let at = at.wrapping_add(u64::from(size)) & cpu.mmu.linear_mask;
    Ok((cpu.load::<u16>(at)?, offset))
}

fn ret_far(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.far_return(op.extra, op.imm)
}

impl Cpu {
    /// The `size` bytes of the stack at SP + `delta`.
    pub(crate) fn peek_at(&mut self, delta: u64, size: u8) -> Result<u64, Stop> {
        let width = self.stack_size();
        let offset = truncate(self.gpr[RSP].wrapping_add(delta), width);
        let at = self.linear(seg::SS, offset, u64::from(size), Access::Read)?;
        let result = match size {
            2 => self.load::<u16>(at).map(u64::from),
            4 => self.load::<u32>(at).map(u64::from),
            _ => self.load::<u64>(at),
        };
        if result.is_err() && self.stop == StopReason::NonCanonical {
            return Err(self.raise(vector::SS, Some(0)));
        }
        result
    }

    /// Moves the stack pointer up by `bytes`.
    pub(crate) fn drop_stack(&mut self, bytes: u64) {
        let rsp = self.gpr[RSP];
        let moved = rsp.wrapping_add(bytes);
        self.gpr[RSP] = match self.stack_size() {
            2 => rsp & !0xffff | moved & 0xffff,
            4 => moved & 0xffff_ffff,
            _ => moved,
        };
    }

    /// Checks a code segment as the target of a direct far jump or call, or through a call gate
    /// (`gate`), at privilege level `cpl`: present, and with rights.
    fn check_code(&mut self, d: &Descriptor, gate: bool) -> Result<(), Stop> {
        let error = error_code(d.selector);
        let rights = if d.is_conforming() {
            d.dpl() <= self.cpl
        } else {
            d.dpl() == self.cpl && (gate || d.rpl() <= self.cpl)
        };
        let both = access::L | access::DB;
        if !d.is_code() || !rights || self.long_mode() && d.has(both) {
            return Err(self.raise_gp(error));
        }
        if !d.present() {
            return Err(self.raise(vector::NP, Some(error)));
        }
        Ok(())
    }

    /// Checks an IP in a code segment that is about to be entered.
    pub(crate) fn check_target(&mut self, d: &Descriptor, ip: u64) -> Result<(), Stop> {
        let fine = if self.long_mode() && d.has(access::L) {
            is_canonical(ip)
        } else {
            ip <= u64::from(d.segment().limit)
        };
        if fine { Ok(()) } else { Err(self.raise_gp(0)) }
    }

    fn far_jump(&mut self, selector: u16, offset: u64, op: &Op) -> Result<(), Stop> {
        if !self.protected() {
            if offset > u64::from(self.seg[CS].limit) {
                return Err(self.raise_gp(0));
            }
            self.set_real_code(selector);
            self.rip = offset;
            return Ok(());
        }
        if is_null(selector) {
            return Err(self.raise_gp(0));
        }
        let mut d = self.descriptor(selector, 0)?;
        match d.system_type() {
            None => {
                self.check_code(&d, false)?;
                self.check_target(&d, offset)?;
                self.set_accessed(&mut d)?;
                self.set_code(&d, self.cpl);
                self.rip = offset;
                Ok(())
            }
            Some(system::CALL16 | system::CALL32) => {
                let (mut code, ip) = self.call_gate(d)?;
                self.check_code(&code, true)?;
                self.check_target(&code, ip)?;
                self.set_accessed(&mut code)?;
                self.set_code(&code, self.cpl);
                self.rip = ip;
                Ok(())
            }
            Some(_) => self.jump_to_task(&d, op),
        }
    }

    /// Checks a call gate; its code segment (rights still to be checked) and offset.
    fn call_gate(&mut self, gate: Descriptor) -> Result<(Descriptor, u64), Stop> {
        let error = error_code(gate.selector);
        let Some(gate) = self.widen(gate)? else {
            return Err(self.raise_gp(error));
        };
        let long = self.long_mode();
        let narrow = gate.system_type() == Some(system::CALL16);
        if gate.dpl() < self.cpl.max(gate.rpl()) || long && narrow {
            return Err(self.raise_gp(error));
        }
        if !gate.present() {
            return Err(self.raise(vector::NP, Some(error)));
        }
        if is_null(gate.target()) {
            return Err(self.raise_gp(0));
        }
        let code = self.descriptor(gate.target(), 0)?;
        if long && code.access() & (access::L | access::DB) != access::L {
            return Err(self.raise_gp(error_code(gate.target())));
        }
        let ip = if narrow {
            gate.offset() & 0xffff
        } else {
            gate.offset()
        };
        Ok((code, ip))
    }

    fn far_call(&mut self, selector: u16, offset: u64, op: &Op) -> Result<(), Stop> {
        let size = u64::from(op.extra);
        let mut frame = Frame::new();
        frame.push(u64::from(self.seg[CS].selector));
        frame.push(self.next_ip(op));
        let stack = self.current_stack(0);
        if !self.protected() {
            if offset > u64::from(self.seg[CS].limit) {
                return Err(self.raise_gp(0));
            }
            let sp = self.push_frame(&stack, &frame, size)?;
            self.gpr[RSP] = sp;
            self.set_real_code(selector);
            self.rip = offset;
            return Ok(());
        }
        if is_null(selector) {
            return Err(self.raise_gp(0));
        }
        let mut d = self.descriptor(selector, 0)?;
        match d.system_type() {
            None => {
                self.check_code(&d, false)?;
                self.check_target(&d, offset)?;
                self.set_accessed(&mut d)?;
                let sp = self.push_frame(&stack, &frame, size)?;
                self.gpr[RSP] = sp;
                self.set_code(&d, self.cpl);
                self.rip = offset;
                Ok(())
            }
            Some(system::CALL16 | system::CALL32) => self.call_through_gate(d, op),
            Some(_) => self.call_task(&d, op),
        }
    }

    fn call_through_gate(&mut self, gate: Descriptor, op: &Op) -> Result<(), Stop> {
        let (mut code, ip) = self.call_gate(gate)?;
        let size = match (self.long_mode(), gate.system_type()) {
            (true, _) => 8,
            (false, Some(system::CALL16)) => 2,
            _ => 4,
        };
        let inner = code.is_code() && !code.is_conforming() && code.dpl() < self.cpl;
        let mut frame = Frame::new();
        let mut stack = self.current_stack(0);
        if inner {
            if !code.present() {
                let error = error_code(code.selector);
                return Err(self.raise(vector::NP, Some(error)));
            }
            frame.push(u64::from(self.seg[SS].selector));
            frame.push(self.gpr[RSP]);
            stack = self.gate_stack(&gate, code.dpl(), size, &mut frame)?;
        } else {
            self.check_code(&code, true)?;
            stack.long = self.long_mode() || stack.long;
        }
        self.check_target(&code, ip)?;
        frame.push(u64::from(self.seg[CS].selector));
        frame.push(self.next_ip(op));
        self.set_accessed(&mut code)?;
        let sp = self.push_frame(&stack, &frame, size)?;
        if inner {
            self.seg[SS] = stack.segment;
        }
        self.gpr[RSP] = sp;
        let cpl = if inner { code.dpl() } else { self.cpl };
        self.set_code(&code, cpl);
        self.rip = ip;
        Ok(())
    }

    /// The inner stack of a call gate, with the parameters of the outer one added to the frame.
    fn gate_stack(
        &mut self,
        gate: &Descriptor,
        cpl: u8,
        size: u64,
        frame: &mut Frame,
    ) -> Result<crate::gates::Stack, Stop> {
        if self.long_mode() {
            let offset = 4 + 8 * u64::from(cpl);
            if offset + 7 > u64::from(self.tr.limit) {
                let error = error_code(self.tr.selector);
                return Err(self.raise(vector::TS, Some(error)));
            }
            let sp = self.load_sys::<u64>(self.tr.base.wrapping_add(offset))?;
            let mut segment = null_segment(u16::from(cpl));
            segment.access |= u32::from(cpl) << 5;
            return Ok(crate::gates::Stack {
                segment,
                sp,
                mode: self.mmu.system,
                long: true,
                error: 0,
            });
        }
        let stack = self.inner_stack(cpl, 0)?;
        let count = gate.raw >> 32 & 31;
        for i in (0..count).rev() {
            let word = self.peek_at(i * size, size as u8)?;
            frame.push(word);
        }
        Ok(stack)
    }

    fn far_return(&mut self, size: u8, release: u64) -> Result<(), Stop> {
        let word = u64::from(size);
        let ip = self.peek_at(0, size)?;
        let selector = self.peek_at(word, size)? as u16;
        if !self.protected() {
            if ip > u64::from(self.seg[CS].limit) {
                return Err(self.raise_gp(0));
            }
            self.drop_stack(2 * word + release);
            self.set_real_code(selector);
            self.rip = ip;
            return Ok(());
        }
        let mut code = self.return_code(selector)?;
        if code.rpl() == self.cpl {
            self.check_target(&code, ip)?;
            self.set_accessed(&mut code)?;
            self.drop_stack(2 * word + release);
            self.set_code(&code, self.cpl);
            self.rip = ip;
            return Ok(());
        }
        let at = 2 * word + release;
        let sp = self.peek_at(at, size)?;
        let ss = self.peek_at(at + word, size)? as u16;
        self.return_outwards(&mut code, ip, ss, sp, release)
    }

    /// Checks a code segment as the target of RET or IRET.
    pub(crate) fn return_code(&mut self, selector: u16) -> Result<Descriptor, Stop> {
        if is_null(selector) {
            return Err(self.raise_gp(0));
        }
        let d = self.descriptor(selector, 0)?;
        let error = error_code(selector);
        let rights = if d.is_conforming() {
            d.dpl() <= d.rpl()
        } else {
            d.dpl() == d.rpl()
        };
        let both = access::L | access::DB;
        let bad = !d.is_code() || !rights || d.rpl() < self.cpl;
        if bad || self.long_mode() && d.has(both) {
            return Err(self.raise_gp(error));
        }
        if !d.present() {
            return Err(self.raise(vector::NP, Some(error)));
        }
        Ok(d)
    }

    /// The last part of a return to an outer privilege level: loads SS:SP, CS:IP, and clears data
    /// segments that the outer level may not use.
    pub(crate) fn return_outwards(
        &mut self,
        code: &mut Descriptor,
        ip: u64,
        ss: u16,
        sp: u64,
        release: u64,
    ) -> Result<(), Stop> {
        let cpl = code.rpl();
        let stack = self.return_stack(code, ss, cpl)?;
        self.check_target(code, ip)?;
        self.set_accessed(code)?;
        self.seg[SS] = stack;
        self.set_code(code, cpl);
        let old = self.gpr[RSP];
        let moved = sp.wrapping_add(release);
        self.gpr[RSP] = match self.stack_size() {
            2 => old & !0xffff | moved & 0xffff,
            4 => moved & 0xffff_ffff,
            _ => moved,
        };
        self.rip = ip;
        for segment in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let s = &mut self.seg[usize::from(segment)];
            let dpl = (s.access >> 5 & 3) as u8;
            let conforming = access::CODE | access::DC;
            let usable = s.access & access::UNUSABLE == 0;
            if usable && s.access & conforming != conforming && dpl < cpl {
                *s = null_segment(0);
            }
        }
        Ok(())
    }

    /// SS for a return to privilege level `cpl`: null is allowed for 64-bit code below level 3.
    pub(crate) fn return_stack(
        &mut self,
        code: &Descriptor,
        ss: u16,
        cpl: u8,
    ) -> Result<engine::Segment, Stop> {
        let to_long = self.long_mode() && code.has(access::L);
        if is_null(ss) && to_long && cpl != 3 && (ss & 3) as u8 == cpl {
            return Ok(engine::Segment {
                access: access::UNUSABLE | u32::from(cpl) << 5,
                ..null_segment(ss)
            });
        }
        if is_null(ss) {
            return Err(self.raise_gp(0));
        }
        self.stack_segment(ss, cpl, vector::GP, 0)
    }
}
