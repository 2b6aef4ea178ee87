//! The shadow of STI, into which no interrupt may enter.
//!
//! After an STI that sets IF, interrupts enter only behind the next instruction (APM vol. 3, STI). An
//! emulated processor may lose that when it leaves the guest inside the shadow: QEMU 7.2's VMRUN does
//! not load it (`interrupt_shadow`, APM vol. 2, 15.21.5). The window then opens one instruction early,
//! on one replica and not on the other. So where a window opens behind a byte that may be an STI, the
//! vCPU goes one instruction further. Whatever the processor did, the interrupt enters at one place.

use ::engine::bits::rflags;
use ::engine::{Engine, EngineError, Exit};

use crate::debug::Watch;
use crate::engine::{KvmEngine, Standing};
use crate::vcpu::Raw;
use crate::walk::{self, Memory, Paging};

const STI: u8 = 0xfb;

impl KvmEngine {
    /// Whether the byte before RIP is an STI's, or one that looks like it.
    pub(crate) fn may_be_in_shadow(&self) -> bool {
        let sregs = &self.vcpu.seen.sregs;
        let before = walk::linear(sregs, self.vcpu.seen.regs.rip.wrapping_sub(1));
        let byte = Paging::of_vcpu(sregs)
            .translate(&self.ram, before)
            .and_then(|gpa| self.ram.read_u8(gpa));
        byte == Some(STI)
    }

    /// Goes one instruction further than where the window has opened.
    pub(crate) fn pass_shadow(&mut self) -> Result<Option<Exit>, EngineError> {
        // Otherwise the window would be all that happens.
        self.vcpu.request_window(false);
        let traps = self.rflags() & rflags::TF != 0;
        self.vcpu.watch(Watch::STEP)?;
        self.standing = Standing::Underway;
        let raw = self.run_guest();
        self.vcpu.unwatch(traps)?;
        self.vcpu.request_window(true);
        match raw? {
            Raw::Debug { .. } => {
                self.standing = Standing::Guest;
                if traps {
                    // The guest's own step, which was taken for ours.
                    self.vcpu.raise_step()?;
                }
                match self.can_interrupt() && self.may_be_in_shadow() {
                    true => self.pass_shadow(),
                    false => Ok(None),
                }
            }
            raw => self.handle(raw),
        }
    }
}
