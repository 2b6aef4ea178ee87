//! Errors of KVM in words.

use engine::EngineError;

/// A call into KVM failed.
pub fn call(what: &'static str, why: impl Into<std::io::Error>) -> EngineError {
    EngineError::Hypervisor(format!("KVM refused to {what}: {}", why.into()))
}

/// KVM gave the guest up.
pub fn stopped(what: &str, rip: u64) -> EngineError {
    EngineError::Hypervisor(format!("KVM stopped the guest at RIP {rip:#x}: {what}"))
}
