//! The sections of the configuration: every key with its default and its flag. The text of a field
//! is the help of its flag.

use std::num::{NonZeroU16, NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use ftlog::{CountUnit, VmId};
use serde::{Deserialize, Serialize};

use super::{Address, ByteSize, Forward, Mac, NetMode, RamSize, Seed};
use crate::boot::BootMode;

/// The virtual machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Machine")]
pub struct Vm {
    /// Name of the machine
    #[arg(id = "vm.name", long = "name", value_name = "NAME")]
    pub name: String,
    /// Identity of the machine; default: a new one
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "vm.uuid", long = "uuid", value_name = "UUID")]
    pub uuid: Option<VmId>,
    /// Seed of the guest's entropy device, 64 hexadecimal digits; both replicas must have the same.
    /// Default: a new one, which `ft-ctl up` gives to both
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "vm.seed", long = "seed", value_name = "HEX")]
    pub seed: Option<Seed>,
    /// What the guest's wall clock reads at power-on, seconds since 1970; both replicas must have
    /// the same. Default: now
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "vm.start_time", long = "start-time", value_name = "SECONDS")]
    pub start_time: Option<u64>,
    /// RAM: 16MiB to 64GiB, a multiple of 2MiB
    #[arg(id = "vm.memory", long = "memory", value_name = "SIZE")]
    pub memory: RamSize,
    /// The CPU engine
    #[arg(id = "vm.engine", long = "engine")]
    pub engine: EngineKind,
    /// With an engine that counts exits (kvm): after how long without one the guest is stopped for
    /// events that wait, in ms, 1 to 1000
    #[arg(id = "vm.stretch_ms", long = "stretch-ms", value_name = "MS")]
    pub stretch_ms: NonZeroU64,
    /// How much of the host's time passes for the guest, in percent, 1 to 100: less for a host so slow
    /// that the guest's timer takes all of its time, as emulated ones are
    #[arg(
        id = "vm.clock_percent",
        long = "clock-percent",
        value_name = "PERCENT"
    )]
    pub clock_percent: NonZeroU32,
    /// What the kvm engine counts
    #[arg(id = "vm.positions", long = "positions")]
    pub positions: Positions,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            name: "lockstep".into(),
            uuid: None,
            seed: None,
            start_time: None,
            memory: RamSize::DEFAULT,
            engine: EngineKind::default(),
            stretch_ms: nonzero(4),
            clock_percent: NonZeroU32::MIN.saturating_add(99),
            positions: Positions::default(),
        }
    }
}

/// Which CPU engine runs the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The best that the host has.
    #[default]
    Auto,
    /// The software CPU, which works everywhere.
    Soft,
    /// The host's processor, by hardware virtualization.
    Kvm,
}

impl EngineKind {
    /// As in the configuration, and in the header of a log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Soft => "soft",
            Self::Kvm => "kvm",
        }
    }

    /// `Auto` made definite by the engine of a log or of a saved state: that one goes on.
    #[must_use]
    pub fn or_named(self, name: &str) -> Self {
        match (self, name) {
            (Self::Auto, "soft") => Self::Soft,
            (Self::Auto, "kvm") => Self::Kvm,
            (kind, _) => kind,
        }
    }
}

/// Where the kvm engine can stop the guest for an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// At branches where the host's counter passes its test, at exits elsewhere.
    #[default]
    Auto,
    /// At exits.
    Exits,
    /// At conditional branches and exits.
    Branches,
}

impl Positions {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Exits => "exits",
            Self::Branches => "branches",
        }
    }

    /// `Auto` made definite by what a log or a saved state counts.
    #[must_use]
    pub fn or_counting(self, counts: CountUnit) -> Self {
        match (self, counts) {
            (Self::Auto, CountUnit::Exits) => Self::Exits,
            (Self::Auto, CountUnit::Branches) => Self::Branches,
            (positions, _) => positions,
        }
    }
}

