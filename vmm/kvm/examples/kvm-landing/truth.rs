//! A branch counter for a host that has none: the engine's vCPU passes one instruction after the
//! other, by breakpoints, and each one is decoded before it runs. Exact, and very slow.
//!
//! The vCPU that a landing sees is made of that: it stops at breakpoints by comparing addresses, and
//! is kicked late, by branches and by instructions, as processors do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use engine::{Boundary, CpuState, EngineError, Exit};
use iced_x86::Mnemonic;
use kvm::KvmEngine;
use kvm::counted::Watched;
use landing::{
    BranchCounter, CounterError, Current, Guest, Motion, Place, Stepper, Stop, Subject, advance,
    blocks_debug, code_linear, decode,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How late the counter's kick is.
#[derive(Clone, Copy, Debug)]
pub struct Lateness {
    /// What the counter says of itself, in branches.
    pub bound: u64,
    /// Branches by which it is late at most, in truth.
    pub branches: u64,
    /// Instructions that are executed after that, at most.
    pub instructions: u64,
}

/// What the vCPU drives and the counter tells.
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
pub struct Walked {
    vcpu: KvmEngine,
    pmu: Arc<Mutex<Pmu>>,
    /// No breakpoint strikes here.
    hidden: bool,
    /// Instructions until the self-test's own kick.
    kick_in: Option<u64>,
}

/// The counter.
pub struct Truth {
    pmu: Arc<Mutex<Pmu>>,
}

fn lock(pmu: &Mutex<Pmu>) -> MutexGuard<'_, Pmu> {
    pmu.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A vCPU with the self-test's guest, and its counter.
pub fn make(guest: &Guest, lateness: Lateness, seed: u64) -> Result<(Walked, Truth), String> {
    let vcpu = kvm::counted::subject(guest).map_err(|e| e.to_string())?;
    Ok(of(vcpu, lateness, seed))
}

/// The vCPU with a counter.
pub fn of(vcpu: KvmEngine, lateness: Lateness, seed: u64) -> (Walked, Truth) {
    let pmu = Arc::new(Mutex::new(Pmu {
        branches: 0,
        kick_at: None,
        arrives_in: None,
        lateness,
        rng: ChaCha8Rng::seed_from_u64(seed),
    }));
    let walked = Walked {
        vcpu,
        pmu: Arc::clone(&pmu),
        hidden: false,
        kick_in: None,
    };
    (walked, Truth { pmu })
}

impl Walked {
    /// Passes one instruction, or goes to the handler of its exception.
    fn one(&mut self) -> Result<Option<Stop>, EngineError> {
        let before = self.vcpu.state()?;
        let Some(current) = decode(&mut self.vcpu, &before, before.rip) else {
            return Err(EngineError::Hypervisor(format!(
                "no instruction at {:#x}",
                before.rip
            )));
        };
        let stop = advance(&mut self.vcpu, None)?.stop;
        let rip = self.vcpu.place()?.rip;
        self.hidden = false;
        let mut retired = vec![current];
        if blocks_debug(&current.instruction) {
            if rip == current.instruction.next_ip() {
                self.hidden = true;
            } else if let Some(then) =
                decode(&mut self.vcpu, &before, current.instruction.next_ip())
            {
                retired.push(then);
            }
        }
        for current in &retired {
            let mut pmu = lock(&self.pmu);
            if current.is_conditional() && is_behind(current, rip) {
                pmu.retire();
            }
            pmu.instruction();
            self.kick_in = self.kick_in.map(|n| n.saturating_sub(1));
        }
        let halted = matches!(stop, Stop::Exit(Exit::Boundary(Boundary::Halt { .. })));
        let lost = halted && current.instruction.mnemonic() != Mnemonic::Hlt;
        if lost {
            return Err(EngineError::Hypervisor(format!(
                "lost sight of the guest at {:#x}: it is at {rip:#x} already",
                before.rip
            )));
        }
        match stop {
            Stop::Exit(_) | Stop::Kicked => Ok(Some(stop)),
            Stop::Breakpoint | Stop::Stepped => Ok(None),
        }
    }

    fn is_kicked(&mut self) -> bool {
        if self.kick_in == Some(0) {
            self.kick_in = None;
            return true;
        }
        let mut pmu = lock(&self.pmu);
        pmu.arrives_in.take_if(|n| *n == 0).is_some()
    }
}

/// Whether a branch has retired, and not faulted, when the vCPU stands at `rip` after it.
fn is_behind(branch: &Current, rip: u64) -> bool {
    let ins = &branch.instruction;
    rip == ins.next_ip() || rip == ins.near_branch_target()
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

impl Stepper for Walked {
    type Error = EngineError;

    fn go(&mut self, motion: Motion, breakpoints: &[u64]) -> Result<Stop, EngineError> {
        loop {
            if self.is_kicked() {
                return Ok(Stop::Kicked);
            }
            let state = self.vcpu.state()?;
            let here = code_linear(&state, state.rip);
            if breakpoints.contains(&here) && !self.hidden {
                return Ok(Stop::Breakpoint);
            }
            if let Some(stop) = self.one()? {
                return Ok(stop);
            }
            if motion == Motion::Step {
                return Ok(Stop::Stepped);
            }
        }
    }

    fn place(&mut self) -> Result<Place, EngineError> {
        self.vcpu.place()
    }

    fn state(&mut self) -> Result<CpuState, EngineError> {
        self.vcpu.state()
    }

    fn read(&mut self, linear: u64, into: &mut [u8]) -> usize {
        self.vcpu.read(linear, into)
    }
}

impl Watched for Walked {
    fn engine(&self) -> &KvmEngine {
        &self.vcpu
    }

    fn engine_mut(&mut self) -> &mut KvmEngine {
        &mut self.vcpu
    }
}

impl Subject for Walked {
    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        Subject::inject(&mut self.vcpu, vector)
    }

    /// Ten instructions to the microsecond.
    fn kick_after(&mut self, time: Duration) -> Result<(), EngineError> {
        self.kick_in = Some(time.as_micros() as u64 * 10);
        Ok(())
    }
}

impl BranchCounter for Truth {
    fn read(&mut self) -> Result<u64, CounterError> {
        Ok(lock(&self.pmu).branches)
    }

    fn arm(&mut self, at: u64) -> Result<(), CounterError> {
        let mut pmu = lock(&self.pmu);
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
        lock(&self.pmu).kick_at = None;
        Ok(())
    }

    fn skid(&self) -> u64 {
        lock(&self.pmu).lateness.bound
    }
}
