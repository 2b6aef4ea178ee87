//! Which processor the guest's instructions run on.

use std::arch::x86_64::__cpuid;

use crate::trampoline::Kind;

/// Whose processor it is, as CPUID has it.
pub fn vendor() -> String {
    let leaf = __cpuid(0);
    let words = [leaf.ebx, leaf.edx, leaf.ecx];
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Which virtualization this vendor's processors have; None: one that the engine does not know.
pub fn kind() -> Option<Kind> {
    match vendor().as_str() {
        "AuthenticAMD" | "HygonGenuine" => Some(Kind::Svm),
        "GenuineIntel" => Some(Kind::Vmx),
        _ => None,
    }
}

/// A number for the host's processor: vendor, family, model and stepping. The guest computes on the
/// host itself, so whatever models do differently (reciprocal estimates, x87 functions, undefined
/// flags) is the same only on the same model.
pub fn model() -> u64 {
    let vendor = __cpuid(0);
    let words = [vendor.ebx, vendor.edx, vendor.ecx, __cpuid(1).eax];
    // FNV-1a; it need only tell models apart.
    words.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| {
        (hash ^ u64::from(*word)).wrapping_mul(0x100_0000_01b3)
    })
}
