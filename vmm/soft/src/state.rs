//! Conversion between `Cpu` and the architectural state.

use engine::{CpuState, Segment};

use crate::control::{cr0, cr4, efer};
use crate::cpu::{Cpu, attention};
use crate::descriptor::access;
use crate::flags::{ALL, VM};
use crate::fpstate::FpState;
use crate::mmu::is_canonical;
use crate::phys::PHYSICAL_BITS;

impl Cpu {
    /// The whole architectural state, at a boundary.
    pub fn state(&self) -> CpuState {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.gpr[..16]);
        CpuState {
            count: self.count,
            gpr,
            rip: self.rip,
            rflags: self.rflags(),
            segments: self.seg,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.cr8,
            dr: self.dr,
            xcr0: self.xcr0,
            msrs: self.msrs,
            fxsave: self.fp.to_image().to_vec(),
            cpl: self.cpl,
            halted: self.halted,
            interrupt_shadow: self.interrupt_shadow,
            shutdown: self.shutdown,
        }
    }

    /// Replaces the whole architectural state and drops everything derived from the old one. The
    /// error says what is wrong with `state`; nothing is changed then.
    pub fn set_state(&mut self, state: &CpuState) -> Result<(), String> {
        check(state)?;
        let image = <&[u8; FpState::SIZE]>::try_from(state.fxsave.as_slice())
            .map_err(|_| format!("the FXSAVE image has {} bytes, not 512", state.fxsave.len()))?;
        let fp = FpState::from_image(image).ok_or("MXCSR has reserved bits set")?;
        self.fp = fp;
        self.count = state.count;
        self.gpr[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.seg = state.segments;
        self.ldtr = state.ldtr;
        self.tr = state.tr;
        self.gdtr = state.gdtr;
        self.idtr = state.idtr;
        self.cr0 = state.cr0;
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4;
        self.cr8 = state.cr8;
        self.dr = state.dr;
        self.xcr0 = state.xcr0;
        self.msrs = state.msrs;
        self.cpl = state.cpl;
        self.halted = state.halted;
        self.interrupt_shadow = state.interrupt_shadow;
        self.shutdown = state.shutdown;
        self.set_rflags(state.rflags);
        self.update_breakpoints();
        for (on, bit) in [
            (state.halted, attention::HALTED),
            (state.interrupt_shadow, attention::SHADOW),
            (state.shutdown, attention::SHUTDOWN),
        ] {
            self.attention &= !bit;
            if on {
                self.attention |= bit;
            }
        }
        self.mmu.tlb.flush();
        self.translation_changed();
        Ok(())
    }
}

/// Refuses what this CPU cannot be in.
fn check(s: &CpuState) -> Result<(), String> {
    let long = s.msrs.efer & efer::LMA != 0;
    let paging = s.cr0 & cr0::PG != 0;
    let known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    let refuse = |wrong: bool, what: &str, value: u64| {
        if wrong {
            return Err(format!("{what} cannot be {value:#x}"));
        }
        Ok(())
    };
    refuse(s.cr0 & !cr0::ALL != 0 || s.cr0 & cr0::ET == 0, "CR0", s.cr0)?;
    refuse(paging && s.cr0 & cr0::PE == 0, "CR0", s.cr0)?;
    refuse(s.cr4 & !cr4::ALL != 0, "CR4", s.cr4)?;
    refuse(long && s.cr4 & cr4::PAE == 0, "CR4 in long mode", s.cr4)?;
    refuse(s.cr3 >> PHYSICAL_BITS != 0, "CR3", s.cr3)?;
    refuse(s.cr8 > 15, "CR8", s.cr8)?;
    refuse(s.xcr0 != 1, "XCR0", s.xcr0)?;
    let lma = paging && s.msrs.efer & efer::LME != 0;
    refuse(
        s.msrs.efer & !known != 0 || lma != long,
        "EFER",
        s.msrs.efer,
    )?;
    let flags = s.rflags & !ALL != 2 || s.rflags & VM != 0;
    refuse(flags, "RFLAGS", s.rflags)?;
    refuse(s.cpl > 3, "CPL", u64::from(s.cpl))?;
    refuse(s.dr[4] >> 32 != 0, "DR6", s.dr[4])?;
    refuse(s.dr[5] >> 32 != 0, "DR7", s.dr[5])?;
    for segment in s.segments.iter().chain([&s.ldtr, &s.tr]) {
        check_segment(segment)?;
    }
    for (base, what) in [
        (s.gdtr.base, "GDTR's base"),
        (s.idtr.base, "IDTR's base"),
        (s.msrs.lstar, "LSTAR"),
        (s.msrs.cstar, "CSTAR"),
        (s.msrs.kernel_gs_base, "KERNEL_GS_BASE"),
        (s.msrs.sysenter_esp, "SYSENTER_ESP"),
        (s.msrs.sysenter_eip, "SYSENTER_EIP"),
    ] {
        refuse(!is_canonical(base), what, base)?;
    }
    Ok(())
}

fn check_segment(s: &Segment) -> Result<(), String> {
    let known = 0xf0ff | access::UNUSABLE;
    if s.access & !known != 0 {
        return Err(format!(
            "segment {:#x} cannot have access rights {:#x}",
            s.selector, s.access
        ));
    }
    if !is_canonical(s.base) {
        return Err(format!(
            "segment {:#x} cannot have base {:#x}",
            s.selector, s.base
        ));
    }
    Ok(())
}
