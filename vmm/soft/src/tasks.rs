//! Hardware task switches (SDM vol. 3, chapter 8), outside of long mode: JMP and CALL to a TSS or
//! task gate, task gates in the IDT, IRET with NT set.
//!
//! A fault after the point of no return is raised in the new task on hardware; here it is raised
//! before the switch, with the old task's state intact. The T bit of a TSS traps when an instruction
//! has switched to it, not when an exception or interrupt has.

use engine::Segment;

use crate::cpu::{Cpu, reg, seg};
use crate::descriptor::{Descriptor, access, error_code, is_null, null_segment, system};
use crate::flags::{NT, RF};
use crate::gates::{Event, Frame};
use crate::op::Op;
use crate::stop::{Stop, StopReason, vector};

/// Why the task is switched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Jump,
    /// CALL or an event: nests.
    Call,
    Return,
}

/// Offsets of the 32-bit TSS (SDM vol. 3, 8.2.1).
mod tss32 {
    pub const CR3: u64 = 0x1c;
    pub const EIP: u64 = 0x20;
    pub const EFLAGS: u64 = 0x24;
    pub const GPR: u64 = 0x28;
    pub const SEG: u64 = 0x48;
    pub const LDT: u64 = 0x60;
    pub const TRAP: u64 = 0x64;
    pub const LIMIT: u32 = 0x67;
}

/// Offsets of the 16-bit TSS (SDM vol. 3, 8.6).
mod tss16 {
    pub const IP: u64 = 0xe;
    pub const FLAGS: u64 = 0x10;
    pub const GPR: u64 = 0x12;
    pub const SEG: u64 = 0x22;
    pub const LDT: u64 = 0x2a;
    pub const LIMIT: u32 = 0x2b;
}

/// The registers in a TSS.
#[derive(Clone, Copy, Default)]
struct Image {
    cr3: u32,
    ip: u32,
    flags: u32,
    gpr: [u32; 8],
    /// ES, CS, SS, DS, FS, GS.
    seg: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    pub(crate) fn jump_to_task(&mut self, d: &Descriptor, op: &Op) -> Result<(), Stop> {
        let tss = self.task_target(d)?;
        self.switch_task(&tss, Cause::Jump, self.next_ip(op))
    }

    pub(crate) fn call_task(&mut self, d: &Descriptor, op: &Op) -> Result<(), Stop> {
        let tss = self.task_target(d)?;
        self.switch_task(&tss, Cause::Call, self.next_ip(op))
    }

    /// The TSS that a TSS or task gate descriptor in a far jump or call leads to.
    fn task_target(&mut self, d: &Descriptor) -> Result<Descriptor, Stop> {
        let error = error_code(d.selector);
        let task = matches!(
            d.system_type(),
            Some(system::TASK | system::TSS16 | system::TSS32)
        );
        if self.long_mode() || !task || d.dpl() < self.cpl.max(d.rpl()) {
            return Err(self.raise_gp(error));
        }
        if !d.present() {
            return Err(self.raise(vector::NP, Some(error)));
        }
        if d.system_type() == Some(system::TASK) {
            return self.gate_task(d.target(), 0);
        }
        Ok(*d)
    }

    /// The available TSS that a task gate names.
    fn gate_task(&mut self, selector: u16, ext: u32) -> Result<Descriptor, Stop> {
        let error = error_code(selector) | ext;
        if selector & 4 != 0 || is_null(selector) {
            return Err(self.raise_gp(error));
        }
        let tss = self.descriptor(selector, ext)?;
        if !matches!(tss.system_type(), Some(system::TSS16 | system::TSS32)) {
            return Err(self.raise_gp(error));
        }
        if !tss.present() {
            return Err(self.raise(vector::NP, Some(error)));
        }
        Ok(tss)
    }

    /// An event through a task gate.
    pub(crate) fn enter_task(&mut self, gate: &Descriptor, e: &Event) -> Result<(), Stop> {
        let tss = self.gate_task(gate.target(), e.ext)?;
        let wide = tss.system_type() == Some(system::TSS32);
        self.switch_task(&tss, Cause::Call, e.ip)?;
        if let Some(error) = e.error {
            let mut frame = Frame::new();
            frame.push(u64::from(error));
            let stack = self.current_stack(e.ext);
            let sp = self.push_frame(&stack, &frame, if wide { 4 } else { 2 })?;
            self.gpr[usize::from(reg::RSP)] = sp;
        }
        Ok(())
    }

