//! The count of positions, where branches are part of it: whenever the vCPU has run, what it has
//! retired is added, so that an exit finds the count (and with it the clock) right.

use std::sync::{Arc, Mutex, PoisonError};

use ::engine::EngineError;
use landing::{BranchCounter, CounterError};

use crate::engine::KvmEngine;

/// Reads the branches retired.
type Read = Box<dyn FnMut() -> Result<u64, CounterError> + Send>;

/// What has been added so far.
pub struct Tally {
    read: Read,
    seen: u64,
}

/// A counter with two users: the landing, and the tally.
pub struct Shared<C>(Arc<Mutex<C>>);

impl<C: BranchCounter + Send + 'static> Shared<C> {
    pub fn new(counter: C) -> Self {
        Self(Arc::new(Mutex::new(counter)))
    }

    /// From now on branches count.
    pub fn tally(&self) -> Result<Tally, CounterError> {
        let counter = Self(Arc::clone(&self.0));
        let seen = counter.with(BranchCounter::read)?;
        Ok(Tally {
            read: Box::new(move || counter.with(BranchCounter::read)),
            seen,
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut C) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<C: BranchCounter + Send + 'static> BranchCounter for Shared<C> {
    fn read(&mut self) -> Result<u64, CounterError> {
        self.with(C::read)
    }

    fn arm(&mut self, at: u64) -> Result<(), CounterError> {
        self.with(|counter| counter.arm(at))
    }

    fn disarm(&mut self) -> Result<(), CounterError> {
        self.with(C::disarm)
    }

    fn skid(&self) -> u64 {
        self.with(|counter| counter.skid())
    }
}

/// A counter that has failed leaves the vCPU at no known position.
pub fn failed(why: &CounterError) -> EngineError {
    EngineError::Hypervisor(format!("the branch counter failed: {why}"))
}

impl KvmEngine {
    /// Adds what the guest has retired since the last call.
    pub(crate) fn tally(&mut self) -> Result<(), EngineError> {
        let Some(tally) = &mut self.tally else {
            return Ok(());
        };
        let now = (tally.read)().map_err(|why| failed(&why))?;
        let Some(more) = now.checked_sub(tally.seen) else {
            return Err(EngineError::Hypervisor(format!(
                "the branch counter ran back from {} to {now}",
                tally.seen
            )));
        };
        tally.seen = now;
        self.count += more;
        Ok(())
    }
}
