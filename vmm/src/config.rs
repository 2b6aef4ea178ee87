//! The configuration of a machine: what `ft-ctl up` reads from a TOML file and what `ft-vmm` takes
//! as flags, in one structure.
//!
//! Every field has a default (an empty file is a configuration) and a flag. A flag beats the file.
//! `docs/lockstep.example.toml` shows every key with its default.

mod flags;
mod sections;
#[cfg(test)]
mod tests;
mod values;

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use flags::ConfigFlags;
pub use sections::{
    AppendFsync, Boot, Console, Detect, Disk, DiskReads, Endpoints, EngineKind, Ft, Guest, Hash,
    Lag, Log, Net, Positions, Vm,
};
pub use values::{Address, ByteSize, Forward, Mac, NetMode, RamSize, Seed};

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

    /// The bounds of the replication protocol.
    pub fn protocol(&self) -> ftlog::Config {
        let ns = |ms: NonZeroU64| ms.get().saturating_mul(1_000_000);
        ftlog::Config {
            heartbeat_ns: ns(self.detect.heartbeat_ms),
            suspect_after_ns: ns(self.detect.suspect_ms),
            start_wait_ns: ns(self.ft.start_wait_ms),
            flush_after_ns: ns(self.log.flush_ms),
            log_buffer_bytes: usize::try_from(self.log.buffer.0).unwrap_or(usize::MAX),
            lag_target_ns: ns(self.lag.target_ms),
            lag_limit_ns: ns(self.lag.limit_ms),
            ..ftlog::Config::default()
        }
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
        if self.vm.stretch_ms.get() > 1000 {
            return Err(ConfigError::Value {
                key: "vm.stretch_ms",
                value: self.vm.stretch_ms.to_string(),
                rule: "it must be from 1 to 1000".into(),
            });
        }
        if self.vm.clock_percent.get() > 100 {
            return Err(ConfigError::Value {
                key: "vm.clock_percent",
                value: self.vm.clock_percent.to_string(),
                rule: "it must be from 1 to 100".into(),
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
