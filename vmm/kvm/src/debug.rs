//! KVM's guest debugging: breakpoints in the processor's registers and single steps.
//!
//! KVM keeps the guest's own debug registers aside meanwhile. RFLAGS.TF is set in the guest for a
//! step, which the guest can see; a breakpoint leaves no trace.

use engine::EngineError;
use engine::bits::rflags;
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP,
    kvm_guest_debug, kvm_guest_debug_arch,
};

use crate::errors::call;
use crate::state::DR7_FIXED;
use crate::vcpu::Vcpu;

/// A processor's breakpoints.
pub const BREAKPOINTS: usize = 4;

/// What stops the vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Watch<'a> {
    /// After one instruction or iteration.
    pub step: bool,
    /// Before the instructions at these linear addresses; 4 at most.
    pub breakpoints: &'a [u64],
    /// Before anything else the guest gets a debug exception of its own.
    pub inject: bool,
}

impl Watch<'_> {
    /// One instruction, and nothing else.
    pub const STEP: Self = Self {
        step: true,
        breakpoints: &[],
        inject: false,
    };
}

impl Vcpu {
    /// Replaces what stops the vCPU.
    pub fn watch(&mut self, watch: Watch<'_>) -> Result<(), EngineError> {
        self.sync_regs()?;
        let mut control = KVM_GUESTDBG_ENABLE;
        if watch.step {
            control |= KVM_GUESTDBG_SINGLESTEP;
        }
        if watch.inject {
            control |= KVM_GUESTDBG_INJECT_DB;
        }
        let mut arch = kvm_guest_debug_arch::default();
        if !watch.breakpoints.is_empty() {
            control |= KVM_GUESTDBG_USE_HW_BP;
            arch.debugreg[7] = DR7_FIXED;
            for (i, linear) in watch.breakpoints.iter().take(BREAKPOINTS).enumerate() {
                arch.debugreg[i] = *linear;
                // Enabled; of length 1, for execution.
                arch.debugreg[7] |= 2 << (2 * i);
            }
        }
        self.guest_debug(control, arch)
    }

    /// Nothing stops the vCPU any more. `trap` is the guest's own TF, which KVM has forgotten if it
    /// stepped.
    pub fn unwatch(&mut self, trap: bool) -> Result<(), EngineError> {
        self.guest_debug(0, kvm_guest_debug_arch::default())?;
        if trap {
            let mut regs = self.seen.regs;
            regs.rflags |= rflags::TF;
            self.set_regs(regs);
        }
        Ok(())
    }

    fn guest_debug(&self, control: u32, arch: kvm_guest_debug_arch) -> Result<(), EngineError> {
        let request = kvm_guest_debug {
            control,
            pad: 0,
            arch,
        };
        self.fd()
            .set_guest_debug(&request)
            .map_err(|e| call("set breakpoints", e))
    }
}
