//! The control block on Intel's processors, the VMCS (SDM vol. 3, chapters 25 to 28).
//!
//! A hypervisor gets at a VMCS by VMREAD and VMWRITE only. The one of the trampoline is KVM's, which keeps
//! it in memory while it is not current: VMCLEAR writes it there, VMPTRLD reads it from there. Where
//! which field lies is part of KVM's interface, since it is in what KVM_GET_NESTED_STATE gives, and the
//! [`REVISION`] stands for it.
//!
//! VMLAUNCH switches RSP, RIP, RFLAGS, all segment registers, CR0, CR3, CR4, DR7, EFER and the SYSENTER
//! MSRs; the other registers, CR2 and DR6 among them, are the guest's own in the vCPU.

mod layout;

use engine::bits::{access, cr0, cr4, efer, rflags};
use engine::{CpuState, DescriptorTable, Segment};
use kvm_bindings::kvm_regs;

use crate::block::{Based, Block, Event, Intercept, Layout, Switched};
use crate::page::Page;
use crate::segments;
use crate::vmx::{Controls, Host};

use self::layout::{at, reason, register};

/// The layout, as IA32_VMX_BASIC gives it in a VM of KVM's.
pub const REVISION: u32 = 0x11e5_7ed0;

/// CR4.VMXE, which must be set while the guest runs, and which it does not see.
pub const VMXE: u64 = 1 << 13;

/// Bits of the interruptibility state.
const BLOCKED_BY_STI: u32 = 1;
const BLOCKED_BY_MOV_SS: u32 = 2;
/// Pending debug exceptions: a single step.
const PENDING_STEP: u64 = 1 << 14;
/// The event's field holds one.
const VALID: u32 = 1 << 31;

const LAYOUT: Layout = Layout {
    rip: at::RIP,
    rsp: at::RSP,
    rflags: at::RFLAGS,
    dr7: at::DR7,
    cr0: at::CR0,
    cr3: at::CR3,
    cr4: at::CR4,
    efer: at::EFER,
};

/// The VMCS.
pub struct Vmcs {
    page: Page,
    controls: Controls,
    host: Host,
}

impl Vmcs {
    pub fn new(page: Page, controls: Controls, host: Host) -> Self {
        Self {
            page,
            controls,
            host,
        }
    }

    /// One that is unusable keeps the rights that it had; of these only DPL is one, for SS.
    fn segment(&self, number: usize) -> Segment {
        let mut access = self.page.u32(at::RIGHTS + 4 * number);
        if access & access::UNUSABLE != 0 {
            access &= access::UNUSABLE | 0x60;
        }
        Segment {
            selector: self.page.get(at::SELECTORS + 2 * number),
            access,
            base: self.page.u64(at::BASES + 8 * number),
            limit: self.page.u32(at::LIMITS + 4 * number),
        }
    }

    fn set_segment(&mut self, number: usize, s: &Segment) {
        self.page.put(at::SELECTORS + 2 * number, s.selector);
        self.page.set_u32(at::RIGHTS + 4 * number, s.access);
        self.set_table(number, s.base, s.limit);
    }

    fn set_table(&mut self, number: usize, base: u64, limit: u32) {
        self.page.set_u64(at::BASES + 8 * number, base);
        self.page.set_u32(at::LIMITS + 4 * number, limit);
    }

    fn table(&self, number: usize) -> DescriptorTable {
        DescriptorTable {
            base: self.page.u64(at::BASES + 8 * number),
            limit: self.page.u32(at::LIMITS + 4 * number) as u16,
        }
    }

