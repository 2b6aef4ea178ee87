//! A vCPU and a counter for the tests: real guests on the software CPU.
//!
//! Branches are counted by decoding each instruction before it runs. What makes landing hard on
//! hardware is there: the counter's kick comes late, by branches and by instructions; a breakpoint
//! at the vCPU's place strikes at once, none strikes after MOV SS; TF is stored where the guest can
//! see it, is lost in handlers and comes back with IRET, and its trap comes one instruction later
//! then.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use engine::{Boundary, CpuState, Engine, EngineError, Entry, Exit};
use iced_x86::{Instruction, Mnemonic};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use soft::SoftEngine;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::counter::{BranchCounter, CounterError};
use crate::selftest::{Guest, Subject};
use crate::stepper::{Motion, Place, Stepper, Stop};
use crate::successors::{blocks_debug, decode, handler};

const TF: u64 = 1 << 8;
const R11: usize = 11;
const RSP: usize = 4;

/// How late the counter's kick is.
#[derive(Clone, Copy, Debug)]
pub struct Lateness {
    /// What the counter says of itself.
    pub bound: u64,
    /// Branches by which it is late at most, in truth.
    pub branches: u64,
    /// Instructions that are executed after that, at most.
    pub instructions: u64,
}

/// The counter's side that the vCPU drives.
struct Pmu {
    branches: u64,
    /// The count at which the kick sets out.
    kick_at: Option<u64>,
    /// Instructions until it arrives.
    arrives_in: Option<u64>,
    lateness: Lateness,
    rng: ChaCha8Rng,
}

/// The vCPU.
pub struct SoftVcpu {
    engine: SoftEngine,
    memory: Arc<GuestMemoryMmap>,
    pmu: Rc<RefCell<Pmu>>,
    /// Entries of exception handlers, where their first instructions (CLD) end, and whether there is an
    /// error code.
    handlers: Vec<(u64, u64, bool)>,
    /// The processor's TF is set for a step.
    trap: bool,
    /// TF was loaded by the last instruction: no trap after this one... but after the next.
    after_mov_ss: bool,
    /// Instructions until the test's own kick.
    kick_in: Option<u64>,
    /// Steps that were asked for, and all the times that `go` was called.
    pub steps: u64,
    pub goes: u64,
}

/// The counter.
pub struct SoftCounter {
    pmu: Rc<RefCell<Pmu>>,
}

/// A vCPU with the guest loaded, and its counter.
pub fn make(guest: &Guest, lateness: Lateness, seed: u64) -> (SoftVcpu, SoftCounter) {
    let ranges = [(GuestAddress(0), guest.memory.len())];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory"));
    memory
        .write_slice(&guest.memory, GuestAddress(0))
        .expect("the guest's size");
    let mut engine = SoftEngine::new(&memory).expect("an engine");
    engine.memory_written(0..guest.memory.len() as u64);
    engine.set_state(&guest.state).expect("a state");
    let pmu = Rc::new(RefCell::new(Pmu {
        branches: 0,
        kick_at: None,
        arrives_in: None,
        lateness,
        rng: ChaCha8Rng::seed_from_u64(seed),
    }));
    let mut vcpu = SoftVcpu {
        engine,
        memory,
        pmu: Rc::clone(&pmu),
        handlers: Vec::new(),
        trap: false,
        after_mov_ss: false,
        kick_in: None,
        steps: 0,
        goes: 0,
    };
    vcpu.find_handlers();
    (vcpu, SoftCounter { pmu })
}

impl SoftVcpu {
    /// Instructions retired: the truth.
    pub fn instructions(&self) -> u64 {
        self.engine.position().count
    }

    pub fn branches(&self) -> u64 {
        self.pmu.borrow().branches
    }

    pub fn memory_hash(&mut self) -> u64 {
        let mut all = vec![0; 0x3_0000];
        let _ = self.read(0, &mut all);
        xxhash_rust::xxh3::xxh3_64(&all)
    }

    /// Retires one instruction, or delivers its exception, and leaves no trace; the exit, if that is
    /// one.
    pub fn truth(&mut self) -> Option<Exit> {
        self.trap = false;
        match self.one().expect("the software CPU runs") {
            Some(Stop::Exit(exit)) => Some(exit),
            _ => None,
        }
    }

    /// Whether no breakpoint strikes here.
    pub fn is_hidden(&self) -> bool {
        self.after_mov_ss
    }

    fn find_handlers(&mut self) {
        let state = self.engine.state();
        for vector in [0, 3, 6, 8, 10, 11, 12, 13, 14] {
            let Some(entry) = handler(self, &state, vector) else {
                continue;
            };
            if entry == 0 {
                continue;
            }
            let first = decode(self, &state, entry).expect("a handler's first instruction");
            let coded = matches!(vector, 8 | 10..=14);
            self.handlers
                .push((entry, first.instruction.next_ip(), coded));
        }
    }

    fn poke_flags(&mut self, linear: u64) {
        let flags: u64 = self.memory.read_obj(GuestAddress(linear)).expect("a frame");
        self.memory
            .write_obj(flags | TF, GuestAddress(linear))
            .expect("a frame");
        self.engine.memory_written(linear..linear + 8);
    }

    fn change(&mut self, f: impl FnOnce(&mut CpuState)) -> Result<(), EngineError> {
        let mut state = self.engine.state();
        f(&mut state);
        self.engine.set_state(&state)
    }

