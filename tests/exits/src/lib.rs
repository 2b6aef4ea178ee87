//! A CPU engine whose positions are exits, as `kvm`'s are where there is no counter, but made of the
//! software CPU, so that everything above the engine can be tested on any host.
//!
//! It counts the instructions that exit (a port or memory outside RAM is read or written, HLT), stops
//! at no other place, and goes adrift after a number of instructions that is different each time.
//! What it does not do is to make an exit of RDTSC: the clock stands still between two exits, so that
//! what the guest reads is a function of the count all the same.

use std::ops::Range;
use std::time::Duration;

use engine::{Boundary, ClockBase, CpuState, Engine, EngineError, EngineInfo, Entry, Exit};
use ftlog::{CountUnit, Position};
use soft::SoftEngine;
use vmm::config::Vm;
use vmm::engines::NoEngine;
use vmm::memory::GuestRam;

/// How many instructions the vCPU may run without an exit, where there is a limit; at random.
const ADRIFT: Range<u64> = 20_000..200_000;
/// What an exit adds to the clock, in nanoseconds, as with `kvm`.
const NS_PER_EXIT: u64 = 500;

/// For `ft-vmm` and for replicas in tests, whatever engine their configuration asks for.
pub fn make(_: &Vm, ram: &GuestRam) -> Result<Box<dyn Engine>, NoEngine> {
    let seed = u64::from(std::process::id());
    Ok(Box::new(ExitEngine::new(
        SoftEngine::new(ram.memory())?,
        seed,
    )))
}

/// The software CPU, seen from its exits.
pub struct ExitEngine {
    soft: SoftEngine,
    /// Instructions that have exited.
    count: u64,
    /// `soft`'s count behind the last of them: further exits there are of the same one.
    counted: u64,
    /// The instruction that will have retired at `counted + 1` or later waits for a read.
    pending: bool,
    clock: ClockBase,
    limited: bool,
    /// `soft`'s count at which the vCPU is adrift.
    adrift_at: u64,
    random: u64,
}

impl ExitEngine {
    /// `seed` decides where the vCPU is adrift.
    pub fn new(soft: SoftEngine, seed: u64) -> Self {
        Self {
            soft,
            count: 0,
            counted: 0,
            pending: false,
            clock: ClockBase::at_power_on(NS_PER_EXIT),
            limited: false,
            adrift_at: 0,
            random: seed,
        }
    }

    fn retired(&self) -> u64 {
        self.soft.position().count
    }

    /// An instruction that exited has retired, unless that has been counted already.
    fn exited(&mut self) {
        self.pending = false;
        if self.counted != self.retired() {
            self.count += 1;
            self.moved();
        }
    }

    /// The vCPU stands at a position: the clock goes on, and a new stretch begins.
    fn moved(&mut self) {
        self.counted = self.retired();
        self.soft.set_clock(ClockBase {
            at_count: self.counted,
            ns: self.clock.at(self.count),
            ns_per_count: 0,
        });
        self.begin_stretch();
    }

    fn begin_stretch(&mut self) {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let length = ADRIFT.start + (self.random >> 33) % (ADRIFT.end - ADRIFT.start);
        self.adrift_at = self.retired() + length;
    }

    /// Where `soft` must stop by itself.
    fn stop_at(&self, until: u64) -> u64 {
        if self.pending {
            // To see the instruction retire that was answered.
            self.retired() + 1
        } else if self.count >= until {
            self.retired()
        } else if self.limited {
            self.adrift_at
        } else {
            u64::MAX
        }
    }
}

impl Engine for ExitEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "exits",
            counts: CountUnit::Exits,
            ns_per_count: NS_PER_EXIT,
            ..self.soft.info()
        }
    }

    fn run(&mut self, until: Option<u64>, mut entry: Entry) -> Result<Exit, EngineError> {
        if let Some(asked) = until
            && asked < self.count
        {
            let now = self.count;
            return Err(EngineError::PositionPassed { asked, now });
        }
        let until = until.unwrap_or(u64::MAX);
        loop {
            let exit = self.soft.run(Some(self.stop_at(until)), entry)?;
            entry = Entry::Resume;
            match exit {
                Exit::Pending(_) => {
                    self.pending = true;
                    return Ok(exit);
                }
                Exit::Boundary(Boundary::Reached) => {
                    if self.pending {
                        self.exited();
                    }
                    if self.count >= until {
                        return Ok(exit);
                    }
                    if self.limited && self.retired() >= self.adrift_at {
                        self.begin_stretch();
                        return Ok(Exit::Adrift);
                    }
                }
                Exit::Boundary(
                    Boundary::IoWrite { .. } | Boundary::MmioWrite { .. } | Boundary::Halt { .. },
                ) => {
                    self.exited();
                    return Ok(exit);
                }
                Exit::Boundary(Boundary::Window | Boundary::Shutdown) | Exit::Adrift => {
                    if self.pending {
                        self.exited();
                    }
                    return Ok(exit);
                }
            }
        }
    }

    fn position(&self) -> Position {
        Position {
            count: self.count,
            ..self.soft.position()
        }
    }

    fn can_interrupt(&self) -> bool {
        self.soft.can_interrupt()
    }

    fn set_stretch_limit(&mut self, limit: Option<Duration>) {
        self.limited = limit.is_some();
        self.begin_stretch();
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.soft.inject(vector)
    }

    fn request_window(&mut self, on: bool) {
        self.soft.request_window(on);
    }

    fn halted(&self) -> bool {
        self.soft.halted()
    }

    fn set_clock(&mut self, clock: ClockBase) {
        self.clock = clock;
        self.moved();
    }

    fn state(&self) -> CpuState {
        CpuState {
            count: self.count,
            ..self.soft.state()
        }
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        // `soft` counts on as it did: its count is nobody's business.
        self.soft.set_state(&CpuState {
            count: self.retired(),
            ..state.clone()
        })?;
        self.count = state.count;
        self.pending = false;
        self.moved();
        Ok(())
    }

    fn memory_written(&mut self, range: Range<u64>) {
        self.soft.memory_written(range);
    }

    fn take_dirty(&mut self) -> Vec<u64> {
        self.soft.take_dirty()
    }
}
