//! Stopping the vCPU between exits: what a landing by the branch counter needs of the engine.
//!
//! KVM's debugging is of the vCPU as it stands, so breakpoints and steps are set only once that is in
//! the guest ([`KvmEngine::enter`]).

mod engine;
mod enter;
mod host;
mod stepper;
mod subject;
mod tally;

use ::engine::EngineError;

use crate::engine::KvmEngine;
use crate::kick;

pub use self::engine::{CountedEngine, Watched};
pub use host::HostCounter;
pub use subject::{NoSubject, subject};
pub(crate) use tally::Tally;

impl KvmEngine {
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
