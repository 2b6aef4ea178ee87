//! The instructions that the trampoline intercepts, and MSR accesses: what the guest gets for them.
//!
//! After an intercept the guest's RSP, RIP and the rest that an entry loads are in the control block,
//! its other registers are the vCPU's. An instruction that completes counts as an
//! exit, one that faults does not.

use ::engine::bits::{access, cr0, cr4, efer, rflags};
use ::engine::msr::{self, Context, Effect, number};
use ::engine::{EngineError, cpuid};

use crate::BRAND;
use crate::block::{Event, Intercept, SINGLE_STEP};
use crate::engine::{KvmEngine, Standing};
use crate::errors::stopped;
use crate::trampoline::Kind;
use crate::vmcb::SVME;
use crate::walk;

impl KvmEngine {
    /// Does the intercepted instruction.
    pub(crate) fn emulate(&mut self) -> Result<(), EngineError> {
        let intercept = self.block.intercept();
        let counter = match intercept {
            Intercept::Rdtsc | Intercept::Rdtscp => &mut self.exits.rdtsc,
            Intercept::Cpuid => &mut self.exits.cpuid,
            _ => &mut self.exits.other_instructions,
        };
        *counter += 1;
        match intercept {
            // QEMU gives RDTSCP out as RDTSC; the instruction itself says which it is.
            Intercept::Rdtsc => self.rdtsc(self.is_rdtscp())?,
            Intercept::Rdtscp => self.rdtsc(true)?,
            Intercept::Cpuid => self.cpuid()?,
            Intercept::Invd => self.complete(2)?,
            Intercept::Rdpmc | Intercept::NoMsr | Intercept::SetCr4 => {
                self.fault(Event::PROTECTION);
            }
            Intercept::Undefined => self.fault(Event::UNDEFINED),
            Intercept::SetCr0(register) => self.set_cr0(register),
            Intercept::TripleFault => self.shut_down(),
            Intercept::Stopped(what) => return Err(stopped(&what, self.block.rip())),
        }
        Ok(())
    }

    fn rdtsc(&mut self, with_aux: bool) -> Result<(), EngineError> {
        let paging = self.block.paging();
        let protected = paging.cr0 & cr0::PE != 0;
        if protected && paging.cr4 & cr4::TSD != 0 && self.block.cpl() != 0 {
            self.fault(Event::PROTECTION);
            return Ok(());
        }
        let tsc = self.clock.at(self.count).wrapping_add(self.msrs.tsc_offset);
        let mut regs = self.vcpu.seen.regs;
        self.block.set_rax(&mut regs, tsc & 0xffff_ffff);
        regs.rdx = tsc >> 32;
        if with_aux {
            regs.rcx = self.msrs.tsc_aux & 0xffff_ffff;
        }
        self.vcpu.set_regs(regs);
        self.complete(if with_aux { 3 } else { 2 })
    }

    fn cpuid(&mut self) -> Result<(), EngineError> {
        let mut regs = self.vcpu.seen.regs;
        let leaf = self.block.rax(&regs) as u32;
        let [a, b, c, d] = cpuid::leaf(BRAND, leaf, regs.rcx as u32).map(u64::from);
        self.block.set_rax(&mut regs, a);
        (regs.rbx, regs.rcx, regs.rdx) = (b, c, d);
        self.vcpu.set_regs(regs);
        self.complete(2)
    }

    /// MOV to CR0 with another NE than before, on a processor that wants NE set while a guest runs. It is
    /// executed again, with NE seen as what it sets, and is not intercepted then; one that faults must
    /// not get so far (SDM vol. 3, 2.5).
    fn set_cr0(&mut self, register: u8) {
        let value = self.general_register(register);
        let paging = self.block.paging();
        let turns_on = value & cr0::PG != 0 && paging.cr0 & cr0::PG == 0;
        let enters_long = turns_on && paging.efer & efer::LME != 0;
        let faults = value >> 32 != 0
            || value & cr0::NW != 0 && value & cr0::CD == 0
            || value & cr0::PG != 0 && value & cr0::PE == 0
            || value & cr0::PG == 0 && self.is_long()
            || enters_long && (paging.cr4 & cr4::PAE == 0 || self.code_is_long());
        match faults {
            true => self.fault(Event::PROTECTION),
            false => self.block.set_numeric_error(value & cr0::NE != 0),
        }
    }

    /// By its number in an instruction; RSP is the control block's.
    fn general_register(&self, number: u8) -> u64 {
        let (r, rsp) = (&self.vcpu.seen.regs, self.block.rsp());
        [
            r.rax, r.rcx, r.rdx, r.rbx, rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12,
            r.r13, r.r14, r.r15,
        ][usize::from(number & 15)]
    }

