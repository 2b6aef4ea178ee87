//! The state from which most tests start: the Debian guest, booted, with Redis answering. Made once
//! for a run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tests::http::KeepAlive;

use crate::conditions::patient;
use crate::home::Home;
use crate::wait;

/// A boot takes a minute on a slow machine; this bounds hangs only.
pub const BOOT: Duration = Duration::from_secs(900);

/// The configuration's file in a base's folder.
const CONFIG: &str = "base.toml";

/// How long one answer of the web server may take.
const ANSWER: Duration = Duration::from_secs(5);

/// A saved machine.
pub struct Base {
    dir: PathBuf,
    _temporary: Option<TempDir>,
    /// The configuration with which it was saved, as TOML.
    pub config: String,
}

impl Base {
    /// Boots the guest, alone, and saves it; removed at the end.
    pub fn make() -> Result<Self> {
        let temporary = tempfile::Builder::new()
            .prefix("lockstep-base-")
            .tempdir()?;
        let mut base = Self::make_in(temporary.path())?;
        base._temporary = Some(temporary);
        Ok(base)
    }

    /// The one that is kept in `dir`; none if there is none.
    pub fn kept(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(CONFIG);
        if !path.is_file() {
            return Ok(None);
        }
        let config = std::fs::read_to_string(&path);
        Ok(Some(Self {
            dir: dir.to_owned(),
            _temporary: None,
            config: config.with_context(|| path.display().to_string())?,
        }))
    }

    /// Boots the guest, alone, and keeps what it saves in `dir`.
    pub fn make_in(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let machine = Home::temporary()?.up(&["--ft", "false"])?;
        machine.wait_redis(BOOT, |_| ())?;
        // The web server starts after Redis.
        let web = machine.forward(80)?;
        wait::until("the web server in the guest answers", BOOT, || {
            let page = KeepAlive::connect(web, patient(ANSWER)).and_then(|mut web| web.get("/"));
            Ok(page.ok())
        })?;
        machine.wait_shell(BOOT)?;
        let config = std::fs::read_to_string(machine.file("vm.toml"))?;
        let base = Self {
            dir: dir.to_owned(),
            _temporary: None,
            config,
        };
        machine.save(&base.state())?;
        machine.down()?;
        // Last: with it the base is whole.
        std::fs::write(dir.join(CONFIG), &base.config)?;
        Ok(base)
    }

    /// The saved state; its disk lies beside it.
    pub fn state(&self) -> PathBuf {
        self.dir.join("base")
    }

    /// Makes a copy of its disk.
    pub fn copy_disk(&self, to: &Path) -> Result<()> {
        copy_sparse(&self.dir.join("base.disk"), to)
    }

    /// A value of its configuration, such as `uuid`.
    pub fn setting(&self, key: &str) -> Result<&str> {
        let mut lines = self.config.lines();
        lines
            .find_map(|line| line.strip_prefix(key)?.trim().strip_prefix('='))
            .map(|value| value.trim().trim_matches('"'))
            .with_context(|| format!("the configuration has no {key}"))
    }
}

/// Copies a file, holes and all.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.args(["--sparse=always", "--reflink=auto"]);
    let status = command.arg(from).arg(to).status()?;
    if !status.success() {
        bail!("cp {} {}: {status}", from.display(), to.display());
    }
    Ok(())
}