    /// IRET with NT set: back to the task in the link field.
    pub(crate) fn return_from_task(&mut self, op: &Op) -> Result<(), Stop> {
        let link = self.load_sys::<u16>(self.tr.base)?;
        let error = error_code(link);
        let bad = link & 4 != 0 || is_null(link);
        let tss = if bad {
            None
        } else {
            self.find_descriptor(link)?
        };
        let busy = |t: &Descriptor| {
            matches!(
                t.system_type(),
                Some(system::TSS16_BUSY | system::TSS32_BUSY)
            )
        };
        let Some(tss) = tss.filter(busy) else {
            return Err(self.raise(vector::TS, Some(error)));
        };
        if !tss.present() {
            return Err(self.raise(vector::NP, Some(error)));
        }
        self.switch_task(&tss, Cause::Return, self.next_ip(op))
    }

    /// Switches to the task; the old one goes on at `ip`.
    fn switch_task(&mut self, tss: &Descriptor, cause: Cause, ip: u64) -> Result<(), Stop> {
        let wide = tss.access() & 8 != 0;
        let segment = tss.segment();
        let limit = if wide { tss32::LIMIT } else { tss16::LIMIT };
        if segment.limit < limit {
            let error = error_code(tss.selector);
            return Err(self.raise(vector::TS, Some(error)));
        }
        let new = self.load_image(segment.base, wide)?;
        if new.trap && !self.stepping {
            return Err(self.stop_for(StopReason::Step));
        }
        let loaded = self.check_image(&new, wide)?;
        self.save_image(cause, ip)?;
        if cause == Cause::Call {
            self.store_sys::<u16>(segment.base, self.tr.selector)?;
        }
        if cause != Cause::Call {
            self.set_busy(self.tr.selector, false)?;
        }
        if cause != Cause::Return {
            self.set_busy(tss.selector, true)?;
        }
        self.tr = Segment {
            access: segment.access | 2,
            ..segment
        };
        self.cr0 |= 1 << 3;
        self.ldtr = loaded.ldtr;
        self.seg = loaded.seg;
        if wide && self.cr0 & 1 << 31 != 0 {
            self.cr3 = u64::from(new.cr3);
        }
        for (i, v) in new.gpr.iter().enumerate() {
            self.gpr[i] = u64::from(*v);
        }
        self.rip = u64::from(new.ip);
        self.cpl = loaded.cpl;
        let nest = if cause == Cause::Call { NT } else { 0 };
        self.set_rflags((u64::from(new.flags) | nest | 2) & !RF);
        self.update_mode();
        self.update_translation();
        self.update_breakpoints();
        if new.trap {
            self.mmu.watch_hits |= 1 << 15;
        }
        Ok(())
    }

    fn load_image(&mut self, base: u64, wide: bool) -> Result<Image, Stop> {
        let mut image = Image::default();
        let at = |cpu: &Cpu, offset: u64| cpu.system_address(base, offset);
        if !wide {
            image.ip = u32::from(self.load_sys::<u16>(at(self, tss16::IP))?);
            image.flags = u32::from(self.load_sys::<u16>(at(self, tss16::FLAGS))?);
            for i in 0..8 {
                let word = self.load_sys::<u16>(at(self, tss16::GPR + 2 * i))?;
                image.gpr[i as usize] = 0xffff_0000 | u32::from(word);
            }
            for i in 0..4 {
                image.seg[i as usize] = self.load_sys::<u16>(at(self, tss16::SEG + 2 * i))?;
            }
            image.ldt = self.load_sys::<u16>(at(self, tss16::LDT))?;
            return Ok(image);
        }
        image.cr3 = self.load_sys::<u32>(at(self, tss32::CR3))?;
        image.ip = self.load_sys::<u32>(at(self, tss32::EIP))?;
        image.flags = self.load_sys::<u32>(at(self, tss32::EFLAGS))?;
        for i in 0..8 {
            image.gpr[i as usize] = self.load_sys::<u32>(at(self, tss32::GPR + 4 * i))?;
        }
        for i in 0..6 {
            image.seg[i as usize] = self.load_sys::<u16>(at(self, tss32::SEG + 4 * i))?;
        }
        image.ldt = self.load_sys::<u16>(at(self, tss32::LDT))?;
        image.trap = self.load_sys::<u16>(at(self, tss32::TRAP))? & 1 != 0;
        Ok(image)
    }

