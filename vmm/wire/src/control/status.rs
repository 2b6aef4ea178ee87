//! What a replica says of itself, in the words that users of fault-tolerant VMs know.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::register::{ReplicaId, View, VmId};

/// What a replica does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Primary,
    Backup,
    Solo,
    Halted,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Primary => "primary",
            Role::Backup => "backup",
            Role::Solo => "solo",
            Role::Halted => "halted",
        })
    }
}

/// Whether a virtual machine survives the loss of a host now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Protection {
    Protected,
    Starting,
    NeedBackup,
    NotRunning,
    /// This replica has stopped for good, for this reason.
    Halted(String),
}

const PROTECTED: &str = "Protected";
const STARTING: &str = "Not protected: starting";
const NEED_BACKUP: &str = "Not protected: need backup VM";
const NOT_RUNNING: &str = "Not protected: VM not running";
const HALTED: &str = "Halted: ";

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protection::Protected => f.write_str(PROTECTED),
            Protection::Starting => f.write_str(STARTING),
            Protection::NeedBackup => f.write_str(NEED_BACKUP),
            Protection::NotRunning => f.write_str(NOT_RUNNING),
            Protection::Halted(reason) => write!(f, "{HALTED}{reason}"),
        }
    }
}

/// Not one of the states' words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a state of a replica")]
pub struct UnknownState(String);

impl FromStr for Protection {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Protection, UnknownState> {
        Ok(match text {
            PROTECTED => Protection::Protected,
            STARTING => Protection::Starting,
            NEED_BACKUP => Protection::NeedBackup,
            NOT_RUNNING => Protection::NotRunning,
            other => match other.strip_prefix(HALTED) {
                Some(reason) => Protection::Halted(reason.to_owned()),
                None => return Err(UnknownState(other.to_owned())),
            },
        })
    }
}

impl From<Protection> for String {
    fn from(state: Protection) -> String {
        state.to_string()
    }
}

impl TryFrom<String> for Protection {
    type Error = UnknownState;

    fn try_from(text: String) -> Result<Protection, UnknownState> {
        text.parse()
    }
}

/// A point in the instruction stream, for people: RIP in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PositionStatus {
    pub count: u64,
    /// `0x` and 16 digits.
    pub rip: String,
}

impl PositionStatus {
    pub fn new(count: u64, rip: u64) -> PositionStatus {
        PositionStatus {
            count,
            rip: format!("{rip:#018x}"),
        }
    }
}

/// A distribution's median and tail; all 0 when nothing was measured yet.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    pub samples: u64,
}

/// Bytes on the logging channel, by kind of entry (the kinds' names are `ftlog`'s).
pub type LogBytes = BTreeMap<String, u64>;

/// Stretches of execution without an exit that were closed by the state they had changed (on a
/// backup: taken over), with an engine that counts exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stretches {
    pub closed: u64,
    /// Pages of 4 KiB that went with them.
    pub pages: u64,
    /// Interrupts that the guest took in them.
    pub interrupts: u64,
    /// Their bytes in the log; on a backup 0.
    pub bytes: u64,
}

/// What happened at a failover, each in microseconds since the Unix epoch by this host's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Failover {
    /// The view that this replica won.
    pub view: u64,
    /// The last message of the other replica.
    pub last_heard_unix_us: Option<u64>,
    pub suspected_unix_us: Option<u64>,
    pub claimed_unix_us: Option<u64>,
    pub log_consumed_unix_us: Option<u64>,
    pub live_unix_us: Option<u64>,
    /// The first frame that left after going live.
    pub first_output_unix_us: Option<u64>,
}

impl Stretches {
    /// What was added since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Stretches) -> Stretches {
        Stretches {
            closed: self.closed.saturating_sub(earlier.closed),
            pages: self.pages.saturating_sub(earlier.pages),
            interrupts: self.interrupts.saturating_sub(earlier.interrupts),
            bytes: self.bytes.saturating_sub(earlier.bytes),
        }
    }
}

/// The state of one replica.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub vm: VmId,
    pub replica: ReplicaId,
    pub role: Role,
    pub state: Protection,
    pub view: View,
    pub pid: u32,
    /// `soft` or `kvm`.
    pub engine: String,
    /// What a position's count counts: `instructions`, `conditional branches` or `exits`.
    pub counts: String,
    pub position: PositionStatus,
    /// Nanoseconds of the guest's clock since power-on.
    pub guest_clock_ns: u64,
    /// Milliseconds since the process started.
    pub uptime_ms: u64,
    /// By how much the backup's execution is behind.
    pub lag_ms: f64,
    pub lag_quantiles_ms: Quantiles,
    /// Of the last second.
    pub log_mbit_per_s: f64,
    pub log_bytes: LogBytes,
    pub log_entries: u64,
    /// How long outputs waited for their acknowledgement.
    pub output_hold_ms: Quantiles,
    pub outputs_held: u64,
    /// 1.0: full speed; below: slowed so that the lag stays bounded.
    pub speed: f64,
    /// What is counted (`counts`), a second, of the last second.
    pub instructions_per_s: f64,
    pub stretches: Stretches,
    /// The guest's exits by kind, if the engine gives them.
    pub exits: BTreeMap<String, u64>,
    /// `HOST:PORT` of the logging channel's listener, where there is one.
    pub address: Option<String>,
    pub hashes_compared: u64,
    pub last_failover: Option<Failover>,
}

impl Status {
    /// How fast the guest runs, in words for people: `per_s` of what its engine counts.
    pub fn rate(&self, per_s: f64) -> String {
        match self.counts.as_str() {
            "instructions" => format!("{:.1} MIPS", per_s / 1e6),
            counted => format!("{:.1} k {counted}/s", per_s / 1e3),
        }
    }
}
