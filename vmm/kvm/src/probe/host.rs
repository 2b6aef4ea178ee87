//! What the host offers: the device, KVM's abilities, the processor, the module's parameters.

use std::arch::x86_64::{__cpuid, __cpuid_count};

use engine::cpuid;
use kvm_ioctls::Kvm;

use super::{Check, Outcome};
use crate::BRAND;
use crate::host;
use crate::trampoline::Kind;
use crate::vm::NEEDED;

/// KVM's stable API.
const API: i32 = 12;

pub fn checks() -> Vec<Check> {
    let mut checks = vec![processor()];
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(why) => {
            let why = std::io::Error::from(why);
            checks.push(
                Check::new(
                    "kvm device",
                    Outcome::Fail,
                    format!("/dev/kvm cannot be opened: {why}"),
                )
                .fix(format!(
                    "load the module (modprobe {}) and give yourself the device (group kvm)",
                    module()
                )),
            );
            return checks;
        }
    };
    let version = kvm.get_api_version();
    checks.push(if version == API {
        Check::new("kvm device", Outcome::Ok, "/dev/kvm opens, API 12")
    } else {
        let detail = format!("/dev/kvm has API {version}, not {API}");
        Check::new("kvm device", Outcome::Fail, detail).fix("use a Linux kernel's own KVM")
    });
    checks.push(abilities(&kvm));
    checks.push(nested());
    if checks.iter().all(|check| check.result == Outcome::Ok) {
        checks.push(features());
        checks.extend(unrestricted());
        checks.extend([paging(), random()]);
    }
    checks
}

fn processor() -> Check {
    const NAME: &str = "kvm processor";
    let vendor = host::vendor();
    let (there, name, setting) = match host::kind() {
        Some(Kind::Svm) => {
            let last = __cpuid(0x8000_0000).eax;
            let svm = last >= 0x8000_000a && __cpuid(0x8000_0001).ecx & 1 << 2 != 0;
            (svm, "AMD-V", "SVM")
        }
        Some(Kind::Vmx) => (__cpuid(1).ecx & 1 << 5 != 0, "VT-x", "VMX"),
        None => {
            let detail = format!("this is a processor of {vendor}, which the engine does not know");
            return Check::new(NAME, Outcome::Fail, detail)
                .fix("use engine = \"soft\" here, or a host with AMD-V or VT-x");
        }
    };
    if there {
        return Check::new(NAME, Outcome::Ok, format!("{vendor}, with {name}"));
    }
    Check::new(
        NAME,
        Outcome::Fail,
        format!("{name} is not there, or is hidden from this machine"),
    )
    .fix(format!(
        "enable {setting} in the firmware; in a virtual machine, ask its host for nested \
         virtualisation"
    ))
}

fn abilities(kvm: &Kvm) -> Check {
    const NAME: &str = "kvm abilities";
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, what)| *what)
        .collect();
    if missing.is_empty() {
        return Check::new(NAME, Outcome::Ok, "everything needed is there");
    }
    let detail = format!("this kernel's KVM lacks: {}", missing.join(", "));
    Check::new(NAME, Outcome::Fail, detail)
        .fix("use Linux 5.14 or later, on a host with hardware virtualisation")
}

/// The module of KVM that drives this processor.
fn module() -> &'static str {
    match host::kind() {
        Some(Kind::Vmx) => "kvm_intel",
        _ => "kvm_amd",
    }
}

/// The value of a parameter of the module; None if there is none.
fn parameter(name: &str) -> Option<bool> {
    let path = format!("/sys/module/{}/parameters/{name}", module());
    let value = std::fs::read_to_string(path).ok()?;
    Some(matches!(value.trim(), "1" | "Y" | "y"))
}

fn nested() -> Check {
    const NAME: &str = "kvm nested guests";
    let module = module();
    match parameter("nested") {
        Some(true) => Check::new(NAME, Outcome::Ok, format!("allowed ({module}.nested)")),
        Some(false) => Check::new(
            NAME,
            Outcome::Fail,
            format!("{module}.nested is off, so RDTSC cannot be trapped"),
        )
        .fix(format!("modprobe -r {module}; modprobe {module} nested=1")),
        None => Check::new(
            NAME,
            Outcome::Fail,
            format!(
                "the module {module} is not loaded: this /dev/kvm is not backed by the processor"
            ),
        )
        .fix(format!("modprobe {module}, on a host with AMD-V or VT-x")),
    }
}

