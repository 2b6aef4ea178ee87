//! The control block on AMD's processors, the VMCB (AMD64 APM vol. 2, appendix B). VMRUN does not load
//! FS, GS, TR, LDTR, the SYSCALL and SYSENTER MSRs and KERNEL_GS_BASE (15.5.1): the vCPU's are the guest's.

use engine::bits::access;
use engine::{CpuState, DescriptorTable, Segment};
use kvm_bindings::kvm_regs;

use crate::block::{Block, Event, Intercept, Layout, SINGLE_STEP, Switched};
use crate::page::Page;

/// EFER.SVME, which VMRUN wants in the guest's EFER as well.
pub const SVME: u64 = 1 << 12;

/// Offsets of the fields used.
mod at {
    pub const INTERCEPTS: usize = 0x000;
    pub const ASID: usize = 0x058;
    pub const INTERRUPT_STATE: usize = 0x068;
    pub const EXIT_CODE: usize = 0x070;
    pub const EXIT_INT_INFO: usize = 0x088;
    pub const EVENT_INJECTION: usize = 0x0a8;
    /// End of the control area's part that is rewritten before each VMRUN.
    pub const CONTROL_END: usize = 0x0d8;
    pub const ES: usize = 0x400;
    pub const CS: usize = 0x410;
    pub const SS: usize = 0x420;
    pub const DS: usize = 0x430;
    pub const GDTR: usize = 0x460;
    pub const IDTR: usize = 0x480;
    pub const CPL: usize = 0x4cb;
    pub const EFER: usize = 0x4d0;
    pub const CR4: usize = 0x548;
    pub const CR3: usize = 0x550;
    pub const CR0: usize = 0x558;
    pub const DR7: usize = 0x560;
    pub const DR6: usize = 0x568;
    pub const RFLAGS: usize = 0x570;
    pub const RIP: usize = 0x578;
    pub const RSP: usize = 0x5d8;
    pub const RAX: usize = 0x5f8;
    pub const CR2: usize = 0x640;
    pub const PAT: usize = 0x668;
}

/// Exit codes (appendix C).
mod exit {
    pub const RDTSC: u64 = 0x6e;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const INVLPGA: u64 = 0x7a;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const VMLOAD: u64 = 0x82;
    pub const VMSAVE: u64 = 0x83;
    pub const STGI: u64 = 0x84;
    pub const CLGI: u64 = 0x85;
    pub const SKINIT: u64 = 0x86;
    pub const RDTSCP: u64 = 0x87;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT: u64 = 0x8b;
    pub const MWAIT_ARMED: u64 = 0x8c;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    /// The guest's state was refused.
    pub const INVALID: u64 = u64::MAX;
}

/// Codes of the intercepted instructions.
const INTERCEPTED: [u64; 16] = [
    exit::RDTSC,
    exit::RDPMC,
    exit::CPUID,
    exit::INVLPGA,
    exit::VMRUN,
    exit::VMMCALL,
    exit::VMLOAD,
    exit::VMSAVE,
    exit::STGI,
    exit::CLGI,
    exit::SKINIT,
    exit::RDTSCP,
    exit::MONITOR,
    exit::MWAIT,
    exit::XSETBV,
    exit::RDPRU,
];

/// As EVENTINJ takes it (APM vol. 2, 15.20).
fn encode(event: Event) -> u64 {
    const VALID: u64 = 1 << 31;
    match event {
        Event::Interrupt(vector) => u64::from(vector) | VALID,
        Event::Exception(vector, None) => u64::from(vector) | 3 << 8 | VALID,
        Event::Exception(vector, Some(error)) => {
            u64::from(vector) | 3 << 8 | 1 << 11 | VALID | u64::from(error) << 32
        }
    }
}

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

/// The VMCB.
pub struct Vmcb {
    page: Page,
}

impl Vmcb {
    pub fn new(page: Page) -> Self {
        Self { page }
    }

    /// A segment register. GDTR and IDTR are in the same form.
    fn segment(&self, at: usize) -> Segment {
        let word = self.page.u32(at);
        let attributes = word >> 16;
        Segment {
            selector: word as u16,
            access: attributes & 0xff | (attributes & 0xf00) << 4,
            base: self.page.u64(at + 8),
            limit: self.page.u32(at + 4),
        }
    }

    fn table(&self, at: usize) -> DescriptorTable {
        let s = self.segment(at);
        DescriptorTable {
            base: s.base,
            limit: s.limit as u16,
        }
    }

    fn set_segment(&mut self, at: usize, s: &Segment) {
        let attributes = if s.access & access::UNUSABLE != 0 {
            0
        } else {
            s.access & 0xff | s.access >> 4 & 0xf00
        };
        self.page
            .set_u32(at, u32::from(s.selector) | attributes << 16);
        self.page.set_u32(at + 4, s.limit);
        self.page.set_u64(at + 8, s.base);
    }

