//! The host's processor: what engines would need of it.

use std::fs;
use std::fs::OpenOptions;

use super::{Check, NOT_RUN, Verdict};

pub fn checks() -> Vec<Check> {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = field(&info, "flags").unwrap_or_default();
    vec![
        processor(&info),
        soft(),
        cores(),
        kvm(&flags),
        virtualization(&flags),
    ]
}

fn field(info: &str, name: &str) -> Option<String> {
    let line = info
        .lines()
        .find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn processor(info: &str) -> Check {
    let model = field(info, "model name").unwrap_or_else(|| "unknown".to_owned());
    Check::new("processor", Verdict::Ok, model)
}

/// The `soft` engine executes the guest's SSE instructions with the host's own, up to what its CPUID
/// table offers.
fn soft() -> Check {
    let has = [
        ("sse3", std::arch::is_x86_feature_detected!("sse3")),
        ("ssse3", std::arch::is_x86_feature_detected!("ssse3")),
        ("sse4.1", std::arch::is_x86_feature_detected!("sse4.1")),
        ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("popcnt", std::arch::is_x86_feature_detected!("popcnt")),
        ("fxsr", std::arch::is_x86_feature_detected!("fxsr")),
    ];
    let missing: Vec<&str> = has
        .iter()
        .filter(|(_, there)| !there)
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        let names = has.map(|(name, _)| name).join(", ");
        Check::new("soft engine", Verdict::Ok, format!("the host has {names}"))
    } else {
        Check::new(
            "soft engine",
            Verdict::Fail,
            format!("the host's processor has no {}", missing.join(", ")),
        )
        .fix("use a host with an x86-64-v2 processor (any since about 2009)")
    }
}

fn cores() -> Check {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores >= 2 {
        return Check::new("cores", Verdict::Ok, format!("{cores}"));
    }
    Check::new(
        "cores",
        Verdict::Warn,
        "1: primary and backup share it, and both are slow",
    )
    .fix("use 2 cores or more, or a backup on another host")
}

/// A KVM device says little: some clouds offer one that is not backed by the processor.
fn kvm(flags: &str) -> Check {
    let there = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) if has(flags, "vmx") || has(flags, "svm") => "/dev/kvm can be opened".to_owned(),
        Ok(_) => "/dev/kvm can be opened, but the processor shows neither VT-x nor AMD-V: it is \
                  emulated"
            .to_owned(),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => "no /dev/kvm".to_owned(),
        Err(why) => format!("/dev/kvm cannot be opened ({why})"),
    };
    Check::new("kvm", Verdict::Note, format!("{there}; {NOT_RUN}"))
}

fn virtualization(flags: &str) -> Check {
    let mut detail = match (has(flags, "vmx"), has(flags, "svm")) {
        (true, _) => "VT-x (vmx)",
        (_, true) => "AMD-V (svm)",
        _ => "neither vmx nor svm",
    }
    .to_owned();
    if has(flags, "hypervisor") {
        detail.push_str("; this host is a virtual machine itself");
    }
    Check::new("virtualization", Verdict::Note, detail)
}

/// Whether `flag` is among the processor's flags.
fn has(flags: &str, flag: &str) -> bool {
    flags.split_whitespace().any(|word| word == flag)
}
