//! The folder of a test's machines, and `ft-ctl` with that folder.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::conditions;
use crate::machine::Machine;
use crate::programs;

/// A machine's folder and how its programs are started.
pub struct Home {
    dir: PathBuf,
    _temporary: Option<TempDir>,
}

impl Home {
    /// A folder that is removed at the end.
    pub fn temporary() -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("lockstep-").tempdir()?;
        Ok(Self {
            dir: temporary.path().to_owned(),
            _temporary: Some(temporary),
        })
    }

    /// A folder that stays. Its path must leave room for the names of sockets in it.
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            _temporary: None,
        }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// `ft-ctl` with this folder for its machines, out of reach of the terminal's Ctrl-C: what it
    /// has begun it must finish, or nobody knows what it has started.
    pub fn ctl(&self) -> Result<Command> {
        let mut command = programs::command("ft-ctl")?;
        command
            .env("LOCKSTEP_DIR", &self.dir)
            .stdin(Stdio::null())
            .process_group(0);
        Ok(command)
    }

    /// Runs `ft-ctl` with `args` to its end.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Result<Output> {
        let output = self.ctl()?.args(args).output();
        output.context("ft-ctl could not be started")
    }

    /// Starts a machine. `args` are those of `ft-ctl up`; an error carries what it said.
    pub fn up<S: Into<OsString> + Clone>(self, args: &[S]) -> Result<Machine> {
        let mut all: Vec<OsString> = vec!["up".into()];
        all.extend(conditions::config().map(OsString::from));
        all.extend(args.iter().cloned().map(Into::into));
        let output = self.run(&all)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("ft-ctl up ({}):\n{said}", output.status);
        }
        Machine::adopt(self)
    }
}

/// Ends the machines of a folder.
pub fn end(home: &Home) -> Result<()> {
    for name in names(home) {
        let output = home.run(&["down", "-m", &name])?;
        if !output.status.success() {
            bail!("ft-ctl down: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(())
}

/// The machines that have been started in a folder and not been ended.
pub fn names(home: &Home) -> Vec<String> {
    let entries = std::fs::read_dir(home.path()).into_iter().flatten();
    entries
        .flatten()
        .filter(|entry| entry.path().join("running.json").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
