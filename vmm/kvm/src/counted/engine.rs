//! The engine with positions that count branches: retired conditional branches plus completed exits.
//!
//! A position is the first instant of its count, right behind the branch or the exit: it needs no
//! RIP to be found, and every count has one. To get to one, the vCPU runs at full speed until the
//! counter kicks it, short of the count by what the kick may be late; from there it goes from branch
//! to branch ([`landing::settle`]). Where the guest is in a loop without conditional branches and
//! exits it is [`Exit::Adrift`], as with positions that count exits.
//!
//! A vCPU that the counter has kicked too late is adrift too: what it has become is sent along by the
//! replica that records; one that replays cannot go on.

use std::ops::Range;
use std::time::{Duration, Instant};

use ::engine::{ClockBase, CpuState, Engine, EngineError, EngineInfo, Entry, Exit};
use ftlog::{CountUnit, Position};
use landing::{BranchCounter, Motion, Settled, Stepper, Stop, handler, settle};

use super::tally::{Shared, failed};
use crate::NS_PER_BRANCH;
use crate::engine::KvmEngine;

/// Exits after which a vCPU at full speed is aimed anew: each brings the count nearer, and the
/// counter does not know.
const EXITS_AHEAD: u32 = 32;

/// A vCPU as a landing sees it, with the engine that it is of.
pub trait Watched: Stepper<Error = EngineError> + Send {
    fn engine(&self) -> &KvmEngine;
    fn engine_mut(&mut self) -> &mut KvmEngine;
}

impl Watched for KvmEngine {
    fn engine(&self) -> &KvmEngine {
        self
    }

    fn engine_mut(&mut self) -> &mut KvmEngine {
        self
    }
}

/// The engine, with a counter.
pub struct CountedEngine<V, C> {
    vcpu: V,
    counter: Shared<C>,
    /// The interrupt that has not entered its handler.
    arriving: Option<u8>,
    /// The count at the last kick by time, and when it was first seen.
    since: (u64, Instant),
}

impl<V: Watched, C: BranchCounter + Send + 'static> CountedEngine<V, C> {
    /// `counter` counts the branches of `vcpu`, whose guest has not run.
    pub fn new(mut vcpu: V, counter: C) -> Result<Self, EngineError> {
        let counter = Shared::new(counter);
        vcpu.engine_mut().tally = Some(counter.tally().map_err(|why| failed(&why))?);
        Ok(Self {
            vcpu,
            counter,
            arriving: None,
            since: (0, Instant::now()),
        })
    }

    /// Runs to the first instant of `until`, or to an exit.
    fn go(&mut self, until: u64) -> Result<Exit, EngineError> {
        self.vcpu.engine_mut().until = until;
        loop {
            self.vcpu.engine_mut().tally()?;
            if let Some(exit) = self.vcpu.engine_mut().at_boundary(until) {
                return Ok(Exit::Boundary(exit));
            }
            let count = self.vcpu.engine().count;
            if count >= until {
                // Overshot.
                return Ok(Exit::Adrift);
            }
            let stop = match self.arriving.take() {
                Some(vector) => self.deliver(vector)?,
                None => self.approach(until - count)?,
            };
            match stop {
                Stop::Exit(exit) => return Ok(exit),
                Stop::Kicked if self.is_adrift() => return Ok(Exit::Adrift),
                Stop::Kicked | Stop::Breakpoint | Stop::Stepped => {}
            }
        }
    }

    /// Goes on towards a position that is `distance` away.
    fn approach(&mut self, distance: u64) -> Result<Stop, EngineError> {
        let margin = self.counter.skid() + u64::from(EXITS_AHEAD);
        if distance > margin {
            return self.run_ahead(distance - margin);
        }
        let before = self.vcpu.engine().count;
        let settled = settle(&mut self.vcpu, &mut self.counter)
            .map_err(|why| EngineError::Hypervisor(crate::errors::chain(&why)))?;
        match settled {
            Settled::Exit(exit) => return Ok(Stop::Exit(exit)),
            Settled::At(_) => {
                let engine = self.vcpu.engine_mut();
                engine.tally()?;
                engine.first = engine.count != before;
            }
            Settled::Nowhere => {}
        }
        Ok(Stop::Kicked)
    }

    /// At full speed, to `branches` from here and what the kick is late.
    fn run_ahead(&mut self, branches: u64) -> Result<Stop, EngineError> {
        let now = self.counter.read().map_err(|why| failed(&why))?;
        self.counter
            .arm(now.saturating_add(branches))
            .map_err(|why| failed(&why))?;
        self.vcpu.engine_mut().exits_left = EXITS_AHEAD;
        let stop = self.vcpu.go(Motion::Run, &[]);
        self.vcpu.engine_mut().exits_left = u32::MAX;
        self.counter.disarm().map_err(|why| failed(&why))?;
        stop
    }

    /// Brings an interrupt that was put in to its handler's first instruction.
    fn deliver(&mut self, vector: u8) -> Result<Stop, EngineError> {
        let engine = self.vcpu.engine_mut();
        let state = engine.read_state();
        match handler(engine, &state, vector) {
            Some(entry) => engine.go(Motion::Run, &[entry]),
            // The guest has no such handler: it will fault.
            None => Ok(Stop::Kicked),
        }
    }

    /// Whether the vCPU has run for the limit of a stretch at one count.
    fn is_adrift(&mut self) -> bool {
        let engine = self.vcpu.engine();
        let Some(limit) = engine.limit else {
            return false;
        };
        if self.since.0 != engine.count {
            self.since = (engine.count, Instant::now());
            return false;
        }
        self.since.1.elapsed() >= limit / 2 && !engine.may_be_in_shadow()
    }
}