    /// The instruction, of `opcode` bytes without its prefixes, has completed.
    fn complete(&mut self, opcode: u64) -> Result<(), EngineError> {
        let long = self.is_long();
        let len = match self.block.instruction_len() {
            Some(len) => len,
            None => count_prefixes(&self.code(), long) + opcode,
        };
        let next = self.block.rip().wrapping_add(len);
        self.block
            .set_rip(if long { next } else { next & 0xffff_ffff });
        let flags = self.block.rflags();
        self.block.set_rflags(flags & !rflags::RF);
        self.block.end_shadow();
        self.event = None;
        if flags & rflags::TF != 0 {
            self.note_step()?;
            self.event = Some(Event::DEBUG);
        }
        self.exited();
        Ok(())
    }

    /// DR6 says that the guest has been stepped.
    fn note_step(&mut self) -> Result<(), EngineError> {
        if self.block.note_step() {
            return Ok(());
        }
        let mut registers = self.vcpu.debug_registers()?;
        registers.dr6 |= SINGLE_STEP;
        self.vcpu.set_debug_registers(&registers)
    }

    fn fault(&mut self, event: Event) {
        self.event = Some(event);
    }

    fn is_rdtscp(&self) -> bool {
        let code = self.code();
        let opcode = count_prefixes(&code, self.is_long()) as usize;
        code[opcode..].starts_with(&[0x0f, 0x01, 0xf9])
    }

    /// Whether the guest is in 64-bit mode.
    fn is_long(&self) -> bool {
        self.block.paging().efer & efer::LMA != 0 && self.code_is_long()
    }

    fn code_is_long(&self) -> bool {
        self.block.code_segment().access & access::L != 0
    }

    /// The bytes at CS:RIP.
    fn code(&self) -> Vec<u8> {
        let rip = self.block.rip();
        let linear = if self.is_long() {
            rip
        } else {
            self.block.code_segment().base.wrapping_add(rip) & 0xffff_ffff
        };
        walk::code(&self.ram, &self.block.paging(), linear)
    }

    /// What RDMSR gives; None: #GP(0).
    pub(crate) fn read_msr(&self, index: u32) -> Option<u64> {
        let mut msrs = self.msrs;
        msrs.efer = self.vcpu.seen.sregs.efer & !SVME;
        msr::read(index, &msrs, &self.msr_context())
    }

    /// Does a WRMSR; false: #GP(0).
    pub(crate) fn write_msr(&mut self, index: u32, value: u64) -> Result<bool, EngineError> {
        self.msrs.efer = self.vcpu.seen.sregs.efer & !SVME;
        let context = self.msr_context();
        let Some(effect) = msr::write(index, value, &mut self.msrs, &context) else {
            return Ok(false);
        };
        match (effect, index) {
            (Effect::Efer, _) => {
                let svme = match self.trampoline.kind {
                    Kind::Svm => SVME,
                    Kind::Vmx => 0,
                };
                self.vcpu
                    .set_msrs(&[(number::EFER, self.msrs.efer | svme)])?;
            }
            // KVM has these too; the guest's SYSCALL and SYSENTER use them.
            (
                Effect::None,
                number::SYSENTER_CS
                | number::SYSENTER_ESP
                | number::SYSENTER_EIP
                | number::STAR
                | number::LSTAR
                | number::CSTAR
                | number::SFMASK
                | number::TSC_AUX,
            ) => self.vcpu.set_msrs(&[(index, value)])?,
            // The bases do not exit, and the others are only in our table.
            _ => {}
        }
        Ok(true)
    }

    fn msr_context(&self) -> Context {
        debug_assert_eq!(self.standing, Standing::Guest);
        let sregs = &self.vcpu.seen.sregs;
        Context {
            clock: self.clock.at(self.count),
            fs_base: sregs.fs.base,
            gs_base: sregs.gs.base,
            paging: sregs.cr0 & cr0::PG != 0,
        }
    }
}

/// Legacy prefixes and REX before an opcode that begins with 0Fh.
fn count_prefixes(code: &[u8], long: bool) -> u64 {
    let is_prefix = |byte: u8| {
        matches!(
            byte,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
        ) || long && byte & 0xf0 == 0x40
    };
    let n = code.iter().take_while(|byte| is_prefix(**byte)).count();
    // Code that cannot be read, or was changed behind a stale translation: no prefix, then.
    if code.get(n) == Some(&0x0f) {
        n as u64
    } else {
        0
    }
}

#[cfg(test)]
mod tests;