    /// Everything but the guest's state.
    fn set_control(&mut self) {
        for offset in at::ALL.step_by(4) {
            if !at::GUEST.iter().any(|part| part.contains(&offset)) {
                self.page.set_u32(offset, 0);
            }
        }
        let c = self.controls;
        let long = self.page.u64(at::EFER) & efer::LMA != 0;
        for (at, v) in [
            (at::REVISION, REVISION),
            (at::PIN_CONTROLS, c.pin),
            (at::CPU_CONTROLS, c.cpu),
            (at::CPU_CONTROLS_2, c.cpu_2),
            (at::EXIT_CONTROLS, c.exit),
            (at::ENTRY_CONTROLS, c.entry(long)),
            (at::REASON, reason::NONE),
            (at::ACTIVITY, 0),
        ] {
            self.page.set_u32(at, v);
        }
        debug_assert_eq!(self.page.u32(at::LAUNCH_STATE), 0);
        let h = self.host;
        for (at, v) in [
            (at::MSR_BITMAP, h.msr_bitmap),
            (at::EPT_POINTER, h.ept_pointer),
            (at::LINK_POINTER, u64::MAX),
            (at::CR0_MASK, cr0::NE),
            (at::CR4_MASK, VMXE),
            (at::HOST_EFER, h.efer),
            (at::HOST_CR0, h.cr0),
            (at::HOST_CR3, h.cr3),
            (at::HOST_CR4, h.cr4),
            (at::HOST_RIP, h.rip),
        ] {
            self.page.set_u64(at, v);
        }
        for (i, selector) in h.selectors.into_iter().enumerate() {
            self.page.put(at::HOST_SELECTORS + 2 * i, selector);
        }
    }

    /// The event that the entry delivers (SDM vol. 3, 25.8.3).
    fn set_event(&mut self, event: Event) {
        let protected = self.page.u64(at::CR0) & cr0::PE != 0;
        let (field, error) = match event {
            Event::Interrupt(vector) => (u32::from(vector) | VALID, 0),
            Event::Exception(vector, error) => {
                // In real mode no error code is pushed.
                let error = error.filter(|_| protected);
                let has = u32::from(error.is_some()) << 11;
                (u32::from(vector) | 3 << 8 | has | VALID, error.unwrap_or(0))
            }
        };
        self.page.set_u32(at::ENTRY_EVENT, field);
        self.page.set_u32(at::ENTRY_ERROR, error);
        self.end_shadow();
    }

    /// The shadow in the form that an entry takes (SDM vol. 3, 27.3.1.5): the one of STI needs IF, and
    /// with TF a step is pending, which the shadow of MOV SS alone holds back.
    fn set_shadow(&mut self, on: bool) {
        let flags = self.rflags();
        let traps = flags & rflags::TF != 0;
        let state = match on {
            false => 0,
            true if flags & rflags::IF != 0 && !traps => BLOCKED_BY_STI,
            true => BLOCKED_BY_MOV_SS,
        };
        self.page.set_u32(at::INTERRUPTIBILITY, state);
        let pending = if on && traps { PENDING_STEP } else { 0 };
        self.page.set_u64(at::PENDING_DEBUG, pending);
    }

    fn control_register_intercept(&self) -> Intercept {
        // Bits 0 to 3 the register, 4 and 5 the kind (0: MOV to it), 8 to 11 the general register.
        let what = self.page.u64(at::QUALIFICATION);
        match (what & 0xf, what >> 4 & 3) {
            (0, 0) => Intercept::SetCr0((what >> 8 & 0xf) as u8),
            (4, 0) => Intercept::SetCr4,
            _ => Intercept::Stopped(format!(
                "an access to a control register that is not intercepted ({what:#x})"
            )),
        }
    }
}

