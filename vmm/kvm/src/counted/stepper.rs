//! The engine's vCPU as a landing sees it.

use ::engine::{CpuState, EngineError, Exit};
use landing::{Motion, Place, Stepper, Stop, code_linear, handler};

use super::enter::Entered;
use crate::block::Event;
use crate::debug::Watch;
use crate::engine::{KvmEngine, Standing};
use crate::kick;
use crate::vcpu::Raw;
use crate::walk::{self, Paging};

/// DR6: a breakpoint, a step.
const DR6_BREAKPOINTS: u64 = 0xf;
const DR6_STEP: u64 = 1 << 14;

impl KvmEngine {
    /// Signals end KVM_RUN from now on, on this thread.
    pub(crate) fn hear_kicks(&mut self) -> Result<(), EngineError> {
        if self.hears == Some(kick::this_thread()) {
            return Ok(());
        }
        kick::block_signal().map_err(EngineError::Host)?;
        let mask = kick::mask_in_guest().map_err(EngineError::Host)?;
        self.vcpu.set_signal_mask(mask)?;
        self.hears = Some(kick::this_thread());
        Ok(())
    }

    /// Goes on until something stops it; leaves the debugging on if it was put on.
    fn go_on(&mut self, motion: Motion, breakpoints: &[u64]) -> Result<Stop, EngineError> {
        let step = motion == Motion::Step;
        let watched = step || !breakpoints.is_empty();
        // Where a handler begins whose event is on its way.
        let mut delivering = None;
        let mut inject = false;
        loop {
            if let Some(exit) = self.at_boundary(self.until) {
                return Ok(Stop::Exit(Exit::Boundary(exit)));
            }
            let arriving = self.event.is_some() || self.vcpu.event_in_flight();
            if !arriving && self.standing != Standing::Underway && !inject {
                if self.is_at(breakpoints) {
                    return Ok(Stop::Breakpoint);
                }
                if std::mem::take(&mut self.kicked) {
                    return Ok(Stop::Kicked);
                }
            }
            let sent = self.event;
            if watched || self.kicked {
                match self.enter()? {
                    Entered::Inside(Some(event)) => delivering = self.handler_of(event),
                    Entered::Inside(None) => {}
                    Entered::Left(raw) => {
                        if let Some(exit) = self.exit(raw)? {
                            return Ok(Stop::Exit(exit));
                        }
                        continue;
                    }
                }
                let mut all = breakpoints.to_vec();
                all.extend(delivering.filter(|_| self.kicked));
                self.watch(Watch {
                    step,
                    breakpoints: &all,
                    inject: std::mem::take(&mut inject),
                })?;
            } else if self.standing == Standing::Trampoline {
                self.prepare_entry()?;
            }
            self.standing = Standing::Underway;
            match self.run_guest()? {
                Raw::Debug { dr6 } => {
                    self.standing = Standing::Guest;
                    if self.is_at(breakpoints) {
                        return Ok(Stop::Breakpoint);
                    }
                    if step && dr6 & DR6_STEP != 0 {
                        return Ok(Stop::Stepped);
                    }
                    let ours = delivering.take().is_some_and(|at| self.is_at(&[at]));
                    if !ours {
                        // The guest's own.
                        self.give_debug_exception(dr6)?;
                        inject = true;
                    }
                }
                Raw::Interrupted => {
                    self.take_kick()?;
                    let nesting = self.nesting()?;
                    if nesting.in_guest {
                        // Before its first instruction, perhaps; with no event on its way (that is
                        // looked at above) it stands there.
                        self.standing = Standing::Guest;
                    } else if !self.trampoline.is_busy(self.vcpu.seen.regs.rip) {
                        // The entry has not begun.
                        self.standing = Standing::Trampoline;
                        self.event = sent;
                    }
                }
                raw => {
                    self.unwatch()?;
                    if let Some(exit) = self.exit(raw)? {
                        return Ok(Stop::Exit(exit));
                    }
                }
            }
        }
    }

    /// Handles an exit. Some: one for the caller.
    fn exit(&mut self, raw: Raw) -> Result<Option<Exit>, EngineError> {
        let exit = self.handle(raw)?;
        if exit.is_none() {
            self.exits_left = self.exits_left.saturating_sub(1);
            self.kicked |= self.exits_left == 0;
        }
        Ok(exit)
    }

    fn watch(&mut self, watch: Watch<'_>) -> Result<(), EngineError> {
        self.watched = true;
        self.vcpu.watch(watch)
    }

    /// Takes breakpoints and steps away. Where the guest was left for the trampoline meanwhile, the
    /// control block has got the engine's DR7.
    fn unwatch(&mut self) -> Result<(), EngineError> {
        if !std::mem::take(&mut self.watched) {
            return Ok(());
        }
        self.vcpu.unwatch(false)?;
        if self.standing != Standing::Guest && !self.nesting()?.in_guest {
            self.block.set_dr7(self.guest_dr7);
        }
        Ok(())
    }

    fn is_at(&self, breakpoints: &[u64]) -> bool {
        !breakpoints.is_empty() && breakpoints.contains(&self.linear())
    }

    /// CS.base + RIP.
    fn linear(&self) -> u64 {
        match self.standing {
            Standing::Guest | Standing::Underway => {
                let seen = &self.vcpu.seen;
                walk::linear(&seen.sregs, seen.regs.rip)
            }
            Standing::Trampoline => {
                let state = self.read_state();
                code_linear(&state, state.rip)
            }
        }
    }

    fn handler_of(&mut self, event: Event) -> Option<u64> {
        let state = self.read_state();
        let (Event::Interrupt(vector) | Event::Exception(vector, _)) = event;
        handler(self, &state, vector)
    }

    /// What a debug exception of the guest's own leaves in DR6; the exception itself goes with the
    /// next watch.
    fn give_debug_exception(&mut self, dr6: u64) -> Result<(), EngineError> {
        let mut registers = self.vcpu.debug_registers()?;
        registers.dr6 |= dr6 & (DR6_BREAKPOINTS | DR6_STEP);
        self.vcpu.set_debug_registers(&registers)
    }
}

impl Stepper for KvmEngine {
    type Error = EngineError;

    fn go(&mut self, motion: Motion, breakpoints: &[u64]) -> Result<Stop, EngineError> {
        self.hear_kicks()?;
        let stop = self.go_on(motion, breakpoints);
        self.unwatch()?;
        stop
    }

    fn place(&mut self) -> Result<Place, EngineError> {
        let at = ::engine::Engine::position(self);
        Ok(Place {
            rip: at.rip,
            rcx: at.rcx,
        })
    }

    fn state(&mut self) -> Result<CpuState, EngineError> {
        Ok(self.read_state())
    }

    fn read(&mut self, linear: u64, into: &mut [u8]) -> usize {
        let paging = match self.standing {
            Standing::Guest | Standing::Underway => Paging::of_vcpu(&self.vcpu.seen.sregs),
            Standing::Trampoline => self.block.paging(),
        };
        walk::read(&self.ram, &paging, linear, into)
    }
}
