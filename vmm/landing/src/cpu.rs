//! Which event counts retired conditional branches on which CPU, how late its interrupt comes, and
//! what must be set right before the count is exact.
//!
//! Sources: Intel SDM vol. 3, "Performance Monitoring Events" (BR_INST_RETIRED.CONDITIONAL, C4h) and
//! vol. 4, table 2-1 (models); AMD PPR, PMCx0D1 "Retired Conditional Branch Instructions" and
//! PMCx025 "Retired Lock Instructions"; the margins are the experience of the rr debugger, which
//! lives of these counters.

use std::arch::x86_64::{__cpuid, CpuidResult};

use serde::Serialize;

/// A CPU's vendor, family and model as CPUID leaves 0 and 1 give them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CpuId {
    pub vendor: [u8; 12],
    /// Extended family added.
    pub family: u32,
    /// Extended model included.
    pub model: u32,
    /// CPUID says that a hypervisor is there.
    pub in_vm: bool,
}

/// The raw event and its margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BranchEvent {
    /// `perf_event_attr.config`: event in bits 0-7, unit mask in bits 8-15. The bits above, which
    /// say where to count and to interrupt, are the kernel's.
    pub config: u64,
    /// Branches by which the overflow's interrupt is late, at most.
    pub skid: u64,
    /// Whether the interrupt is known to be later than `skid` at times.
    pub unbounded: bool,
}

/// What makes the count wrong unless it is set right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Erratum {
    /// AMD Zen: speculative locked instructions are counted (rr issue 2034). Bit 54 of MSR C001_1020
    /// turns them off.
    SpecLockMap,
    /// Intel: branches of system management mode are counted unless `freeze_on_smi` is set.
    CountsInSmm,
}

/// A CPU on which branches are known to be counted exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cpu {
    pub name: &'static str,
    pub event: BranchEvent,
    pub errata: &'static [Erratum],
    /// P-cores and E-cores with a PMU of their own each: see [`Cpu::for_core`].
    pub hybrid: bool,
}

/// A CPU that is not in the table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no event is known that counts conditional branches exactly on this CPU ({vendor} family \
     {family:#x} model {model:#x}); use an engine that needs no counter"
)]
pub struct UnknownCpu {
    pub vendor: String,
    pub family: u32,
    pub model: u32,
}

/// BR_INST_RETIRED.CONDITIONAL, raw 0x5101c4 with its control bits.
const INTEL_CORE: BranchEvent = event(0x01c4, 100);
/// BR_INST_RETIRED.COND, raw 0x5111c4; unit mask 01h counts the taken ones only there.
const INTEL_ICE_LAKE: BranchEvent = event(0x11c4, 100);
/// The same, later cores.
const INTEL_LATE: BranchEvent = event(0x11c4, 125);
/// BR_INST_RETIRED.JCC, raw 0x517ec4.
const INTEL_ATOM: BranchEvent = event(0x7ec4, 100);
/// PMCx0D1, raw 0x5100d1.
const AMD_ZEN: BranchEvent = BranchEvent {
    config: 0x00d1,
    skid: 10_000,
    unbounded: true,
};

const fn event(config: u64, skid: u64) -> BranchEvent {
    BranchEvent {
        config,
        skid,
        unbounded: false,
    }
}

const SMM: &[Erratum] = &[Erratum::CountsInSmm];

