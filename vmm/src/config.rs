//! The configuration of a machine: what `ft-ctl up` reads from a TOML file and what `ft-vmm` takes
//! as flags, in one structure.
//!
//! Every field has a default (an empty file is a configuration) and a flag. A flag beats the file.
//! `docs/lockstep.example.toml` shows every key with its default.

mod flags;
#[cfg(test)]
mod tests;
mod values;

use std::num::{NonZeroU16, NonZeroU64};
use std::path::{Path, PathBuf};

use ftlog::VmId;
use serde::{Deserialize, Serialize};

pub use flags::ConfigFlags;
pub use values::{Address, ByteSize, Forward, Mac, NetMode, RamSize};

use crate::boot::BootMode;

/// Largest configuration file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the configuration {path} has more than 1 MiB: a wrong file?")]
    TooBig { path: PathBuf },
    /// The text names key, line and what is allowed.
    #[error("the configuration is not right: {0}")]
    Syntax(#[from] toml::de::Error),
    #[error("the flags are not right: {0}")]
    Flags(#[from] clap::Error),
    #[error("{key} = {value} is not possible: {rule}")]
    Value {
        key: &'static str,
        value: String,
        rule: String,
    },
    #[error("the configuration could not be written as TOML")]
    Write(#[from] toml::ser::Error),
}

/// A machine and how it is protected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    #[command(flatten)]
    pub vm: Vm,
    #[command(flatten)]
    pub boot: Boot,
    #[command(flatten)]
    pub guest: Guest,
    #[command(flatten)]
    pub disk: Disk,
    #[command(flatten)]
    pub net: Net,
    #[command(flatten)]
    pub console: Console,
    #[command(flatten)]
    pub ft: Ft,
    #[command(flatten)]
    pub detect: Detect,
    #[command(flatten)]
    pub lag: Lag,
    #[command(flatten)]
    pub log: Log,
    #[command(flatten)]
    pub hash: Hash,
    /// Where the first primary finds the others. A flag of `ft-vmm` gives it for one replica.
    #[arg(skip)]
    pub primary: Endpoints,
    /// Where the first backup finds the others.
    #[arg(skip)]
    pub backup: Endpoints,
}

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
    /// RAM: 16MiB to 64GiB, a multiple of 2MiB
    #[arg(id = "vm.memory", long = "memory", value_name = "SIZE")]
    pub memory: RamSize,
    /// The CPU engine
    #[arg(id = "vm.engine", long = "engine")]
    pub engine: EngineKind,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            name: "lockstep".into(),
            uuid: None,
            memory: RamSize::DEFAULT,
            engine: EngineKind::default(),
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
    /// Guest instructions between two comparisons of the registers; 0: never
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

impl Config {
    /// Reads a TOML file. Relative paths in it are relative to the file's folder.
    ///
    /// # Errors
    /// A file that cannot be read; an unknown key or a bad value (with its line and what is
    /// allowed); values that do not go together.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let config = Self::read(path)?;
        config.check()?;
        Ok(config)
    }

    /// Parses the text of a file and checks it.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// The whole configuration as TOML, which [`Self::parse`] takes.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        Ok(toml::to_string(self)?)
    }

    /// The kernel's command line; `default` is that of the Debian guest.
    pub fn kernel_cmdline(&self, default: &str) -> String {
        let debian = self.boot.kernel.is_none();
        let mut words = match &self.boot.cmdline {
            Some(cmdline) => cmdline.clone(),
            None if debian => default.to_owned(),
            None => String::new(),
        };
        let setting = match self.guest.appendfsync {
            AppendFsync::Always => "always",
            AppendFsync::Everysec => "everysec",
            AppendFsync::No => "no",
        };
        let setting = format!("lockstep.appendfsync={setting}");
        for part in [self.boot.append.as_str(), setting.as_str()] {
            if !part.is_empty() && (debian || part != setting) {
                if !words.is_empty() {
                    words.push(' ');
                }
                words.push_str(part);
            }
        }
        words
    }

    /// The interface's address: the one given, or one that the name gives, so that every machine
    /// has its own without anybody choosing.
    pub fn mac(&self) -> Mac {
        self.net.mac.unwrap_or_else(|| {
            let [a, b, c, d, e, ..] =
                xxhash_rust::xxh3::xxh3_64(self.vm.name.as_bytes()).to_le_bytes();
            // Locally administered, unicast.
            Mac([0x02, a, b, c, d, e])
        })
    }

    /// Whether the values go together.
    pub fn check(&self) -> Result<(), ConfigError> {
        let name = &self.vm.name;
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(word) {
            return Err(ConfigError::Value {
                key: "vm.name",
                value: format!("{name:?}"),
                rule: "it must be 1 to 64 letters, digits, '-', '_' or '.', and not begin with '.'"
                    .into(),
            });
        }
        let twice = [
            (
                "detect.heartbeat_ms",
                self.detect.heartbeat_ms,
                "detect.suspect_ms",
                self.detect.suspect_ms,
            ),
            (
                "lag.target_ms",
                self.lag.target_ms,
                "lag.limit_ms",
                self.lag.limit_ms,
            ),
        ];
        for (key, less, more_key, more) in twice {
            if less.get() >= more.get().div_ceil(2) {
                return Err(ConfigError::Value {
                    key,
                    value: less.to_string(),
                    rule: format!("it must be less than half of {more_key} ({more})"),
                });
            }
        }
        if self.boot.initrd.is_some() && self.boot.kernel.is_none() {
            return Err(ConfigError::Value {
                key: "boot.initrd",
                value: format!("{:?}", self.boot.initrd.as_deref().unwrap_or(Path::new(""))),
                rule: "without boot.kernel the Debian guest boots, which has its own".into(),
            });
        }
        if self.log.buffer.0 < 1 << 16 {
            return Err(ConfigError::Value {
                key: "log.buffer",
                value: self.log.buffer.to_string(),
                rule: "it must be at least 64KiB".into(),
            });
        }
        self.check_forwards()
    }

    fn check_forwards(&self) -> Result<(), ConfigError> {
        let fixed = |forward: &&Forward| forward.host.port() != 0;
        let mut hosts: Vec<_> = self
            .net
            .forward
            .iter()
            .filter(fixed)
            .map(|f| &f.host)
            .collect();
        hosts.sort();
        match hosts.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(ConfigError::Value {
                key: "net.forward",
                value: pair[0].to_string(),
                rule: "two forwards have the same host address".into(),
            }),
            None => Ok(()),
        }
    }

    /// Reads without checking what only the flags make whole.
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
            return Err(ConfigError::TooBig {
                path: path.to_owned(),
            });
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let mut config: Self = toml::from_str(&text)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let paths = [
            &mut config.boot.kernel,
            &mut config.boot.initrd,
            &mut config.disk.path,
            &mut config.log.record,
        ];
        for path in paths.into_iter().flatten() {
            *path = folder.join(&*path);
        }
        Ok(config)
    }
}

const fn nonzero(value: u64) -> NonZeroU64 {
    match NonZeroU64::new(value) {
        Some(value) => value,
        None => panic!("a default is zero"),
    }
}
