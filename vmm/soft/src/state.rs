//! Conversion between `Cpu` and the architectural state.

use engine::CpuState;

use crate::cpu::{Cpu, attention};
use crate::fpstate::FpState;

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
            // Delivered with the instruction that it is due behind.
            debug_due: false,
            shutdown: self.shutdown,
        }
    }

    /// Replaces the whole architectural state and drops everything derived from the old one. The
    /// error says what is wrong with `state`; nothing is changed then.
    pub fn set_state(&mut self, state: &CpuState) -> Result<(), String> {
        engine::check(state)?;
        if state.debug_due {
            return Err("a #DB is due, which this engine would have delivered by then".to_owned());
        }
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