/// Intel's family 6, by model.
const INTEL: &[(&[u32], &str, BranchEvent, bool)] = &[
    (
        &[0x1a, 0x1e, 0x1f, 0x2e],
        "Intel Nehalem",
        INTEL_CORE,
        false,
    ),
    (&[0x25, 0x2c, 0x2f], "Intel Westmere", INTEL_CORE, false),
    (&[0x2a, 0x2d], "Intel Sandy Bridge", INTEL_CORE, false),
    (&[0x3a, 0x3e], "Intel Ivy Bridge", INTEL_CORE, false),
    (
        &[0x3c, 0x3f, 0x45, 0x46],
        "Intel Haswell",
        INTEL_CORE,
        false,
    ),
    (
        &[0x3d, 0x47, 0x4f, 0x56],
        "Intel Broadwell",
        INTEL_CORE,
        false,
    ),
    (
        &[0x4e, 0x5e, 0x55],
        "Intel Skylake or Cascade Lake",
        INTEL_CORE,
        false,
    ),
    (
        &[0x8e, 0x9e],
        "Intel Kaby or Coffee Lake",
        INTEL_CORE,
        false,
    ),
    (&[0xa5, 0xa6], "Intel Comet Lake", INTEL_CORE, false),
    (
        &[0x7d, 0x7e, 0x6a, 0x6c],
        "Intel Ice Lake",
        INTEL_ICE_LAKE,
        false,
    ),
    (&[0x8c, 0x8d], "Intel Tiger Lake", INTEL_ICE_LAKE, false),
    (&[0xa7], "Intel Rocket Lake", INTEL_ICE_LAKE, false),
    (&[0x8f], "Intel Sapphire Rapids", INTEL_LATE, false),
    (&[0xcf], "Intel Emerald Rapids", INTEL_LATE, false),
    (&[0xad, 0xae], "Intel Granite Rapids", INTEL_LATE, false),
    (&[0x97, 0x9a], "Intel Alder Lake", INTEL_LATE, true),
    (&[0xb7, 0xba, 0xbf], "Intel Raptor Lake", INTEL_LATE, true),
    (&[0xaa, 0xac], "Intel Meteor Lake", INTEL_LATE, true),
    (&[0xbd], "Intel Lunar Lake", INTEL_LATE, true),
    (&[0xc5, 0xc6, 0xb5], "Intel Arrow Lake", INTEL_LATE, true),
    (
        &[0x37, 0x4a, 0x4c, 0x4d, 0x5a, 0x5d],
        "Intel Silvermont or Airmont",
        INTEL_ATOM,
        false,
    ),
    (&[0x5c, 0x5f, 0x7a], "Intel Goldmont", INTEL_ATOM, false),
    (&[0x86, 0x96, 0x9c], "Intel Tremont", INTEL_ATOM, false),
    (&[0xbe], "Intel Gracemont", INTEL_ATOM, false),
    (&[0xaf, 0xb6], "Intel Crestmont", INTEL_ATOM, false),
];

impl CpuId {
    /// The CPU on which this runs.
    pub fn of_host() -> Self {
        let (top, signature) = (__cpuid(0), __cpuid(1));
        Self::from_leaves(&top, &signature)
    }

    fn from_leaves(top: &CpuidResult, signature: &CpuidResult) -> Self {
        let mut vendor = [0; 12];
        vendor[..4].copy_from_slice(&top.ebx.to_le_bytes());
        vendor[4..8].copy_from_slice(&top.edx.to_le_bytes());
        vendor[8..].copy_from_slice(&top.ecx.to_le_bytes());
        let eax = signature.eax;
        let base = eax >> 8 & 0xf;
        let family = if base == 0xf {
            base + (eax >> 20 & 0xff)
        } else {
            base
        };
        let low = eax >> 4 & 0xf;
        let extended = matches!(base, 0x6 | 0xf);
        let model = if extended {
            low | (eax >> 16 & 0xf) << 4
        } else {
            low
        };
        Self {
            vendor,
            family,
            model,
            in_vm: signature.ecx >> 31 != 0,
        }
    }

    pub fn vendor_name(&self) -> String {
        String::from_utf8_lossy(&self.vendor).into_owned()
    }
}

impl Cpu {
    /// What is known of a CPU.
    pub fn of(id: &CpuId) -> Result<Self, UnknownCpu> {
        let known = match &id.vendor {
            b"GenuineIntel" if id.family == 6 => Self::intel(id.model),
            b"AuthenticAMD" => match id.family {
                0x17 => Some("AMD Zen 1 or 2"),
                0x19 => Some("AMD Zen 3 or 4"),
                0x1a => Some("AMD Zen 5"),
                _ => None,
            }
            .map(Self::zen),
            _ => None,
        };
        known.ok_or_else(|| UnknownCpu {
            vendor: id.vendor_name(),
            family: id.family,
            model: id.model,
        })
    }

    fn intel(model: u32) -> Option<Self> {
        let (_, name, event, hybrid) = INTEL.iter().find(|(models, ..)| models.contains(&model))?;
        Some(Self {
            name,
            event: *event,
            errata: SMM,
            hybrid: *hybrid,
        })
    }

    fn zen(name: &'static str) -> Self {
        Self {
            name,
            event: AMD_ZEN,
            errata: &[Erratum::SpecLockMap],
            hybrid: false,
        }
    }

    /// The same CPU's event on a P-core or, if `efficient`, on an E-core of a hybrid part.
    #[must_use]
    pub fn for_core(mut self, efficient: bool) -> Self {
        if self.hybrid && efficient {
            self.event = INTEL_ATOM;
        }
        self
    }
}

#[cfg(test)]
mod tests;
