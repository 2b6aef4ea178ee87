//! Which CPU engine a machine gets: the one place where that is decided.
//!
//! Everything else takes a [`MakeEngine`], so that a program with another engine in it (the tests
//! have one) is the same program otherwise.

use engine::{Engine, EngineError};
use kvm::probe::Probe;

use crate::config::{EngineKind, Positions, Vm};
use crate::memory::GuestRam;

/// Makes the engine that the configuration asks for, on this memory.
pub type MakeEngine = fn(&Vm, &GuestRam) -> Result<Box<dyn Engine>, NoEngine>;

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum NoEngine {
    #[error(
        "vm.engine = \"kvm\" is not possible on this host: {why}; {fix}; `ft-ctl doctor` tells more, \
         and \"auto\" takes the best engine that there is"
    )]
    NoKvm { why: String, fix: String },
    #[error(
        "vm.positions = \"branches\" is not possible on this host: {why}; \"exits\" needs no counter, \
         and \"auto\" finds out"
    )]
    NoCounter { why: String },
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

/// What the kvm engine counts on this host, and in one line why. Takes some seconds where there is a
/// counter.
pub fn positions(asked: Positions) -> Result<(Positions, String), NoEngine> {
    if asked == Positions::Exits {
        return Ok((asked, "asked for".to_owned()));
    }
    let found = match asked {
        Positions::Branches => kvm::by_branches(),
        Positions::Auto | Positions::Exits => kvm::positions(),
    };
    let why = found.why.clone();
    match (found.by_branches, asked) {
        (true, _) => Ok((Positions::Branches, why)),
        (false, Positions::Branches) => Err(NoEngine::NoCounter { why }),
        (false, _) => Ok((Positions::Exits, why)),
    }
}

fn kvm(asked: Positions, ram: &GuestRam) -> Result<Box<dyn Engine>, NoEngine> {
    let (positions, why) = positions(asked)?;
    tracing::info!(positions = positions.name(), why, "positions chosen");
    let engine = kvm::KvmEngine::new(ram.memory())?;
    Ok(match positions {
        Positions::Branches => kvm::counted(engine)?,
        Positions::Auto | Positions::Exits => Box::new(engine),
    })
}

/// The engines of this build.
pub fn make(config: &Vm, ram: &GuestRam) -> Result<Box<dyn Engine>, NoEngine> {
    match config.engine {
        EngineKind::Soft => Ok(Box::new(soft::SoftEngine::new(ram.memory())?)),
        EngineKind::Kvm => {
            if let Some(check) = kvm::probe::probe().failure() {
                return Err(NoEngine::NoKvm {
                    why: check.detail.clone(),
                    fix: check.fix.clone().unwrap_or_default(),
                });
            }
            kvm(config.positions, ram)
        }
        EngineKind::Auto => {
            let choice = choose();
            tracing::info!(
                engine = choice.engine.name(),
                why = choice.why,
                "engine chosen"
            );
            match choice.engine {
                EngineKind::Kvm => kvm(config.positions, ram),
                EngineKind::Auto | EngineKind::Soft => {
                    Ok(Box::new(soft::SoftEngine::new(ram.memory())?))
                }
            }
        }
    }
}
