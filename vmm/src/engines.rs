//! Which CPU engine a machine gets: the one place where that is decided.
//!
//! Everything else takes a [`MakeEngine`], so that a program with another engine in it (the tests
//! have one) is the same program otherwise.

use engine::{Engine, EngineError};

use crate::config::EngineKind;
use crate::memory::GuestRam;

/// Makes the engine that the configuration asks for, on this memory.
pub type MakeEngine = fn(EngineKind, &GuestRam) -> Result<Box<dyn Engine>, NoEngine>;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum NoEngine {
    #[error(
        "vm.engine = \"kvm\" is not possible: this build of Lockstep has no such engine; set it to \
         \"soft\", or to \"auto\" for the best that there is"
    )]
    NoKvm,
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The engines of this build.
pub fn make(kind: EngineKind, ram: &GuestRam) -> Result<Box<dyn Engine>, NoEngine> {
    match kind {
        EngineKind::Auto | EngineKind::Soft => Ok(Box::new(soft::SoftEngine::new(ram.memory())?)),
        EngineKind::Kvm => Err(NoEngine::NoKvm),
    }
}
