//! The versioned header: which machine a log belongs to, and whether a replica can replay it.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::error::Problem;
use super::varint::{Reader, put, put_data};
use crate::ids::VmId;
use crate::position::Position;

/// The version of the format. It changes whenever the bytes or their meaning change; there is no
/// reading of other versions.
pub const LOG_VERSION: u16 = 3;
const MAGIC: [u8; 8] = *b"\x89FTLOG\r\n";
const ENGINE_BYTES_MAX: usize = 64;
const BUILD_BYTES_MAX: usize = 64;
const REGIONS_MAX: usize = 64;

/// What a position's `count` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CountUnit {
    /// Retired instructions, one for each REP iteration.
    Instructions,
    /// Retired conditional branches and completed exits.
    Branches,
    /// Deterministic exits.
    Exits,
}

impl fmt::Display for CountUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CountUnit::Instructions => "instructions",
            CountUnit::Branches => "conditional branches",
            CountUnit::Exits => "exits",
        })
    }
}

/// A range of guest-physical RAM, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    pub base: u64,
    pub len: u64,
}

/// What a log is a log of. Both replicas make their own and compare ([`Header::check_compatible`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub vm: VmId,
    /// The view in which the log is recorded.
    pub view: u64,
    /// Which program makes it: version and hash of the sources on which a replay depends (at most 64
    /// bytes).
    pub build: String,
    /// The CPU engine's name (at most 64 bytes).
    pub engine: String,
    pub counts: CountUnit,
    /// Hash of the CPUID table that the guest sees.
    pub cpuid: u64,
    /// Guest RAM, lowest first (at most 64 ranges).
    pub memory: Vec<Region>,
    /// Hash of the board's specification.
    pub board: u64,
    /// Fingerprint of the host's arithmetic where the engine relies on it (x87, SSE); 0 if not.
    pub host_math: u64,
    /// Hash of the whole state that the replay starts from.
    pub initial_state: u64,
    /// Where it starts; the first entry's differences are relative to it.
    pub start: Position,
    /// The guest's clock there, virtual nanoseconds since power-on.
    pub start_clock_ns: u64,
}

/// Why a replica cannot replay a log. The first value is the own one.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Mismatch {
    #[error("this replica is of VM {ours}, the log is of VM {theirs}")]
    Vm { ours: VmId, theirs: VmId },
    #[error("this replica is in view {ours}, the log is recorded in view {theirs}")]
    View { ours: u64, theirs: u64 },
    #[error(
        "this replica is build {ours} of Lockstep, the log was made by build {theirs}; start both with the same build"
    )]
    Build { ours: String, theirs: String },
    #[error(
        "this replica runs engine {ours:?}, the log was made by engine {theirs:?}; start both with the same --engine"
    )]
    Engine { ours: String, theirs: String },
    #[error(
        "this replica counts {ours}, the log counts {theirs}; start both with the same --positions (\"exits\" needs no counter of the processor)"
    )]
    Counts { ours: CountUnit, theirs: CountUnit },
    #[error(
        "the CPUID tables differ ({ours:#x}, the log has {theirs:#x}); start both replicas with the same version and CPU options"
    )]
    Cpuid { ours: u64, theirs: u64 },
    #[error(
        "the memory layouts differ ({ours}, the log has {theirs}); start both replicas with the same memory size"
    )]
    Memory { ours: String, theirs: String },
    #[error(
        "the boards differ ({ours:#x}, the log has {theirs:#x}); start both replicas with the same devices and options"
    )]
    Board { ours: u64, theirs: u64 },
    #[error(
        "the hosts' processors compute differently ({ours:#x}, the log has {theirs:#x}); use hosts with the same processor family"
    )]
    HostMath { ours: u64, theirs: u64 },
    #[error(
        "the initial states differ ({ours:#x}, the log has {theirs:#x}); start both replicas from the same kernel, initrd, command line or saved state"
    )]
    InitialState { ours: u64, theirs: u64 },
    #[error(
        "this replica starts at {ours} and clock {ours_ns} ns, the log at {theirs} and clock {theirs_ns} ns"
    )]
    Start {
        ours: Position,
        ours_ns: u64,
        theirs: Position,
        theirs_ns: u64,
    },
}