impl<V: Watched, C: BranchCounter + Send + 'static> Engine for CountedEngine<V, C> {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            counts: CountUnit::Branches,
            ns_per_count: NS_PER_BRANCH,
            ..self.vcpu.engine().info()
        }
    }

    fn run(&mut self, until: Option<u64>, entry: Entry) -> Result<Exit, EngineError> {
        let engine = self.vcpu.engine_mut();
        if let Some(asked) = until
            && asked < engine.count
        {
            let now = engine.count;
            return Err(EngineError::PositionPassed { asked, now });
        }
        engine.arm()?;
        if let Some(exit) = engine.begin(entry)? {
            return Ok(exit);
        }
        self.since = (u64::MAX, Instant::now());
        self.go(until.unwrap_or(u64::MAX))
    }

    fn position(&self) -> Position {
        self.vcpu.engine().position()
    }

    fn can_interrupt(&self) -> bool {
        self.vcpu.engine().can_interrupt()
    }

    fn set_stretch_limit(&mut self, limit: Option<Duration>) {
        self.vcpu.engine_mut().set_stretch_limit(limit);
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.arriving = Some(vector);
        self.vcpu.engine_mut().inject(vector)
    }

    fn request_window(&mut self, on: bool) {
        self.vcpu.engine_mut().request_window(on);
    }

    fn halted(&self) -> bool {
        self.vcpu.engine().halted()
    }

    fn set_clock(&mut self, clock: ClockBase) {
        self.vcpu.engine_mut().set_clock(clock);
    }

    fn state(&self) -> CpuState {
        self.vcpu.engine().state()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.arriving = None;
        let engine = self.vcpu.engine_mut();
        engine.tally()?;
        engine.set_state(state)
    }

    fn memory_written(&mut self, range: Range<u64>) {
        self.vcpu.engine_mut().memory_written(range);
    }

    fn take_dirty(&mut self) -> Vec<u64> {
        self.vcpu.engine_mut().take_dirty()
    }

    fn exit_counts(&self) -> Vec<(&'static str, u64)> {
        self.vcpu.engine().exit_counts()
    }
}