/// What the machine boots.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Boot")]
pub struct Boot {
    /// Kernel file; default: the Debian guest, with its initrd and its disk
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "boot.kernel", long = "kernel", value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk; for a multiboot kernel its module
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "boot.initrd", long = "initrd", value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line; default: the Debian guest's, or none for another kernel
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(
        id = "boot.cmdline",
        long = "cmdline",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    pub cmdline: Option<String>,
    /// Text added to the command line
    #[arg(
        id = "boot.append",
        long = "append",
        value_name = "TEXT",
        allow_hyphen_values = true
    )]
    pub append: String,
    /// By which protocol the kernel is entered
    #[arg(id = "boot.mode", long = "boot-mode")]
    pub mode: BootMode,
    /// Let a write to port 0xf4 end the machine, as QEMU's isa-debug-exit does
    #[arg(id = "boot.exit_port", long = "exit-port", num_args = 0..=1,
          default_missing_value = "true", value_name = "true|false",
          action = clap::ArgAction::Set)]
    pub exit_port: bool,
}

/// Settings that the Debian guest reads from its command line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Debian guest")]
pub struct Guest {
    /// When Redis in the guest syncs its append-only file
    #[arg(id = "guest.appendfsync", long = "appendfsync")]
    pub appendfsync: AppendFsync,
}

/// Redis's `appendfsync`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AppendFsync {
    Always,
    #[default]
    Everysec,
    No,
}

/// The shared disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Disk")]
pub struct Disk {
    /// Raw disk image; default: the Debian guest's, or none for another kernel
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "disk.path", long = "disk", value_name = "FILE")]
    pub path: Option<PathBuf>,
    /// Size of the disk if the image must be made; an image that is there keeps its own
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "disk.size", long = "disk-size", value_name = "SIZE")]
    pub size: Option<ByteSize>,
    /// Where the backup gets the data of the guest's disk reads
    #[arg(id = "disk.reads", long = "disk-reads")]
    pub reads: DiskReads,
}

/// Where the backup gets the data of disk reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DiskReads {
    /// From the log.
    #[default]
    Log,
    /// From the shared disk, which it reads itself.
    Backup,
}

/// The network interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Network")]
pub struct Net {
    /// What the interface is connected to: user, passt, tap=NAME[,bridge=NAME] or none
    #[arg(id = "net.mode", long = "net", value_name = "MODE")]
    pub mode: NetMode,
    /// Address of the interface; default: made from the machine's name
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "net.mac", long = "mac", value_name = "MAC")]
    pub mac: Option<Mac>,
    /// Forward a host port to a guest port; may be given several times (replaces those of the
    /// file). Host port 0 takes a free one
    #[arg(
        id = "net.forward",
        long = "forward",
        value_name = "[[HOST:]PORT:]GUEST_PORT"
    )]
    pub forward: Vec<Forward>,
}

impl Default for Net {
    fn default() -> Self {
        Self {
            mode: NetMode::default(),
            mac: None,
            // The Debian guest's Redis and web server.
            forward: [6379, 80]
                .into_iter()
                .filter_map(NonZeroU16::new)
                .map(Forward::to_guest)
                .collect(),
        }
    }
}

/// The guest's consoles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Console")]
pub struct Console {
    /// How much of the console's last output is kept for who connects later
    #[arg(id = "console.history", long = "console-history", value_name = "SIZE")]
    pub history: ByteSize,
}

impl Default for Console {
    fn default() -> Self {
        Self {
            history: ByteSize(1 << 20),
        }
    }
}

/// Protection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Fault tolerance")]
pub struct Ft {
    /// Run a backup
    #[arg(id = "ft.enabled", long = "ft", value_name = "true|false",
          action = clap::ArgAction::Set)]
    pub enabled: bool,
    /// How long the primary waits for its backup at the start before it goes on alone, in ms
    #[arg(id = "ft.start_wait_ms", long = "start-wait-ms", value_name = "MS")]
    pub start_wait_ms: NonZeroU64,
}

impl Default for Ft {
    fn default() -> Self {
        Self {
            enabled: true,
            start_wait_ms: nonzero(60_000),
        }
    }
}

