//! Entering the handler of an exception or interrupt through the IDT or the real-mode table
//! (SDM vol. 3, 6.12 to 6.14; vol. 2, INT n).
//!
//! All or nothing: everything that can fail comes before the first change of a register.

use engine::Segment;

use crate::cpu::{CodeMode, Cpu, attention, reg, seg};
use crate::descriptor::{Descriptor, access, error_code, is_null, null_segment, system};
use crate::flags;
use crate::mmu::is_canonical;
use crate::segments::within_limit;
use crate::stop::{Stop, StopReason, vector};
use crate::tlb::Mode;

const RSP: usize = reg::RSP as usize;
const CS: usize = seg::CS as usize;
const SS: usize = seg::SS as usize;

/// What is to be delivered.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub vector: u8,
    pub error: Option<u32>,
    pub cr2: u64,
    /// INT n, INT3, INTO: the gate's DPL is checked.
    pub soft: bool,
    /// An external interrupt or an INT instruction, not an exception.
    pub interrupt: bool,
    /// The EXT bit of error codes on the way.
    pub ext: u32,
    /// The IP to return to.
    pub ip: u64,
    /// A fault: RF is set in the saved flags.
    pub resume: bool,
}

/// Words pushed onto a stack, in order.
pub(crate) struct Frame {
    words: [u64; 40],
    count: usize,
}

impl Frame {
    pub fn new() -> Self {
        Self {
            words: [0; 40],
            count: 0,
        }
    }

    pub fn push(&mut self, word: u64) {
        self.words[self.count] = word;
        self.count += 1;
    }
}

/// Where a frame goes.
#[derive(Clone, Copy)]
pub(crate) struct Stack {
    pub segment: Segment,
    pub sp: u64,
    /// Rights of the stores.
    pub mode: Mode,
    /// 64-bit: no segmentation.
    pub long: bool,
    /// The selector part and EXT bit of #SS if the frame does not fit.
    pub error: u32,
}

impl Stack {
    /// Bits of the stack pointer that count.
    fn mask(&self) -> u64 {
        if self.long {
            u64::MAX
        } else if self.segment.access & access::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        }
    }
}

impl Cpu {
    /// The current stack.
    pub(crate) fn current_stack(&self, ext: u32) -> Stack {
        Stack {
            segment: self.seg[SS],
            sp: self.gpr[RSP],
            mode: self.mmu.mode,
            long: self.code_mode == CodeMode::Bits64,
            error: ext,
        }
    }

    /// Pushes a frame of words of `size` bytes, all or none of it; the new stack pointer.
    pub(crate) fn push_frame(
        &mut self,
        stack: &Stack,
        frame: &Frame,
        size: u64,
    ) -> Result<u64, Stop> {
        let mask = stack.mask();
        let mut sp = stack.sp;
        let mut places = [0; 40];
        for place in &mut places[..frame.count] {
            sp = sp & !mask | sp.wrapping_sub(size) & mask;
            let offset = sp & mask;
            if !stack.long && !within_limit(&stack.segment, offset, size) {
                return Err(self.raise(vector::SS, Some(stack.error)));
            }
            *place = if stack.long {
                offset
            } else {
                stack.segment.base.wrapping_add(offset) & 0xffff_ffff
            };
            if self.prepare_slow_or_hit(stack.mode, *place, size).is_err() {
                if self.stop == StopReason::NonCanonical {
                    self.raise(vector::SS, Some(stack.error));
                }
                return Err(Stop);
            }
        }
        for (place, word) in places.iter().zip(&frame.words[..frame.count]) {
            match size {
                2 => self.store_as(stack.mode, *place, *word as u16)?,
                4 => self.store_as(stack.mode, *place, *word as u32)?,
                _ => self.store_as(stack.mode, *place, *word)?,
            }
        }
        Ok(sp)
    }

    /// Enters the handler of an event.
    pub(crate) fn enter_handler(&mut self, e: &Event) -> Result<(), Stop> {
        if !self.protected() {
            return self.enter_real(e);
        }
        if self.long_mode() {
            return self.enter_long(e);
        }
        let offset = u64::from(e.vector) * 8;
        let error = offset as u32 | 2 | e.ext;
        if offset + 7 > u64::from(self.idtr.limit) {
            return Err(self.raise_gp(error));
        }
        let at = self.system_address(self.idtr.base, offset);
        let raw = self.load_sys::<u64>(at)?;
        let gate = Descriptor {
            selector: 0,
            at,
            raw,
            high: 0,
        };
        self.check_gate(&gate, e, error)?;
        match gate.system_type() {
            Some(system::TASK) => self.enter_task(&gate, e),
            Some(system::INT16) => self.enter_protected(&gate, e, 2, true),
            Some(system::TRAP16) => self.enter_protected(&gate, e, 2, false),
            Some(system::INT32) => self.enter_protected(&gate, e, 4, true),
            Some(system::TRAP32) => self.enter_protected(&gate, e, 4, false),
            _ => Err(self.raise_gp(error)),
        }
    }

