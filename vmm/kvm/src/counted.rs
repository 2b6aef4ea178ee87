//! Stopping the vCPU between exits: what a landing by the branch counter needs of the engine.
//!
//! KVM's debugging is of the vCPU as it stands. VMRUN loads the nested guest's own debug registers,
//! so breakpoints are set only once the vCPU is in the guest ([`KvmEngine::enter`]): VMRUN itself is
//! stepped, which stops behind it with nothing of the guest executed.

mod engine;
mod host;
mod stepper;
mod subject;
mod tally;

use ::engine::EngineError;
use ::engine::bits::rflags;

use crate::debug::Watch;
use crate::engine::{KvmEngine, Standing};
use crate::errors::stopped;
use crate::kick;
use crate::trampoline;
use crate::vcpu::Raw;
use crate::vmcb::{Event, at};

pub use self::engine::{CountedEngine, Watched};
pub use host::HostCounter;
pub use subject::{NoSubject, subject};
pub(crate) use tally::Tally;

/// Debug exits of the trampoline before its VMRUN, at most.
const MAX_STEPS: u32 = 16;

impl KvmEngine {
    /// Brings a vCPU that stands in the trampoline into the guest, of which nothing is executed. The
    /// event that VMRUN delivers, if there is one, is still on its way then.
    fn enter(&mut self) -> Result<Option<Event>, EngineError> {
        if self.standing == Standing::Guest {
            return Ok(None);
        }
        let event = self.event;
        self.prepare_entry()?;
        // Completes the write to the port that told of the intercept; then VMRUN is next.
        let raw = self.vcpu.run(true)?;
        if raw != Raw::Interrupted {
            let what = format!("{raw:?} where the trampoline should have gone on");
            return Err(stopped(&what, self.vcpu.seen.regs.rip));
        }
        let mut regs = self.vcpu.seen.regs;
        (regs.rip, regs.rax) = trampoline::entry();
        self.vcpu.set_regs(regs);
        let trap = self.vmcb.u64(at::RFLAGS) & rflags::TF != 0;
        let dr7 = self.vmcb.u64(at::DR7);
        for _ in 0..MAX_STEPS {
            self.vcpu.watch(Watch::STEP)?;
            let raw = self.vcpu.run(false)?;
            match raw {
                Raw::Debug { .. } => {
                    let inside = self.vcpu.nesting()?.in_guest;
                    self.vcpu.unwatch(inside && trap)?;
                    if inside {
                        self.standing = Standing::Guest;
                        self.guest_dr7 = dr7;
                        return Ok(event);
                    }
                }
                Raw::Interrupted => {
                    self.vcpu.unwatch(false)?;
                    self.take_kick()?;
                }
                raw => {
                    let what = format!("{raw:?} where VMRUN should have been stepped");
                    return Err(stopped(&what, self.vcpu.seen.regs.rip));
                }
            }
        }
        let what = "VMRUN could not be stepped";
        Err(stopped(what, self.vcpu.seen.regs.rip))
    }

    /// Takes the signal that ended KVM_RUN, if it is one of ours.
    fn take_kick(&mut self) -> Result<(), EngineError> {
        if !kick::take_signal() {
            return Ok(());
        }
        self.once = None;
        self.kicked = true;
        match &self.kick {
            Some(kick) => kick.arm().map_err(EngineError::Host),
            None => Ok(()),
        }
    }
}