/// When a replica suspects the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Fault tolerance")]
pub struct Detect {
    /// Each replica sends something at least this often, in ms; less than half of suspect_ms
    #[arg(id = "detect.heartbeat_ms", long = "heartbeat-ms", value_name = "MS")]
    pub heartbeat_ms: NonZeroU64,
    /// A replica that was silent for this long is suspected to be dead, in ms
    #[arg(id = "detect.suspect_ms", long = "suspect-ms", value_name = "MS")]
    pub suspect_ms: NonZeroU64,
}

impl Default for Detect {
    fn default() -> Self {
        Self {
            heartbeat_ms: nonzero(50),
            suspect_ms: nonzero(1000),
        }
    }
}

/// How far the backup may be behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Fault tolerance")]
pub struct Lag {
    /// The primary is slowed when the backup's execution is this far behind, in ms; less than half
    /// of limit_ms
    #[arg(id = "lag.target_ms", long = "lag-target-ms", value_name = "MS")]
    pub target_ms: NonZeroU64,
    /// The primary stands still when it is this far behind, in ms
    #[arg(id = "lag.limit_ms", long = "lag-limit-ms", value_name = "MS")]
    pub limit_ms: NonZeroU64,
}

impl Default for Lag {
    fn default() -> Self {
        Self {
            target_ms: nonzero(100),
            limit_ms: nonzero(1000),
        }
    }
}

/// The log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Log")]
pub struct Log {
    /// Entries that no output waits for are sent after this long at the latest, in ms
    #[arg(id = "log.flush_ms", long = "flush-ms", value_name = "MS")]
    pub flush_ms: NonZeroU64,
    /// The primary stalls when this much of the log is not acknowledged
    #[arg(id = "log.buffer", long = "log-buffer", value_name = "SIZE")]
    pub buffer: ByteSize,
    /// Write the log to this file too
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "log.record", long = "record", value_name = "FILE")]
    pub record: Option<PathBuf>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            flush_ms: nonzero(1),
            buffer: ByteSize(64 << 20),
            record: None,
        }
    }
}

/// Comparison of the replicas' states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Divergence")]
pub struct Hash {
    /// Guest instructions between two comparisons of the registers; 0: never. An engine that counts
    /// exits takes each for 10000 instructions
    #[arg(
        id = "hash.interval",
        long = "hash-interval",
        value_name = "INSTRUCTIONS"
    )]
    pub interval: u64,
    /// Compare all of memory too (slow)
    #[arg(id = "hash.memory", long = "hash-memory", num_args = 0..=1,
          default_missing_value = "true", value_name = "true|false",
          action = clap::ArgAction::Set)]
    pub memory: bool,
}

impl Default for Hash {
    fn default() -> Self {
        Self {
            interval: 100_000_000,
            memory: false,
        }
    }
}

/// The addresses by which one replica reaches the others; what is not given, `ft-ctl up` starts on
/// this machine itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Addresses")]
pub struct Endpoints {
    /// The logging channel: where the backup listens, and where the primary connects to
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "log_address", long = "log", value_name = "HOST:PORT")]
    pub log: Option<Address>,
    /// The view register of ft-diskd
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "register_address", long = "register", value_name = "HOST:PORT")]
    pub register: Option<Address>,
    /// The disk of ft-diskd
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "nbd_address", long = "nbd", value_name = "HOST:PORT")]
    pub nbd: Option<Address>,
    /// The switch, ft-netd
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(id = "netd_address", long = "netd", value_name = "HOST:PORT")]
    pub netd: Option<Address>,
}

impl Endpoints {
    /// These addresses, and those of `other` where there is none.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        let other = other.clone();
        Self {
            log: self.log.or(other.log),
            register: self.register.or(other.register),
            nbd: self.nbd.or(other.nbd),
            netd: self.netd.or(other.netd),
        }
    }
}

const fn nonzero(value: u64) -> NonZeroU64 {
    match NonZeroU64::new(value) {
        Some(value) => value,
        None => panic!("a default is zero"),
    }
}
