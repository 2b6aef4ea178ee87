//! Which CPU engine a machine gets: the one place where that is decided.
//!
//! Everything else takes a [`MakeEngine`], so that a program with another engine in it (the tests
//! have one) is the same program otherwise.

use engine::{Engine, EngineError};
use kvm::probe::Probe;

use crate::config::EngineKind;
use crate::memory::GuestRam;

/// Makes the engine that the configuration asks for, on this memory.
pub type MakeEngine = fn(EngineKind, &GuestRam) -> Result<Box<dyn Engine>, NoEngine>;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum NoEngine {
    #[error(
        "vm.engine = \"kvm\" is not possible on this host: {why}; {fix}; `ft-ctl doctor` tells more, \
         and \"auto\" takes the best engine that there is"
    )]
    NoKvm { why: String, fix: String },
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// What `auto` takes on this host.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Never `Auto`.
    pub engine: EngineKind,
    /// In one line.
    pub why: String,
    /// What was tried of the engine on KVM.
    pub probe: Probe,
}

/// Finds out, by running code, which engine is the best here. Takes some tens of milliseconds where
/// KVM works.
pub fn choose() -> Choice {
    let probe = kvm::probe::probe();
    let (engine, why) = if probe.works() {
        (EngineKind::Kvm, probe.why())
    } else {
        let why = format!(
            "the software CPU works on every x86-64 host, and KVM cannot be used: {}",
            probe.why()
        );
        (EngineKind::Soft, why)
    };
    Choice { engine, why, probe }
}

/// The engines of this build.
pub fn make(kind: EngineKind, ram: &GuestRam) -> Result<Box<dyn Engine>, NoEngine> {
    match kind {
        EngineKind::Soft => Ok(Box::new(soft::SoftEngine::new(ram.memory())?)),
        EngineKind::Kvm => {
            if let Some(check) = kvm::probe::probe().failure() {
                return Err(NoEngine::NoKvm {
                    why: check.detail.clone(),
                    fix: check.fix.clone().unwrap_or_default(),
                });
            }
            Ok(Box::new(kvm::KvmEngine::new(ram.memory())?))
        }
        EngineKind::Auto => {
            let choice = choose();
            tracing::info!(
                engine = choice.engine.name(),
                why = choice.why,
                "engine chosen"
            );
            match choice.engine {
                EngineKind::Kvm => Ok(Box::new(kvm::KvmEngine::new(ram.memory())?)),
                EngineKind::Auto | EngineKind::Soft => make(EngineKind::Soft, ram),
            }
        }
    }
}
