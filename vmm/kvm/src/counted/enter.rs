//! From the trampoline into the guest, of which nothing is executed.
//!
//! * AMD-V: VMRUN loads the nested guest's own debug registers, but can itself be stepped, which stops
//!   behind it.
//! * VT-x: VMLAUNCH cannot be stepped, but KVM takes its breakpoints along: one stops the guest at its
//!   next instruction. An event that the entry should deliver is given to KVM then.

use ::engine::EngineError;
use ::engine::bits::rflags;
use landing::{code_linear, handler};

use crate::block::Event;
use crate::debug::{BREAKPOINTS, Watch};
use crate::engine::{KvmEngine, Standing};
use crate::errors::stopped;
use crate::trampoline::Kind;
use crate::vcpu::Raw;

/// Debug exits of the trampoline before the guest is entered, at most.
const MAX_STEPS: u32 = 16;

/// #DF, #GP, #PF: what the fetch of an instruction may raise.
const FETCH_FAULTS: [u8; BREAKPOINTS - 1] = [8, 13, 14];

/// What came of it.
pub enum Entered {
    /// The vCPU is in the guest; the event is still on its way.
    Inside(Option<Event>),
    /// The guest could not be entered without this exit.
    Left(Raw),
}

impl KvmEngine {
    /// Brings a vCPU that stands in the trampoline into the guest.
    pub(super) fn enter(&mut self) -> Result<Entered, EngineError> {
        if self.standing != Standing::Trampoline {
            return Ok(Entered::Inside(None));
        }
        match self.trampoline.kind {
            Kind::Svm => self.step_into(),
            Kind::Vmx => self.break_inside(),
        }
    }

    fn step_into(&mut self) -> Result<Entered, EngineError> {
        let event = self.event;
        self.prepare_entry()?;
        self.stand_before_entry()?;
        let trap = self.block.rflags() & rflags::TF != 0;
        let dr7 = self.block.dr7();
        for _ in 0..MAX_STEPS {
            self.vcpu.watch(Watch::STEP)?;
            let raw = self.vcpu.run(false)?;
            match raw {
                Raw::Debug { .. } => {
                    let inside = self.nesting()?.in_guest;
                    self.vcpu.unwatch(inside && trap)?;
                    if inside {
                        self.entered(dr7);
                        return Ok(Entered::Inside(event));
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

    fn break_inside(&mut self) -> Result<Entered, EngineError> {
        let state = self.read_state();
        let event = self.event.take();
        let mut stops = vec![code_linear(&state, state.rip)];
        for vector in FETCH_FAULTS {
            stops.extend(handler(self, &state, vector));
        }
        self.prepare_entry()?;
        // RF would let the guest pass the breakpoint at its next instruction.
        self.block.set_rflags(state.rflags & !rflags::RF);
        let dr7 = self.block.dr7();
        self.stand_before_entry()?;
        self.vcpu.watch(Watch {
            step: false,
            breakpoints: &stops,
            inject: false,
        })?;
        loop {
            let raw = self.vcpu.run(false)?;
            match raw {
                Raw::Debug { .. } if self.nesting()?.in_guest => break,
                Raw::Interrupted => self.take_kick()?,
                raw => {
                    self.vcpu.unwatch(false)?;
                    self.tally()?;
                    return Ok(Entered::Left(raw));
                }
            }
        }
        self.vcpu.unwatch(false)?;
        if self.vcpu.seen.regs.rip == state.rip && state.rflags & rflags::RF != 0 {
            let mut regs = self.vcpu.seen.regs;
            regs.rflags |= rflags::RF;
            self.vcpu.set_regs(regs);
        }
        self.entered(dr7);
        match event {
            Some(Event::Interrupt(vector)) => self.vcpu.interrupt(vector)?,
            Some(Event::Exception(vector, error)) => {
                self.vcpu.sync_regs()?;
                self.vcpu.raise(vector, error)?;
            }
            None => {}
        }
        Ok(Entered::Inside(event))
    }

    fn entered(&mut self, guest_dr7: u64) {
        self.standing = Standing::Guest;
        self.guest_dr7 = guest_dr7;
    }

    /// Completes the write to the port that told of the intercept; then the entry is next.
    fn stand_before_entry(&mut self) -> Result<(), EngineError> {
        let raw = self.vcpu.run(true)?;
        if raw != Raw::Interrupted {
            let what = format!("{raw:?} where the trampoline should have gone on");
            return Err(stopped(&what, self.vcpu.seen.regs.rip));
        }
        let mut regs = self.vcpu.seen.regs;
        regs.rip = self.trampoline.entry();
        regs.rax = self.trampoline.rax().unwrap_or(regs.rax);
        self.vcpu.set_regs(regs);
        Ok(())
    }
}
