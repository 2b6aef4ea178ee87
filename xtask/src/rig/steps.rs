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
    /// Part of the short run that belongs to `cargo xtask test`.
    pub smoke: bool,
    /// Run by bash in the rig after [`LIBRARY`].
    pub script: &'static str,
}

/// What each step's script begins with.
pub const LIBRARY: &str = include_str!("library.sh");

pub const STEPS: &[Step] = &[Step {
    name: "machine",
    about: "the rig itself: AMD-V, KVM's device, our programs, the guest's image",
    seconds: 60,
    smoke: true,
    script: include_str!("steps/machine.sh"),
}];

/// The packages that have the programs.
pub const PACKAGES: &str = " -p vmm -p ft-diskd -p ft-netd -p ft-ctl -p tests -p e2e";

const PROGRAMS: &[&str] = &[
    "ft-vmm",
    "ft-diskd",
    "ft-netd",
    "ft-ctl",
    "redis-load",
    "e2e",
];

/// Where the programs are; with `only_present` those that are there.
pub fn programs(only_present: bool) -> Result<Vec<PathBuf>> {
    let found = PROGRAMS.iter().map(|name| e2e::programs::path(name));
    match only_present {
        true => Ok(found.flatten().collect()),
        false => found.collect(),
    }
}