    fn save_image(&mut self, cause: Cause, ip: u64) -> Result<(), Stop> {
        let wide = self.tr.access & 8 != 0;
        let base = self.tr.base;
        let mut flags = self.rflags();
        if cause == Cause::Return {
            flags &= !NT;
        }
        let len = if wide { tss32::LIMIT } else { tss16::LIMIT } + 1;
        self.prepare_slow_or_hit(self.mmu.system, base, u64::from(len))?;
        let at = |cpu: &Cpu, offset: u64| cpu.system_address(base, offset);
        if !wide {
            self.store_sys::<u16>(at(self, tss16::IP), ip as u16)?;
            self.store_sys::<u16>(at(self, tss16::FLAGS), flags as u16)?;
            for i in 0..8 {
                let v = self.gpr[i as usize] as u16;
                self.store_sys::<u16>(at(self, tss16::GPR + 2 * i), v)?;
            }
            for i in 0..4 {
                let v = self.seg[i as usize].selector;
                self.store_sys::<u16>(at(self, tss16::SEG + 2 * i), v)?;
            }
            return Ok(());
        }
        self.store_sys::<u32>(at(self, tss32::EIP), ip as u32)?;
        self.store_sys::<u32>(at(self, tss32::EFLAGS), flags as u32)?;
        for i in 0..8 {
            let v = self.gpr[i as usize] as u32;
            self.store_sys::<u32>(at(self, tss32::GPR + 4 * i), v)?;
        }
        for i in 0..6 {
            let v = self.seg[i as usize].selector;
            self.store_sys::<u16>(at(self, tss32::SEG + 4 * i), v)?;
        }
        Ok(())
    }

    fn set_busy(&mut self, selector: u16, busy: bool) -> Result<(), Stop> {
        if let Some(d) = self.find_descriptor(selector)? {
            let byte = (d.raw >> 40) as u8 & !2 | u8::from(busy) << 1;
            self.store_sys::<u8>(self.system_address(d.at, 5), byte)?;
        }
        Ok(())
    }

    /// Checks the segments of a TSS; what the registers become.
    fn check_image(&mut self, image: &Image, wide: bool) -> Result<Loaded, Stop> {
        let ldtr = self.task_ldt(image.ldt)?;
        let old_ldtr = std::mem::replace(&mut self.ldtr, ldtr);
        let old_cpl = self.cpl;
        self.cpl = (image.seg[usize::from(seg::CS)] & 3) as u8;
        let result = self.task_segments(image, wide);
        let cpl = std::mem::replace(&mut self.cpl, old_cpl);
        self.ldtr = old_ldtr;
        Ok(Loaded {
            ldtr,
            seg: result?,
            cpl,
        })
    }

    fn task_ldt(&mut self, selector: u16) -> Result<Segment, Stop> {
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let error = error_code(selector);
        let d = if selector & 4 == 0 {
            self.find_descriptor(selector)?
        } else {
            None
        };
        match d {
            Some(d) if d.system_type() == Some(system::LDT) && d.present() => Ok(d.segment()),
            _ => Err(self.raise(vector::TS, Some(error))),
        }
    }

    fn task_segments(&mut self, image: &Image, wide: bool) -> Result<[Segment; 6], Stop> {
        let mut out = [null_segment(0); 6];
        let selector = image.seg[usize::from(seg::CS)];
        let code = if is_null(selector) {
            None
        } else {
            self.find_descriptor(selector)?
        };
        let fits = |d: &Descriptor| {
            let conforming = d.is_conforming() && d.dpl() <= d.rpl();
            d.is_code() && (conforming || !d.is_conforming() && d.dpl() == d.rpl())
        };
        let Some(mut code) = code.filter(fits) else {
            return Err(self.raise(vector::TS, Some(error_code(selector))));
        };
        if !code.present() {
            return Err(self.raise(vector::NP, Some(error_code(selector))));
        }
        self.set_accessed(&mut code)?;
        out[usize::from(seg::CS)] = code.segment();
        let ss = image.seg[usize::from(seg::SS)];
        out[usize::from(seg::SS)] = self.stack_segment(ss, self.cpl, vector::TS, 0)?;
        let data = if wide {
            &[seg::ES, seg::DS, seg::FS, seg::GS][..]
        } else {
            &[seg::ES, seg::DS][..]
        };
        for &s in data {
            out[usize::from(s)] = self.task_data(s, image.seg[usize::from(s)])?;
        }
        Ok(out)
    }

    /// A data segment from a TSS: what would be #GP is #TS.
    fn task_data(&mut self, segment: u8, selector: u16) -> Result<Segment, Stop> {
        let result = self.segment_for(segment, selector);
        if result.is_err()
            && let StopReason::Exception(e) = self.stop
            && e.vector == vector::GP
        {
            return Err(self.raise(vector::TS, e.error));
        }
        result
    }
}

/// Checked segment registers of a new task.
struct Loaded {
    ldtr: Segment,
    seg: [Segment; 6],
    cpl: u8,
}

/// Whether a TR content is a 32- or 64-bit TSS.
pub(crate) fn is_wide(tr: &Segment) -> bool {
    tr.access & (access::S | access::P | 8) == access::P | 8
}
