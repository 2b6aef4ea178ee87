//! Processes of a machine.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::wait;

/// A process that may be another program's child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Process {
    pub pid: i32,
}

impl Process {
    pub fn signal(self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid), signal)
            .with_context(|| format!("{signal} to process {}", self.pid))
    }

    /// Whether it runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)) else {
            return false;
        };
        let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
        !matches!(state, None | Some("Z" | "X"))
    }

    /// Waits until it has ended.
    pub fn wait_end(self, bound: Duration) -> Result<()> {
        wait::until(&format!("process {} ends", self.pid), bound, || {
            Ok((!self.is_alive()).then_some(()))
        })
    }

    /// Its program and arguments.
    pub fn command_line(self) -> Result<Vec<String>> {
        let path = PathBuf::from(format!("/proc/{}/cmdline", self.pid));
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let text = String::from_utf8(bytes)?;
        Ok(text.split_terminator('\0').map(str::to_owned).collect())
    }
}

/// A child of this process, ended when the value goes.
pub struct Owned(Child);

impl Owned {
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    pub fn process(&self) -> Process {
        // Process ids are positive and fit (proc(5), pid_max).
        Process {
            pid: self.0.id() as i32,
        }
    }

    /// The status with which it ended, if it has.
    pub fn exit_code(&mut self) -> Option<i32> {
        let status = self.0.try_wait().ok()??;
        status.code()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.process().signal(Signal::SIGTERM);
        let _ = self.process().signal(Signal::SIGCONT);
        for _ in 0..100 {
            if matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts `command` with its stderr in `log`, and reads the line of JSON that it prints when it is
/// ready.
pub fn start(mut command: Command, log: &std::path::Path) -> Result<(Owned, serde_json::Value)> {
    use std::io::BufRead;
    let stderr = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    let stdout = child.stdout.take();
    let owned = Owned::new(child);
    let mut line = String::new();
    let mut reader = std::io::BufReader::new(stdout.context("no stdout")?);
    reader.read_line(&mut line)?;
    let ready = serde_json::from_str(&line).with_context(|| {
        let said = std::fs::read_to_string(log).unwrap_or_default();
        format!(
            "{:?} did not start; it said:\n{said}",
            command.get_program()
        )
    })?;
    Ok((owned, ready))
}