impl Block for Vmcs {
    fn load(&mut self, s: &CpuState, pdptes: [u64; 4]) {
        self.page.set_u64(at::EFER, s.msrs.efer);
        self.set_control();
        for (number, what) in [
            (register::ES, Loaded::Data),
            (register::CS, Loaded::Code),
            (register::SS, Loaded::Stack(s.cpl)),
            (register::DS, Loaded::Data),
            (register::FS, Loaded::Data),
            (register::GS, Loaded::Data),
        ] {
            self.set_segment(number, &loadable(&s.segments[number], what));
        }
        self.set_segment(register::LDTR, &loadable(&s.ldtr, Loaded::Ldt));
        self.set_segment(register::TR, &loadable(&s.tr, Loaded::Task));
        self.set_table(register::GDTR, s.gdtr.base, u32::from(s.gdtr.limit));
        self.set_table(register::IDTR, s.idtr.base, u32::from(s.idtr.limit));
        for (i, entry) in pdptes.into_iter().enumerate() {
            self.page.set_u64(at::PDPTE0 + 8 * i, entry);
        }
        for (at, v) in [
            (at::CR0, s.cr0 | cr0::NE),
            (at::CR3, s.cr3),
            (at::CR4, s.cr4 | VMXE),
            (at::CR0_SHADOW, s.cr0),
            (at::DEBUGCTL, 0),
            (at::DR7, s.dr[5]),
            (at::RFLAGS, s.rflags),
            (at::RIP, s.rip),
            (at::RSP, s.gpr[4]),
            (at::SYSENTER_ESP, s.msrs.sysenter_esp),
            (at::SYSENTER_EIP, s.msrs.sysenter_eip),
        ] {
            self.page.set_u64(at, v);
        }
        self.page
            .set_u32(at::SYSENTER_CS, s.msrs.sysenter_cs as u32);
        self.set_shadow(s.interrupt_shadow);
    }

    fn store(&self) -> Switched {
        let (cr0, cr4) = self.seen_by_guest(self.page.u64(at::CR0), self.page.u64(at::CR4));
        Switched {
            rax: None,
            rsp: self.rsp(),
            rip: self.rip(),
            rflags: self.rflags(),
            cr0,
            cr2: None,
            cr3: self.page.u64(at::CR3),
            cr4,
            efer: self.page.u64(at::EFER),
            dr6: None,
            dr7: self.dr7(),
            cpl: self.cpl(),
            shadow: self.shadow(),
            segments: [register::ES, register::CS, register::SS, register::DS]
                .map(|number| self.segment(number)),
            based: Some(Based {
                fs: self.segment(register::FS),
                gs: self.segment(register::GS),
                ldtr: self.segment(register::LDTR),
                tr: self.segment(register::TR),
            }),
            gdtr: self.table(register::GDTR),
            idtr: self.table(register::IDTR),
        }
    }

    fn prepare(&mut self, event: Option<Event>) {
        let numeric_error = self.page.u64(at::CR0_SHADOW);
        self.set_control();
        self.page.set_u64(at::CR0_SHADOW, numeric_error);
        if let Some(event) = event {
            self.set_event(event);
        }
    }

    fn intercept(&self) -> Intercept {
        let reason = self.page.u32(at::REASON);
        if reason == reason::TRIPLE_FAULT {
            return Intercept::TripleFault;
        }
        if reason == reason::NONE {
            let why = self.page.u32(at::INSTRUCTION_ERROR);
            return Intercept::Stopped(format!("VMLAUNCH failed with error {why}"));
        }
        if reason & reason::ENTRY_FAILED != 0 {
            return Intercept::Stopped(format!(
                "VMLAUNCH refused the guest's state (reason {reason:#x}, RFLAGS {:#x}, event {:#x}, \
                 interruptibility {:#x})",
                self.rflags(),
                self.page.u32(at::ENTRY_EVENT),
                self.page.u32(at::INTERRUPTIBILITY)
            ));
        }
        if reason == reason::TASK_SWITCH {
            return Intercept::Stopped(
                "a hardware task switch, which is not done with VT-x".to_owned(),
            );
        }
        if self.page.u32(at::IDT_VECTORING) & VALID != 0 {
            return Intercept::Stopped("an intercept while an event was delivered".to_owned());
        }
        match reason {
            reason::RDTSC => Intercept::Rdtsc,
            reason::RDTSCP => Intercept::Rdtscp,
            reason::CPUID => Intercept::Cpuid,
            reason::RDPMC => Intercept::Rdpmc,
            reason::INVD => Intercept::Invd,
            // Outside 0 to 1FFFh and C0000000h to C0001FFFh, which the bitmap is for.
            reason::RDMSR | reason::WRMSR => Intercept::NoMsr,
            reason::CONTROL_REGISTER => self.control_register_intercept(),
            reason::GETSEC
            | reason::MWAIT
            | reason::MONITOR
            | reason::INVEPT
            | reason::INVVPID
            | reason::XSETBV
            | reason::RDRAND
            | reason::VMFUNC
            | reason::RDSEED => Intercept::Undefined,
            vmx if reason::VMX.contains(&vmx) => Intercept::Undefined,
            reason::EPT_VIOLATION => {
                Intercept::Stopped("the guest changed the trampoline's pages".to_owned())
            }
            other => Intercept::Stopped(format!(
                "the trampoline got exit {other:#x}, which it did not ask for"
            )),
        }
    }