impl Header {
    /// Whether a replica with this header can replay a log with the header `log`.
    pub fn check_compatible(&self, log: &Header) -> Result<(), Mismatch> {
        let (ours, theirs) = (self, log);
        macro_rules! same {
            ($field:ident, $kind:ident) => {
                if ours.$field != theirs.$field {
                    let (ours, theirs) = (ours.$field.clone(), theirs.$field.clone());
                    return Err(Mismatch::$kind { ours, theirs });
                }
            };
        }
        same!(vm, Vm);
        same!(view, View);
        same!(build, Build);
        same!(engine, Engine);
        same!(counts, Counts);
        same!(cpuid, Cpuid);
        if ours.memory != theirs.memory {
            let (ours, theirs) = (describe(&ours.memory), describe(&theirs.memory));
            return Err(Mismatch::Memory { ours, theirs });
        }
        same!(board, Board);
        same!(host_math, HostMath);
        if ours.start != theirs.start || ours.start_clock_ns != theirs.start_clock_ns {
            return Err(Mismatch::Start {
                ours: ours.start,
                ours_ns: ours.start_clock_ns,
                theirs: theirs.start,
                theirs_ns: theirs.start_clock_ns,
            });
        }
        same!(initial_state, InitialState);
        Ok(())
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&LOG_VERSION.to_le_bytes());
        out.extend_from_slice(&self.vm.0);
        put(out, self.view);
        put_data(out, self.build.as_bytes());
        put_data(out, self.engine.as_bytes());
        out.push(match self.counts {
            CountUnit::Instructions => 0,
            CountUnit::Branches => 1,
            CountUnit::Exits => 2,
        });
        put(out, self.memory.len() as u64);
        for region in &self.memory {
            put(out, region.base);
            put(out, region.len);
        }
        for hash in [self.cpuid, self.board, self.host_math, self.initial_state] {
            out.extend_from_slice(&hash.to_le_bytes());
        }
        put(out, self.start.count);
        put(out, self.start.rip);
        put(out, self.start.rcx);
        put(out, self.start_clock_ns);
    }

    pub(super) fn decode(body: &mut Reader) -> Result<Header, Problem> {
        if body.array("the magic number").ok() != Some(MAGIC) {
            return Err(Problem::Magic);
        }
        let found = body.u16("the version")?;
        if found != LOG_VERSION {
            return Err(Problem::Version {
                found,
                supported: LOG_VERSION,
            });
        }
        let vm = VmId(body.array("the VM's id")?);
        let view = body.varint("the view")?;
        let build = body.text("the build", BUILD_BYTES_MAX)?;
        let engine = body.text("the engine's name", ENGINE_BYTES_MAX)?;
        let counts = match body.u8("the unit of counts")? {
            0 => CountUnit::Instructions,
            1 => CountUnit::Branches,
            2 => CountUnit::Exits,
            value => {
                return Err(Problem::Value {
                    what: "the unit of counts",
                    value: value.into(),
                });
            }
        };
        let regions = body.varint("the number of memory regions")?;
        if regions > REGIONS_MAX as u64 {
            return Err(Problem::Value {
                what: "the number of memory regions",
                value: regions,
            });
        }
        let mut memory = Vec::new();
        for _ in 0..regions {
            let base = body.varint("a region's base")?;
            let len = body.varint("a region's length")?;
            memory.push(Region { base, len });
        }
        Ok(Header {
            vm,
            view,
            build,
            engine,
            counts,
            memory,
            cpuid: body.u64("the CPUID hash")?,
            board: body.u64("the board's hash")?,
            host_math: body.u64("the host's arithmetic")?,
            initial_state: body.u64("the initial state's hash")?,
            start: Position {
                count: body.varint("the start's count")?,
                rip: body.varint("the start's RIP")?,
                rcx: body.varint("the start's RCX")?,
            },
            start_clock_ns: body.varint("the start's clock")?,
        })
    }
}

fn describe(memory: &[Region]) -> String {
    let parts: Vec<String> = memory
        .iter()
        .map(|r| format!("{} KiB at {:#x}", r.len >> 10, r.base))
        .collect();
    if parts.is_empty() {
        "none".into()
    } else {
        parts.join(", ")
    }
}
