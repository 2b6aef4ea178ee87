//! The instructions that the trampoline intercepts, and MSR accesses: what the guest gets for them.
//!
//! After an intercept the guest's RAX, RSP, RIP and the rest that VMRUN loads are in the control
//! block, its other general registers are the vCPU's. An instruction that completes counts as an
//! exit, one that faults does not.

use ::engine::bits::{access, cr0, cr4, efer, rflags};
use ::engine::msr::{self, Context, Effect, number};
use ::engine::{EngineError, cpuid};

use crate::BRAND;
use crate::engine::{KvmEngine, Standing};
use crate::errors::stopped;
use crate::trampoline::SVME;
use crate::vmcb::{Event, SINGLE_STEP, at, exit};
use crate::walk::{self, Paging};

/// Vectors of exceptions.
mod vector {
    pub const UD: u8 = 6;
    pub const GP: u8 = 13;
}

impl KvmEngine {
    /// Does the intercepted instruction.
    pub(crate) fn emulate(&mut self) -> Result<(), EngineError> {
        let code = self.vmcb.u64(at::EXIT_CODE);
        if self.vmcb.interrupted_event().is_some() {
            let rip = self.vmcb.u64(at::RIP);
            return Err(stopped("an intercept while an event was delivered", rip));
        }
        let counter = match code {
            exit::RDTSC | exit::RDTSCP => &mut self.exits.rdtsc,
            exit::CPUID => &mut self.exits.cpuid,
            _ => &mut self.exits.other_instructions,
        };
        *counter += 1;
        match code {
            // QEMU gives RDTSCP out as RDTSC; the instruction itself says which it is.
            exit::RDTSC | exit::RDTSCP => self.rdtsc(code == exit::RDTSCP || self.is_rdtscp()),
            exit::CPUID => self.cpuid(),
            exit::RDPMC => self.fault(Event::Exception(vector::GP, Some(0))),
            exit::INVLPGA
            | exit::VMRUN
            | exit::VMMCALL
            | exit::VMLOAD
            | exit::VMSAVE
            | exit::STGI
            | exit::CLGI
            | exit::SKINIT
            | exit::MONITOR
            | exit::MWAIT
            | exit::MWAIT_ARMED
            | exit::XSETBV
            | exit::RDPRU => self.fault(Event::Exception(vector::UD, None)),
            exit::INVALID => {
                let rip = self.vmcb.u64(at::RIP);
                return Err(stopped("VMRUN refused the guest's state", rip));
            }
            other => {
                let what = format!("the trampoline got exit {other:#x}, which it did not ask for");
                return Err(stopped(&what, self.vmcb.u64(at::RIP)));
            }
        }
        Ok(())
    }

    fn rdtsc(&mut self, with_aux: bool) {
        let protected = self.vmcb.u64(at::CR0) & cr0::PE != 0;
        let disabled = self.vmcb.u64(at::CR4) & cr4::TSD != 0;
        if protected && disabled && self.vmcb.u8(at::CPL) != 0 {
            return self.fault(Event::Exception(vector::GP, Some(0)));
        }
        let tsc = self.clock.at(self.count).wrapping_add(self.msrs.tsc_offset);
        self.vmcb.set_u64(at::RAX, tsc & 0xffff_ffff);
        let mut regs = self.vcpu.seen.regs;
        regs.rdx = tsc >> 32;
        if with_aux {
            regs.rcx = self.msrs.tsc_aux & 0xffff_ffff;
        }
        self.vcpu.set_regs(regs);
        self.complete(if with_aux { 3 } else { 2 });
    }

    fn cpuid(&mut self) {
        let mut regs = self.vcpu.seen.regs;
        let leaf = self.vmcb.u64(at::RAX) as u32;
        let [a, b, c, d] = cpuid::leaf(BRAND, leaf, regs.rcx as u32).map(u64::from);
        self.vmcb.set_u64(at::RAX, a);
        (regs.rbx, regs.rcx, regs.rdx) = (b, c, d);
        self.vcpu.set_regs(regs);
        self.complete(2);
    }

    /// The instruction, of `opcode` bytes without its prefixes, has completed.
    fn complete(&mut self, opcode: u64) {
        let rip = self.vmcb.u64(at::RIP);
        let long = self.is_long();
        let prefixes = count_prefixes(&self.code(), long);
        let next = rip.wrapping_add(prefixes + opcode);
        let next = if long { next } else { next & 0xffff_ffff };
        self.vmcb.set_u64(at::RIP, next);
        let flags = self.vmcb.u64(at::RFLAGS);
        self.vmcb.set_u64(at::RFLAGS, flags & !rflags::RF);
        self.vmcb.set_u32(at::INTERRUPT_STATE, 0);
        self.event = None;
        if flags & rflags::TF != 0 {
            self.vmcb
                .set_u64(at::DR6, self.vmcb.u64(at::DR6) | SINGLE_STEP);
            self.event = Some(Event::DEBUG);
        }
        self.exited();
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
        let cs = self.vmcb.segment(at::CS);
        self.vmcb.u64(at::EFER) & efer::LMA != 0 && cs.access & access::L != 0
    }

    /// The bytes at CS:RIP.
    fn code(&self) -> Vec<u8> {
        let rip = self.vmcb.u64(at::RIP);
        let paging = Paging::of_block(&self.vmcb);
        let linear = if self.is_long() {
            rip
        } else {
            self.vmcb.segment(at::CS).base.wrapping_add(rip) & 0xffff_ffff
        };
        walk::code(&self.ram, &paging, linear)
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
                self.vcpu
                    .set_msrs(&[(number::EFER, self.msrs.efer | SVME)])?;
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
