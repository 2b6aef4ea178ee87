//! What is tested in the rig. A step is a bash script and a bound; it passes when the script ends
//! with status 0.

use std::path::PathBuf;

use anyhow::Result;

pub struct Step {
    /// For `--only` and the table.
    pub name: &'static str,
    /// One line.
    pub about: &'static str,
    /// The most that it may take in the rig, in seconds. Bounds hangs; far above what it takes.
    pub seconds: u64,
    /// Part of the short run, `--smoke`.
    pub smoke: bool,
    /// Run by bash in the rig after [`LIBRARY`].
    pub script: &'static str,
}

/// What each step's script begins with.
pub const LIBRARY: &str = include_str!("library.sh");

pub const STEPS: &[Step] = &[
    Step {
        name: "machine",
        about: "the rig itself: AMD-V or VT-x, KVM's device, our programs, the guest's image",
        seconds: 60,
        smoke: true,
        script: include_str!("steps/machine.sh"),
    },
    Step {
        name: "probe",
        about: "ft-ctl doctor: what auto picks, and why",
        seconds: 120,
        smoke: true,
        script: include_str!("steps/probe.sh"),
    },
    Step {
        name: "conformance",
        about: "the engine's conformance tests: small assembled guests",
        seconds: 600,
        smoke: true,
        script: "kvm-conformance --on \"$emulator\"",
    },
    Step {
        name: "landing",
        about: "stopping between exits: kicks, the landing's self-test, positions by branches",
        seconds: 300,
        smoke: true,
        script: "kvm-landing --on \"$emulator\" 1 1 1 4",
    },
    Step {
        name: "boot",
        about: "Debian boots alone, is saved, goes on from the file, and works",
        seconds: 1200,
        smoke: false,
        script: "rm -rf /rig/work/base; on_kvm solo",
    },
    Step {
        name: "redis",
        about: "a pair under Redis load: verified history, registers and all of memory compared",
        seconds: 1200,
        smoke: false,
        script: "on_kvm load-compared",
    },
    Step {
        name: "kill",
        about: "the primary is killed under load: failover, verified history, no lost connection",
        seconds: 1200,
        smoke: false,
        script: "on_kvm kill-primary",
    },
    Step {
        name: "split",
        about: "the log channel is cut: exactly one replica survives",
        seconds: 1200,
        smoke: false,
        script: "on_kvm cut-silent; on_kvm cut-closed",
    },
    Step {
        name: "compute",
        about: "a guest that computes without an exit: timer, equal memory, a kill in the middle",
        seconds: 1200,
        smoke: false,
        script: "on_kvm busy-guest; on_kvm busy-kill",
    },
    Step {
        name: "rdtsc",
        about: "RDTSC and RDTSCP in programs and in the kernel: equal on both replicas",
        seconds: 1200,
        smoke: false,
        script: "on_kvm rdtsc",
    },
    Step {
        name: "refusal",
        about: "a pair of kvm and soft is refused with a sentence",
        seconds: 1200,
        smoke: false,
        script: "on_kvm engines-differ",
    },
    Step {
        name: "figures",
        about: "with and without a backup: boot, idle, Redis, compute; bytes of the log by kind",
        seconds: 2400,
        smoke: false,
        script: include_str!("steps/figures.sh"),
    },
];

/// What cargo is told to build.
pub const TARGETS: &str = " -p vmm -p ft-diskd -p ft-netd -p ft-ctl -p tests -p e2e -p kvm --bins \
                           --example kvm-conformance --example kvm-landing";

const PROGRAMS: &[&str] = &[
    "ft-vmm",
    "ft-diskd",
    "ft-netd",
    "ft-ctl",
    "redis-load",
    "e2e",
    "examples/kvm-conformance",
    "examples/kvm-landing",
];

/// Where the programs are; with `only_present` those that are there.
pub fn programs(only_present: bool) -> Result<Vec<PathBuf>> {
    let found = PROGRAMS.iter().map(|name| e2e::programs::path(name));
    match only_present {
        true => Ok(found.flatten().collect()),
        false => found.collect(),
    }
}