/// With VT-x a guest's code runs without paging only where KVM uses the processor's second tables.
fn unrestricted() -> Option<Check> {
    const NAME: &str = "kvm unpaged code";
    if host::kind() != Some(Kind::Vmx) {
        return None;
    }
    let on = |name| parameter(name) == Some(true);
    if on("ept") && on("unrestricted_guest") {
        let detail = "runs (kvm_intel.ept, kvm_intel.unrestricted_guest)";
        return Some(Check::new(NAME, Outcome::Ok, detail));
    }
    let check = Check::new(
        NAME,
        Outcome::Fail,
        "kvm_intel.ept or kvm_intel.unrestricted_guest is off, so that a guest cannot boot",
    );
    Some(check.fix("modprobe -r kvm_intel; modprobe kvm_intel ept=1 unrestricted_guest=1"))
}

/// Whether KVM shadows its guests' page tables, rather than let the processor walk them.
pub fn shadow_paging() -> bool {
    host::kind() == Some(Kind::Svm) && parameter("npt") == Some(false)
}

fn paging() -> Check {
    const NAME: &str = "kvm paging";
    if shadow_paging() {
        return Check::new(
            NAME,
            Outcome::Ok,
            "shadow paging (kvm_amd.npt=0): what the host's TLB holds does not show",
        );
    }
    let (which, fix) = match host::kind() {
        Some(Kind::Vmx) => (
            "kvm_intel.ept=1",
            "AMD-V with npt=0 is exact, and so is engine = \"soft\"; VT-x has no such choice",
        ),
        _ => (
            "kvm_amd.npt=1",
            "modprobe kvm_amd npt=0 is exact and slower",
        ),
    };
    Check::new(
        NAME,
        Outcome::Warn,
        format!(
            "nested paging ({which}): what the guest's TLB holds depends on the host, so a page \
             fault may come on one replica and not on the other; state hashes find that"
        ),
    )
    .fix(fix)
}

/// Features of the table that the host must have, since their instructions are not trapped.
fn features() -> Check {
    const NAME: &str = "kvm features";
    // Leaf, and bits that are not the processor's: leaf 7's TSC_ADJUST is an MSR of ours.
    let leaves: [(u32, u32); 3] = [(1, 0), (7, 1 << 1), (0x8000_0001, 0)];
    let mut missing = Vec::new();
    for (leaf, ours) in leaves {
        let host = __cpuid_count(leaf, 0);
        let host = [host.eax, host.ebx, host.ecx, host.edx];
        let shown = cpuid::leaf(BRAND, leaf, 0);
        // EBX of leaf 1 and EAX are no features.
        let registers: &[usize] = if leaf == 7 { &[1] } else { &[2, 3] };
        for &r in registers {
            // Leaf 80000001h's SYSCALL and leaf 1's SEP are everywhere in 64-bit mode.
            let lacks = shown[r] & !host[r] & !(if r == 1 { ours } else { 0 });
            if lacks != 0 {
                missing.push(format!(
                    "{leaf:#x} {} {lacks:#x}",
                    ["EAX", "EBX", "ECX", "EDX"][r]
                ));
            }
        }
    }
    if missing.is_empty() {
        return Check::new(
            NAME,
            Outcome::Ok,
            "every feature that the guest is shown is there",
        );
    }
    let detail = format!(
        "the processor lacks what the guest is shown (CPUID leaf, register, bits): {}",
        missing.join("; ")
    );
    Check::new(NAME, Outcome::Fail, detail)
        .fix("use a Zen, Broadwell or Goldmont processor, or a later one")
}

fn random() -> Check {
    const NAME: &str = "kvm random numbers";
    let has = [
        ("RDRAND", __cpuid(1).ecx & 1 << 30 != 0),
        ("RDSEED", __cpuid_count(7, 0).ebx & 1 << 18 != 0),
    ];
    let named: Vec<&str> = has.iter().filter(|(_, on)| *on).map(|(n, _)| *n).collect();
    if named.is_empty() {
        return Check::new(
            NAME,
            Outcome::Ok,
            "this processor has no RDRAND and no RDSEED",
        );
    }
    let named = named.join(", ");
    if host::kind() == Some(Kind::Vmx) {
        let detail = format!("{named}: hidden from the guest, and raises #UD where it is executed");
        return Check::new(NAME, Outcome::Ok, detail);
    }
    let detail = format!(
        "{named}: hidden from the guest, but the processor executes it all the same: a program that \
         does not ask CPUID first gets values that the log does not have"
    );
    Check::new(NAME, Outcome::Warn, detail).fix(
        "run only guests that ask CPUID first, as Linux and OpenSSL do; state hashes find others",
    )
}
