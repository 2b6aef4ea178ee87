//! The guest's whole state, out of the vCPU and into it.
//!
//! It is read from where the vCPU stands; it is always written so that the vCPU stands in the
//! trampoline, before VMRUN.

use ::engine::msr::number;
use ::engine::{CpuState, DescriptorTable, EngineError, Segment};
use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_xsave};

use crate::engine::{KvmEngine, Standing};
use crate::errors::call;
use crate::fpu;
use crate::segments::{Use, canonical, from_kvm, to_kvm};
use crate::trampoline::{self, SVME};
use crate::vmcb::at;

/// Bits of DR6 that always read as 1, and of DR7.
const DR6_FIXED: u64 = 0xffff_0ff0;
pub const DR7_FIXED: u64 = 0x400;

/// What VMRUN loads, and KVM has while the vCPU stands in the guest.
struct Switched {
    rax: u64,
    rsp: u64,
    rip: u64,
    rflags: u64,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    dr6: u64,
    dr7: u64,
    cpl: u8,
    shadow: bool,
    /// ES, CS, SS, DS.
    segments: [Segment; 4],
    gdtr: DescriptorTable,
    idtr: DescriptorTable,
}

fn table(t: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: t.base,
        limit: t.limit,
    }
}

impl KvmEngine {
    /// The guest's state.
    pub(crate) fn read_state(&self) -> CpuState {
        if let Some(state) = &self.shut_down {
            let mut state = (**state).clone();
            state.count = self.count;
            return state;
        }
        self.gather()
            .expect("KVM tells the state of a vCPU that does not run")
    }

    fn gather(&self) -> Result<CpuState, EngineError> {
        let debug = self.vcpu.debug_registers()?;
        let s = match self.standing {
            Standing::Guest | Standing::Underway => self.in_guest(&debug),
            Standing::Trampoline => self.in_block(),
        };
        let regs = &self.vcpu.seen.regs;
        let sregs = &self.vcpu.seen.sregs;
        let mut msrs = self.msrs;
        msrs.efer = s.efer & !SVME;
        msrs.kernel_gs_base = self.vcpu.msr(number::KERNEL_GS_BASE)?;
        let [es, cs, ss, ds] = s.segments;
        let segments = [
            canonical(es, Use::Data),
            canonical(cs, Use::Code),
            canonical(ss, Use::Stack(s.cpl)),
            canonical(ds, Use::Data),
            canonical(from_kvm(&sregs.fs), Use::Based),
            canonical(from_kvm(&sregs.gs), Use::Based),
        ];
        Ok(CpuState {
            count: self.count,
            gpr: [
                s.rax, regs.rcx, regs.rdx, regs.rbx, s.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8,
                regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
            ],
            rip: s.rip,
            rflags: s.rflags,
            segments,
            ldtr: canonical(from_kvm(&sregs.ldt), Use::Ldt),
            tr: canonical(from_kvm(&sregs.tr), Use::Task),
            gdtr: s.gdtr,
            idtr: s.idtr,
            cr0: s.cr0,
            cr2: s.cr2,
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: sregs.cr8,
            dr: [
                debug.db[0],
                debug.db[1],
                debug.db[2],
                debug.db[3],
                s.dr6 & 0xe00f | DR6_FIXED,
                s.dr7 & 0xffff_2bff | DR7_FIXED,
            ],
            xcr0: 1,
            msrs,
            fxsave: fpu::to_image(&self.vcpu.xsave()?),
            cpl: s.cpl,
            halted: self.halted,
            interrupt_shadow: s.shadow,
            debug_due: self.debug_due(),
            shutdown: false,
        })
    }

    fn in_guest(&self, debug: &kvm_debugregs) -> Switched {
        let regs = &self.vcpu.seen.regs;
        let sregs = &self.vcpu.seen.sregs;
        Switched {
            rax: regs.rax,
            rsp: regs.rsp,
            rip: regs.rip,
            rflags: regs.rflags,
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
            dr6: debug.dr6,
            dr7: debug.dr7,
            // SVM keeps the CPL itself; KVM hands it out as this.
            cpl: sregs.ss.dpl,
            shadow: self.vcpu.seen.events.interrupt.shadow != 0,
            segments: [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds].map(from_kvm),
            gdtr: table(&sregs.gdt),
            idtr: table(&sregs.idt),
        }
    }

