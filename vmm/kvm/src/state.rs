//! The guest's whole state, out of the vCPU and into it.
//!
//! It is read from where the vCPU stands; it is always written so that the vCPU stands in the
//! trampoline, before VMRUN.

use ::engine::msr::number;
use ::engine::{CpuState, DescriptorTable, EngineError};
use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_xsave};

use crate::block::{Based, Switched};
use crate::engine::{KvmEngine, Standing};
use crate::errors::call;
use crate::fpu;
use crate::segments::{Use, canonical, from_kvm, to_kvm};
use crate::trampoline::{self, Kind};
use crate::vmcb::SVME;
use crate::walk::Paging;

/// Bits of DR6 that always read as 1, and of DR7.
const DR6_FIXED: u64 = 0xffff_0ff0;
pub const DR7_FIXED: u64 = 0x400;

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
            Standing::Trampoline => self.block.store(),
        };
        let regs = &self.vcpu.seen.regs;
        let sregs = &self.vcpu.seen.sregs;
        let mut msrs = self.msrs;
        msrs.efer = s.efer;
        msrs.kernel_gs_base = self.vcpu.msr(number::KERNEL_GS_BASE)?;
        let [es, cs, ss, ds] = s.segments;
        let based = s.based.unwrap_or(Based {
            fs: from_kvm(&sregs.fs),
            gs: from_kvm(&sregs.gs),
            ldtr: from_kvm(&sregs.ldt),
            tr: from_kvm(&sregs.tr),
        });
        let segments = [
            canonical(es, Use::Data),
            canonical(cs, Use::Code),
            canonical(ss, Use::Stack(s.cpl)),
            canonical(ds, Use::Data),
            canonical(based.fs, Use::Based),
            canonical(based.gs, Use::Based),
        ];
        Ok(CpuState {
            count: self.count,
            gpr: [
                s.rax.unwrap_or(regs.rax),
                regs.rcx,
                regs.rdx,
                regs.rbx,
                s.rsp,
                regs.rbp,
                regs.rsi,
                regs.rdi,
                regs.r8,
                regs.r9,
                regs.r10,
                regs.r11,
                regs.r12,
                regs.r13,
                regs.r14,
                regs.r15,
            ],
            rip: s.rip,
            rflags: s.rflags,
            segments,
            ldtr: canonical(based.ldtr, Use::Ldt),
            tr: canonical(based.tr, Use::Task),
            gdtr: s.gdtr,
            idtr: s.idtr,
            cr0: s.cr0,
            cr2: s.cr2.unwrap_or(sregs.cr2),
            cr3: s.cr3,
            cr4: s.cr4,
            cr8: sregs.cr8,
            dr: [
                debug.db[0],
                debug.db[1],
                debug.db[2],
                debug.db[3],
                s.dr6.unwrap_or(debug.dr6) & 0xe00f | DR6_FIXED,
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
        let (cr0, cr4) = self.block.seen_by_guest(sregs.cr0, sregs.cr4);
        Switched {
            rax: Some(regs.rax),
            rsp: regs.rsp,
            rip: regs.rip,
            rflags: regs.rflags,
            cr0,
            cr2: Some(sregs.cr2),
            cr3: sregs.cr3,
            cr4,
            efer: sregs.efer & !SVME,
            dr6: Some(debug.dr6),
            dr7: debug.dr7,
            // SVM keeps the CPL itself; KVM hands it out as this. With VMX it is this.
            cpl: sregs.ss.dpl,
            shadow: self.vcpu.seen.events.interrupt.shadow != 0,
            segments: [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds].map(from_kvm),
            based: None,
            gdtr: table(&sregs.gdt),
            idtr: table(&sregs.idt),
        }
    }

    /// Makes the vCPU stand before an entry with the guest in this state, which is a possible one.
    pub(crate) fn write_state(&mut self, s: &CpuState) -> Result<(), EngineError> {
        let mut sregs = self
            .vcpu
            .fd()
            .get_sregs()
            .map_err(|e| call("tell its registers", e))?;
        let kind = self.trampoline.kind;
        // Without SVME, as at power-on and after a shutdown, there is no guest to leave.
        if kind == Kind::Vmx || sregs.efer & SVME != 0 {
            self.vcpu.leave_guest(kind)?;
        }
        self.vcpu.clear_events()?;
        let paging = Paging {
            cr0: s.cr0,
            cr3: s.cr3,
            cr4: s.cr4,
            efer: s.msrs.efer,
        };
        self.block.load(s, paging.pdptes(&self.ram));
        self.trampoline.set_sregs(&mut sregs);
        if kind == Kind::Svm {
            sregs.fs = to_kvm(&s.segments[4]);
            sregs.gs = to_kvm(&s.segments[5]);
            sregs.ldt = to_kvm(&s.ldtr);
            sregs.tr = to_kvm(&s.tr);
            // AMD's processors, and QEMU's, keep the task register's type without the busy bit.
            sregs.tr.type_ &= !2;
        }
        sregs.cr2 = s.cr2;
        sregs.cr8 = s.cr8;
        sregs.interrupt_bitmap = [0; 4];
        self.vcpu
            .fd()
            .set_sregs(&sregs)
            .map_err(|e| call("set its registers", e))?;
        self.vcpu.seen.sregs = sregs;
        self.vcpu.set_cr8(s.cr8);
        let rip = self.trampoline.entry();
        self.vcpu.set_regs(kvm_regs {
            rax: self.trampoline.rax().unwrap_or(s.gpr[0]),
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
            (number::STAR, m.star),
            (number::LSTAR, m.lstar),
            (number::CSTAR, m.cstar),
            (number::SFMASK, m.sfmask),
            (number::KERNEL_GS_BASE, m.kernel_gs_base),
            (number::TSC_AUX, m.tsc_aux),
        ])?;
        if kind == Kind::Vmx {
            return Ok(());
        }
        self.vcpu.set_msrs(&[
            (VM_HSAVE_PA, trampoline::HOST_AREA),
            (number::SYSENTER_CS, m.sysenter_cs),
            (number::SYSENTER_ESP, m.sysenter_esp),
            (number::SYSENTER_EIP, m.sysenter_eip),
        ])
    }

    /// DR0 to DR3, and DR6 where the control block does not have it; the trampoline itself runs without
    /// breakpoints.
    fn write_debug(&self, s: &CpuState) -> Result<(), EngineError> {
        let dr6 = match self.trampoline.kind {
            Kind::Svm => DR6_FIXED,
            Kind::Vmx => s.dr[4],
        };
        self.vcpu.set_debug_registers(&kvm_debugregs {
            db: [s.dr[0], s.dr[1], s.dr[2], s.dr[3]],
            dr6,
            dr7: DR7_FIXED,
            ..Default::default()
        })
    }
}

/// APM vol. 2, 15.30.4.
const VM_HSAVE_PA: u32 = 0xc001_0117;
