//! Conversion between `Cpu` and the architectural state.

use engine::CpuState;

use crate::cpu::Cpu;

impl Cpu {
    /// The whole architectural state, at a boundary.
    pub fn state(&self) -> CpuState {
        let mut state = CpuState::at_reset();
        state.count = self.count;
        state.gpr.copy_from_slice(&self.gpr[..16]);
        state.rip = self.rip;
        state.rflags = self.rflags();
        state.segments = self.seg;
        state
    }

    /// Replaces the whole architectural state and drops everything derived from the old one. The
    /// error says what is wrong with `state`.
    pub fn set_state(&mut self, state: &CpuState) -> Result<(), String> {
        self.count = state.count;
        self.gpr[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.set_rflags(state.rflags);
        self.seg = state.segments;
        self.msrs = state.msrs;
        self.update_mode();
        self.update_translation();
        Ok(())
    }
}
