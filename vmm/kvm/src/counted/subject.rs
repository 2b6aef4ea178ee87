//! The engine put to the landing's self-test.

use std::sync::Arc;
use std::time::Duration;

use ::engine::{Engine, EngineError};
use landing::{Guest, Motion, Stop, Subject, handler};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::engine::KvmEngine;
use crate::kick::Kick;

/// Why there is no vCPU for the self-test.
#[derive(Debug, thiserror::Error)]
pub enum NoSubject {
    #[error("its memory")]
    Memory(#[source] vm_memory::mmap::FromRangesError),
    #[error("its memory could not be written")]
    Write(#[source] vm_memory::GuestMemoryError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A vCPU with the self-test's guest.
pub fn subject(guest: &Guest) -> Result<KvmEngine, NoSubject> {
    let ranges = [(GuestAddress(0), guest.memory.len())];
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).map_err(NoSubject::Memory)?;
    memory
        .write_slice(&guest.memory, GuestAddress(0))
        .map_err(NoSubject::Write)?;
    let mut engine = KvmEngine::new(&Arc::new(memory))?;
    engine.set_state(&guest.state)?;
    Ok(engine)
}

impl Subject for KvmEngine {
    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        let state = self.read_state();
        let entry = handler(self, &state, vector);
        Engine::inject(self, vector)?;
        let Some(entry) = entry else { return Ok(()) };
        // A kick on the way is kept for later.
        let kicked = std::mem::take(&mut self.kicked);
        let stop = landing::Stepper::go(self, Motion::Run, &[entry])?;
        self.kicked |= kicked || stop == Stop::Kicked;
        match stop {
            Stop::Breakpoint | Stop::Kicked => Ok(()),
            other => Err(EngineError::Hypervisor(format!(
                "{other:?} where an interrupt should have entered its handler"
            ))),
        }
    }

    fn kick_after(&mut self, time: Duration) -> Result<(), EngineError> {
        self.kicked = false;
        self.once = Some(Kick::start(time).map_err(EngineError::Host)?);
        self.hear_kicks()
    }
}