    fn check_gate(&mut self, gate: &Descriptor, e: &Event, error: u32) -> Result<(), Stop> {
        let legacy = [
            system::TASK,
            system::INT16,
            system::TRAP16,
            system::INT32,
            system::TRAP32,
        ];
        let long = [system::INT32, system::TRAP32];
        let types: &[u32] = if self.long_mode() { &long } else { &legacy };
        let known = gate.system_type().is_some_and(|t| types.contains(&t));
        if !known || e.soft && gate.dpl() < self.cpl {
            return Err(self.raise_gp(error));
        }
        if !gate.present() {
            return Err(self.raise(vector::NP, Some(error)));
        }
        Ok(())
    }

    /// The handler's code segment.
    fn handler_code(&mut self, selector: u16, ext: u32) -> Result<Descriptor, Stop> {
        if is_null(selector) {
            return Err(self.raise_gp(ext));
        }
        let d = self.descriptor(selector, ext)?;
        let error = error_code(selector) | ext;
        if !d.is_code() || d.dpl() > self.cpl {
            return Err(self.raise_gp(error));
        }
        if !d.present() {
            return Err(self.raise(vector::NP, Some(error)));
        }
        Ok(d)
    }

    /// The flags to save.
    fn saved_flags(&self, e: &Event) -> u64 {
        self.rflags() | if e.resume { flags::RF } else { 0 }
    }

    /// Flags in the handler: IF off through an interrupt gate.
    fn handler_flags(&mut self, interrupt_gate: bool) {
        let mut clear = flags::TF | flags::NT | flags::RF | flags::VM;
        if interrupt_gate {
            clear |= flags::IF;
        }
        self.set_rflags(self.rflags() & !clear);
        self.trap_suppressed = true;
        self.interrupt_shadow = false;
        self.attention &= !attention::SHADOW;
    }

    fn enter_real(&mut self, e: &Event) -> Result<(), Stop> {
        let offset = u64::from(e.vector) * 4;
        if offset + 3 > u64::from(self.idtr.limit) {
            return Err(self.raise_gp(u32::from(e.vector) * 8 + 2));
        }
        let vector = self.load_sys::<u32>(self.system_address(self.idtr.base, offset))?;
        let mut frame = Frame::new();
        frame.push(self.saved_flags(e) & 0xffff);
        frame.push(u64::from(self.seg[CS].selector));
        frame.push(e.ip);
        let stack = self.current_stack(0);
        let sp = self.push_frame(&stack, &frame, 2)?;
        self.gpr[RSP] = sp;
        self.set_real_code((vector >> 16) as u16);
        self.rip = u64::from(vector & 0xffff);
        self.handler_flags(true);
        self.set_rflags(self.rflags() & !flags::AC);
        Ok(())
    }

    fn enter_long(&mut self, e: &Event) -> Result<(), Stop> {
        let offset = u64::from(e.vector) * 16;
        let error = (u32::from(e.vector) * 8) | 2 | e.ext;
        if offset + 15 > u64::from(self.idtr.limit) {
            return Err(self.raise_gp(error));
        }
        let at = self.idtr.base.wrapping_add(offset);
        let raw = self.load_sys::<u64>(at)?;
        let high = self.load_sys::<u64>(at.wrapping_add(8))? as u32;
        let gate = Descriptor {
            selector: 0,
            at,
            raw,
            high,
        };
        self.check_gate(&gate, e, error)?;
        let mut code = self.handler_code(gate.target(), e.ext)?;
        if code.access() & (access::L | access::DB) != access::L {
            return Err(self.raise_gp(error_code(gate.target()) | e.ext));
        }
        if !is_canonical(gate.offset()) {
            return Err(self.raise_gp(e.ext));
        }
        let cpl = if code.is_conforming() {
            self.cpl
        } else {
            code.dpl()
        };
        let ist = u64::from((gate.raw >> 32) as u32 & 7);
        let sp = if ist != 0 {
            self.tss_word(0x1c + 8 * ist, e.ext)?
        } else if cpl != self.cpl {
            self.tss_word(4 + 8 * u64::from(cpl), e.ext)?
        } else {
            self.gpr[RSP]
        };
        self.set_accessed(&mut code)?;
        let stack = Stack {
            segment: Segment::default(),
            sp: sp & !15,
            mode: if cpl == self.cpl {
                self.mmu.mode
            } else {
                self.mmu.system
            },
            long: true,
            error: e.ext,
        };
        let mut frame = Frame::new();
        frame.push(u64::from(self.seg[SS].selector));
        frame.push(self.gpr[RSP]);
        frame.push(self.saved_flags(e));
        frame.push(u64::from(self.seg[CS].selector));
        frame.push(e.ip);
        if let Some(error) = e.error {
            frame.push(u64::from(error));
        }
        let sp = self.push_frame(&stack, &frame, 8)?;
        self.gpr[RSP] = sp;
        if cpl != self.cpl {
            self.seg[SS] = Segment {
                access: access::UNUSABLE | u32::from(cpl) << 5,
                ..null_segment(u16::from(cpl))
            };
        }
        self.set_code(&code, cpl);
        self.rip = gate.offset();
        self.handler_flags(gate.system_type() == Some(system::INT32));
        Ok(())
    }