    /// Retires one instruction, or delivers its exception.
    fn one(&mut self) -> Result<Option<Stop>, EngineError> {
        let before = self.engine.position();
        let state = self.engine.state();
        let current = decode(self, &state, before.rip);
        let exit = self.engine.run(Some(before.count + 1), Entry::Resume)?;
        let after = self.engine.position();
        if after.count == before.count {
            // Halted, or nothing but exceptions.
            return Ok(Some(Stop::Exit(exit)));
        }
        let fault = self
            .handlers
            .iter()
            .find(|(entry, next, _)| *entry != before.rip && *next == after.rip)
            .filter(|_| current.is_none_or(|c| c.instruction.next_ip() != after.rip))
            .copied();
        self.after_mov_ss = false;
        if let Some((entry, _, coded)) = fault {
            // The handler's first instruction has no effect: it is taken back.
            self.change(|s| (s.rip, s.count) = (entry, before.count))?;
            if std::mem::take(&mut self.trap) {
                let sp = self.engine.state().gpr[RSP];
                self.poke_flags(sp + 16 + if coded { 8 } else { 0 });
            }
            return Ok(None);
        }
        let mut trapped = self.trap;
        if let Some(current) = current {
            if current.is_conditional() {
                self.pmu.borrow_mut().retire();
            }
            self.after_mov_ss = blocks_debug(&current.instruction);
            trapped &= !self.after_mov_ss;
            self.flags_of(&current.instruction, &mut trapped)?;
        }
        self.pmu.borrow_mut().instruction();
        self.kick_in = self.kick_in.map(|n| n.saturating_sub(1));
        match exit {
            Exit::Boundary(Boundary::Reached) if trapped => {
                self.trap = false;
                Ok(Some(Stop::Stepped))
            }
            Exit::Boundary(Boundary::Reached) => Ok(None),
            other => Ok(Some(Stop::Exit(other))),
        }
    }

    /// What TF does to the instructions that store, clear and load flags.
    fn flags_of(&mut self, ins: &Instruction, trapped: &mut bool) -> Result<(), EngineError> {
        match ins.mnemonic() {
            Mnemonic::Syscall if self.trap => {
                self.change(|s| s.gpr[R11] |= TF)?;
                self.trap = false;
                *trapped = false;
            }
            Mnemonic::Int | Mnemonic::Int3 if self.trap => {
                let sp = self.engine.state().gpr[RSP];
                self.poke_flags(sp + 16);
                self.trap = false;
                *trapped = false;
            }
            Mnemonic::Pushfq if self.trap => {
                let sp = self.engine.state().gpr[RSP];
                self.poke_flags(sp);
            }
            Mnemonic::Iretq | Mnemonic::Popfq | Mnemonic::Sysretq => {
                if self.engine.state().rflags & TF != 0 {
                    self.change(|s| s.rflags &= !TF)?;
                    self.trap = true;
                    *trapped = false;
                } else {
                    self.trap = false;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn is_kicked(&mut self) -> bool {
        if self.kick_in == Some(0) {
            self.kick_in = None;
            return true;
        }
        let mut pmu = self.pmu.borrow_mut();
        pmu.arrives_in.take_if(|n| *n == 0).is_some()
    }
}

impl Pmu {
    fn retire(&mut self) {
        self.branches += 1;
        if self.kick_at.is_some_and(|at| self.branches >= at) {
            self.kick_at = None;
            let late = self.rng.random_range(0..=self.lateness.instructions);
            // The branch's own instruction is counted off, too.
            self.arrives_in = Some(late + 1);
        }
    }

    fn instruction(&mut self) {
        self.arrives_in = self.arrives_in.map(|n| n.saturating_sub(1));
    }
}

impl Stepper for SoftVcpu {
    type Error = EngineError;

    fn go(&mut self, motion: Motion, breakpoints: &[u64]) -> Result<Stop, EngineError> {
        assert!(breakpoints.len() <= 4, "a CPU has four breakpoints");
        self.goes += 1;
        self.trap = motion == Motion::Step;
        self.steps += u64::from(self.trap);
        loop {
            if self.is_kicked() {
                return Ok(Stop::Kicked);
            }
            let rip = self.engine.position().rip;
            if breakpoints.contains(&rip) && !self.after_mov_ss {
                return Ok(Stop::Breakpoint);
            }
            if let Some(stop) = self.one()? {
                return Ok(stop);
            }
        }
    }

    fn place(&mut self) -> Result<Place, EngineError> {
        let at = self.engine.position();
        Ok(Place {
            rip: at.rip,
            rcx: at.rcx,
        })
    }

    fn state(&mut self) -> Result<CpuState, EngineError> {
        Ok(self.engine.state())
    }

    /// The test guests' code, tables and stacks are mapped one to one.
    fn read(&mut self, linear: u64, into: &mut [u8]) -> usize {
        self.memory.read(into, GuestAddress(linear)).unwrap_or(0)
    }
}

impl Subject for SoftVcpu {
    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.engine.inject(vector)
    }

    /// Ten instructions to the microsecond.
    fn kick_after(&mut self, time: Duration) -> Result<(), EngineError> {
        self.kick_in = Some(time.as_micros() as u64 * 10);
        Ok(())
    }
}

impl BranchCounter for SoftCounter {
    fn read(&mut self) -> Result<u64, CounterError> {
        Ok(self.pmu.borrow().branches)
    }

    fn arm(&mut self, at: u64) -> Result<(), CounterError> {
        let mut pmu = self.pmu.borrow_mut();
        let now = pmu.branches;
        if at <= now {
            return Err(CounterError::Passed { asked: at, now });
        }
        let most = pmu.lateness.branches;
        let late = pmu.rng.random_range(0..=most);
        pmu.kick_at = Some(at + late);
        Ok(())
    }

    fn disarm(&mut self) -> Result<(), CounterError> {
        self.pmu.borrow_mut().kick_at = None;
        Ok(())
    }

    fn skid(&self) -> u64 {
        self.pmu.borrow().lateness.bound
    }
}