    fn instruction_len(&self) -> Option<u64> {
        Some(u64::from(self.page.u32(at::INSTRUCTION_LEN) & 0xf))
    }

    fn page(&self) -> &Page {
        &self.page
    }

    fn page_mut(&mut self) -> &mut Page {
        &mut self.page
    }

    fn layout(&self) -> &'static Layout {
        &LAYOUT
    }

    /// DPL of SS; in real mode that is 0.
    fn cpl(&self) -> u8 {
        (self.segment(register::SS).access >> 5 & 3) as u8
    }

    fn code_segment(&self) -> Segment {
        self.segment(register::CS)
    }

    fn shadow(&self) -> bool {
        self.page.u32(at::INTERRUPTIBILITY) & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS) != 0
    }

    fn end_shadow(&mut self) {
        self.page.set_u32(at::INTERRUPTIBILITY, 0);
        self.page.set_u64(at::PENDING_DEBUG, 0);
    }

    fn rax(&self, regs: &kvm_regs) -> u64 {
        regs.rax
    }

    fn set_rax(&mut self, regs: &mut kvm_regs, rax: u64) {
        regs.rax = rax;
    }

    fn note_step(&mut self) -> bool {
        false
    }

    fn seen_by_guest(&self, cr0: u64, cr4: u64) -> (u64, u64) {
        let numeric_error = self.page.u64(at::CR0_SHADOW) & cr0::NE;
        (cr0 & !cr0::NE | numeric_error, cr4 & cr4::ALL)
    }

    fn set_numeric_error(&mut self, on: bool) {
        let shadow = self.page.u64(at::CR0_SHADOW) & !cr0::NE;
        self.page
            .set_u64(at::CR0_SHADOW, shadow | if on { cr0::NE } else { 0 });
    }
}

/// What a segment register is loaded as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Code,
    Data,
    /// With the CPL, which is DPL of SS also where SS is null.
    Stack(u8),
    Ldt,
    Task,
}

/// The register as an entry takes it (SDM vol. 3, 27.3.1.2): accessed, and G as the limit says.
fn loadable(s: &Segment, what: Loaded) -> Segment {
    let mut s = *s;
    if s.access & access::P == 0 {
        s.access |= access::UNUSABLE;
    }
    if s.access & access::UNUSABLE != 0 {
        if what == Loaded::Task {
            return segments::NO_TASK;
        }
        s.access = access::UNUSABLE;
    } else {
        s.access &= access::ALL & !access::G;
        if s.limit > 0xf_ffff {
            s.access |= access::G;
        }
        match what {
            Loaded::Task => s.access |= 2,
            Loaded::Ldt => {}
            Loaded::Code | Loaded::Data | Loaded::Stack(_) => s.access |= 1,
        }
    }
    if let Loaded::Stack(cpl) = what {
        s.access = s.access & !0x60 | u32::from(cpl & 3) << 5;
    }
    s
}

#[cfg(test)]
mod tests;