    /// Writes the control area as VMRUN is to find it.
    fn set_control(&mut self, shadow: bool, event: Option<Event>) {
        for offset in (0..at::CONTROL_END).step_by(8) {
            self.page.set_u64(offset, 0);
        }
        for code in INTERCEPTED {
            // Vectors 3 and 4 begin with the codes 60h and 80h.
            let word = at::INTERCEPTS + 0xc + 4 * usize::from(code >= 0x80);
            self.page
                .set_u32(word, self.page.u32(word) | 1 << (code & 0x1f));
        }
        // Without L2 nested paging ASIDs mean nothing, but 0 is refused.
        self.page.set_u32(at::ASID, 1);
        self.page.set_u32(at::INTERRUPT_STATE, u32::from(shadow));
        self.page
            .set_u64(at::EVENT_INJECTION, event.map_or(0, encode));
    }

    /// Whether the delivery of an event was broken off.
    fn was_delivering(&self) -> bool {
        self.page.u64(at::EXIT_INT_INFO) & 1 << 31 != 0
    }
}

impl Block for Vmcb {
    fn load(&mut self, s: &CpuState, _pdptes: [u64; 4]) {
        self.set_control(s.interrupt_shadow, None);
        for (at, i) in [(at::ES, 0), (at::CS, 1), (at::SS, 2), (at::DS, 3)] {
            self.set_segment(at, &s.segments[i]);
        }
        for (at, t) in [(at::GDTR, &s.gdtr), (at::IDTR, &s.idtr)] {
            let segment = Segment {
                selector: 0,
                access: 0,
                base: t.base,
                limit: u32::from(t.limit),
            };
            self.set_segment(at, &segment);
        }
        self.page.put(at::CPL, s.cpl);
        for (at, v) in [
            (at::EFER, s.msrs.efer | SVME),
            (at::CR0, s.cr0),
            (at::CR2, s.cr2),
            (at::CR3, s.cr3),
            (at::CR4, s.cr4),
            (at::DR6, s.dr[4]),
            (at::DR7, s.dr[5]),
            (at::RFLAGS, s.rflags),
            (at::RIP, s.rip),
            (at::RSP, s.gpr[4]),
            (at::RAX, s.gpr[0]),
            (at::PAT, s.msrs.pat),
        ] {
            self.page.set_u64(at, v);
        }
    }

    fn store(&self) -> Switched {
        Switched {
            rax: Some(self.page.u64(at::RAX)),
            rsp: self.page.u64(at::RSP),
            rip: self.page.u64(at::RIP),
            rflags: self.page.u64(at::RFLAGS),
            cr0: self.page.u64(at::CR0),
            cr2: Some(self.page.u64(at::CR2)),
            cr3: self.page.u64(at::CR3),
            cr4: self.page.u64(at::CR4),
            efer: self.page.u64(at::EFER) & !SVME,
            dr6: Some(self.page.u64(at::DR6)),
            dr7: self.page.u64(at::DR7),
            cpl: self.cpl(),
            shadow: self.shadow(),
            segments: [at::ES, at::CS, at::SS, at::DS].map(|at| self.segment(at)),
            based: None,
            gdtr: self.table(at::GDTR),
            idtr: self.table(at::IDTR),
        }
    }

    fn prepare(&mut self, event: Option<Event>) {
        self.set_control(self.shadow(), event);
    }

    fn intercept(&self) -> Intercept {
        let code = self.page.u64(at::EXIT_CODE);
        if self.was_delivering() {
            return Intercept::Stopped("an intercept while an event was delivered".to_owned());
        }
        match code {
            exit::RDTSC => Intercept::Rdtsc,
            exit::RDTSCP => Intercept::Rdtscp,
            exit::CPUID => Intercept::Cpuid,
            exit::RDPMC => Intercept::Rdpmc,
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
            | exit::RDPRU => Intercept::Undefined,
            exit::INVALID => Intercept::Stopped("VMRUN refused the guest's state".to_owned()),
            other => Intercept::Stopped(format!(
                "the trampoline got exit {other:#x}, which it did not ask for"
            )),
        }
    }

    /// KVM shows its guests' hypervisors no next RIP unless told to.
    fn instruction_len(&self) -> Option<u64> {
        None
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

    fn cpl(&self) -> u8 {
        self.page.get(at::CPL)
    }

    fn code_segment(&self) -> Segment {
        self.segment(at::CS)
    }

    fn shadow(&self) -> bool {
        self.page.u32(at::INTERRUPT_STATE) & 1 != 0
    }

    fn end_shadow(&mut self) {
        self.page.set_u32(at::INTERRUPT_STATE, 0);
    }

    fn rax(&self, _regs: &kvm_regs) -> u64 {
        self.page.u64(at::RAX)
    }

    fn set_rax(&mut self, _regs: &mut kvm_regs, rax: u64) {
        self.page.set_u64(at::RAX, rax);
    }

    fn note_step(&mut self) -> bool {
        self.page
            .set_u64(at::DR6, self.page.u64(at::DR6) | SINGLE_STEP);
        true
    }

    fn seen_by_guest(&self, cr0: u64, cr4: u64) -> (u64, u64) {
        (cr0, cr4)
    }

    fn set_numeric_error(&mut self, _on: bool) {}
}

#[cfg(test)]
mod tests;
