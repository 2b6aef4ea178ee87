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

/// An error with its causes, in one line.
pub fn chain(why: &dyn std::error::Error) -> String {
    let mut text = why.to_string();
    let mut cause = why.source();
    while let Some(why) = cause {
        text.push_str(&format!(": {why}"));
        cause = why.source();
    }
    text
}