    fn in_block(&self) -> Switched {
        let b = &self.vmcb;
        let table = |at| {
            let s = b.segment(at);
            DescriptorTable {
                base: s.base,
                limit: s.limit as u16,
            }
        };
        Switched {
            rax: b.u64(at::RAX),
            rsp: b.u64(at::RSP),
            rip: b.u64(at::RIP),
            rflags: b.u64(at::RFLAGS),
            cr0: b.u64(at::CR0),
            cr2: b.u64(at::CR2),
            cr3: b.u64(at::CR3),
            cr4: b.u64(at::CR4),
            efer: b.u64(at::EFER),
            dr6: b.u64(at::DR6),
            dr7: b.u64(at::DR7),
            cpl: b.u8(at::CPL),
            shadow: b.shadow(),
            segments: [at::ES, at::CS, at::SS, at::DS].map(|at| b.segment(at)),
            gdtr: table(at::GDTR),
            idtr: table(at::IDTR),
        }
    }

    /// Makes the vCPU stand before VMRUN with the guest in this state, which is a possible one.
    pub(crate) fn write_state(&mut self, s: &CpuState) -> Result<(), EngineError> {
        let mut sregs = self
            .vcpu
            .fd()
            .get_sregs()
            .map_err(|e| call("tell its registers", e))?;
        // Without SVME, as at power-on and after a shutdown, there is no guest to leave.
        if sregs.efer & SVME != 0 {
            self.vcpu.leave_guest()?;
        }
        self.vcpu.clear_events()?;
        self.write_block(s);
        trampoline::set_sregs(&mut sregs);
        sregs.fs = to_kvm(&s.segments[4]);
        sregs.gs = to_kvm(&s.segments[5]);
        sregs.ldt = to_kvm(&s.ldtr);
        sregs.tr = to_kvm(&s.tr);
        // AMD's processors, and QEMU's, keep the task register's type without the busy bit.
        sregs.tr.type_ &= !2;
        sregs.cr8 = s.cr8;
        sregs.interrupt_bitmap = [0; 4];
        self.vcpu
            .fd()
            .set_sregs(&sregs)
            .map_err(|e| call("set its registers", e))?;
        self.vcpu.seen.sregs = sregs;
        self.vcpu.set_cr8(s.cr8);
        let (rip, rax) = trampoline::entry();
        self.vcpu.set_regs(kvm_regs {
            rax,
            rbx: s.gpr[3],
            rcx: s.gpr[1],
            rdx: s.gpr[2],
            rsi: s.gpr[6],
            rdi: s.gpr[7],
            rsp: 0,
            rbp: s.gpr[5],
            r8: s.gpr[8],
            r9: s.gpr[9],
            r10: s.gpr[10],
            r11: s.gpr[11],
            r12: s.gpr[12],
            r13: s.gpr[13],
            r14: s.gpr[14],
            r15: s.gpr[15],
            rip,
            rflags: 2,
        });
        self.write_debug(s)?;
        let mut area = kvm_xsave::default();
        fpu::from_image(&s.fxsave, &mut area);
        self.vcpu.set_xsave(&area)?;
        let m = &s.msrs;
        self.vcpu.set_msrs(&[
            (VM_HSAVE_PA, trampoline::HOST_SAVE),
            (number::STAR, m.star),
            (number::LSTAR, m.lstar),
            (number::CSTAR, m.cstar),
            (number::SFMASK, m.sfmask),
            (number::KERNEL_GS_BASE, m.kernel_gs_base),
            (number::SYSENTER_CS, m.sysenter_cs),
            (number::SYSENTER_ESP, m.sysenter_esp),
            (number::SYSENTER_EIP, m.sysenter_eip),
            (number::TSC_AUX, m.tsc_aux),
        ])
    }

    /// DR0 to DR3; the trampoline itself runs without breakpoints.
    fn write_debug(&self, s: &CpuState) -> Result<(), EngineError> {
        self.vcpu.set_debug_registers(&kvm_debugregs {
            db: [s.dr[0], s.dr[1], s.dr[2], s.dr[3]],
            dr6: DR6_FIXED,
            dr7: DR7_FIXED,
            ..Default::default()
        })
    }

    fn write_block(&mut self, s: &CpuState) {
        let b = &mut self.vmcb;
        b.set_control(s.interrupt_shadow, None);
        for (at, i) in [(at::ES, 0), (at::CS, 1), (at::SS, 2), (at::DS, 3)] {
            b.set_segment(at, &s.segments[i]);
        }
        for (at, t) in [(at::GDTR, &s.gdtr), (at::IDTR, &s.idtr)] {
            let segment = Segment {
                selector: 0,
                access: 0,
                base: t.base,
                limit: u32::from(t.limit),
            };
            b.set_segment(at, &segment);
        }
        b.set_u8(at::CPL, s.cpl);
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
            b.set_u64(at, v);
        }
    }
}

/// APM vol. 2, 15.30.4.
const VM_HSAVE_PA: u32 = 0xc001_0117;