    /// A stack pointer of the 64-bit TSS.
    fn tss_word(&mut self, offset: u64, ext: u32) -> Result<u64, Stop> {
        if offset + 7 > u64::from(self.tr.limit) {
            return Err(self.raise(vector::TS, Some(error_code(self.tr.selector) | ext)));
        }
        self.load_sys::<u64>(self.tr.base.wrapping_add(offset))
    }

    fn enter_protected(
        &mut self,
        gate: &Descriptor,
        e: &Event,
        size: u64,
        interrupt_gate: bool,
    ) -> Result<(), Stop> {
        let mut code = self.handler_code(gate.target(), e.ext)?;
        let inner = !code.is_conforming() && code.dpl() < self.cpl;
        let ip = if size == 2 {
            gate.offset() & 0xffff
        } else {
            gate.offset() & 0xffff_ffff
        };
        let mut frame = Frame::new();
        let stack = if inner {
            frame.push(u64::from(self.seg[SS].selector));
            frame.push(self.gpr[RSP]);
            self.inner_stack(code.dpl(), e.ext)?
        } else {
            self.current_stack(e.ext)
        };
        if ip > u64::from(code.segment().limit) {
            return Err(self.raise_gp(e.ext));
        }
        frame.push(self.saved_flags(e));
        frame.push(u64::from(self.seg[CS].selector));
        frame.push(e.ip);
        if let Some(error) = e.error {
            frame.push(u64::from(error));
        }
        self.set_accessed(&mut code)?;
        let sp = self.push_frame(&stack, &frame, size)?;
        let cpl = if inner { code.dpl() } else { self.cpl };
        self.seg[SS] = stack.segment;
        self.gpr[RSP] = sp;
        self.set_code(&code, cpl);
        self.rip = ip;
        self.handler_flags(interrupt_gate);
        Ok(())
    }

    /// The stack for privilege level `cpl` from the 16- or 32-bit TSS.
    pub(crate) fn inner_stack(&mut self, cpl: u8, ext: u32) -> Result<Stack, Stop> {
        let wide = self.tr.access & 8 != 0;
        let offset = if wide {
            4 + 8 * u64::from(cpl)
        } else {
            2 + 4 * u64::from(cpl)
        };
        let last = offset + if wide { 5 } else { 3 };
        if last > u64::from(self.tr.limit) {
            return Err(self.raise(vector::TS, Some(error_code(self.tr.selector) | ext)));
        }
        let at = self.system_address(self.tr.base, offset);
        let (sp, selector) = if wide {
            let sp = u64::from(self.load_sys::<u32>(at)?);
            (sp, self.load_sys::<u16>(self.system_address(at, 4))?)
        } else {
            let sp = u64::from(self.load_sys::<u16>(at)?);
            (sp, self.load_sys::<u16>(self.system_address(at, 2))?)
        };
        let segment = self.stack_segment(selector, cpl, vector::TS, ext)?;
        Ok(Stack {
            segment,
            sp,
            mode: self.mmu.system,
            long: false,
            error: error_code(selector) | ext,
        })
    }

    /// Loads CS with a checked code descriptor and enters privilege level `cpl`.
    pub(crate) fn set_code(&mut self, code: &Descriptor, cpl: u8) {
        let segment = code.segment();
        self.seg[CS] = Segment {
            selector: segment.selector & !3 | u16::from(cpl),
            ..segment
        };
        self.cpl = cpl;
        self.update_mode();
    }

    /// Loads CS in real mode.
    pub(crate) fn set_real_code(&mut self, selector: u16) {
        let old = self.seg[CS];
        self.seg[CS] = Segment {
            selector,
            access: 0x9b | old.access & (access::DB | access::G),
            base: u64::from(selector) << 4,
            limit: old.limit,
        };
        self.update_mode();
    }
}
