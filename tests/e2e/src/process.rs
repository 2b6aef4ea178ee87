//! Processes of a machine.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use wire::running::Process;

use crate::wait;

/// Waits until it has ended.
pub fn wait_end(process: Process, bound: Duration) -> Result<()> {
    wait::until(&format!("process {} ends", process.pid), bound, || {
        Ok((!process.is_alive()).then_some(()))
    })
}

/// Its program and arguments.
pub fn command_line(process: Process) -> Result<Vec<String>> {
    let path = PathBuf::from(format!("/proc/{}/cmdline", process.pid));
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let text = String::from_utf8(bytes)?;
    Ok(text.split_terminator('\0').map(str::to_owned).collect())
}

/// A child of this process, ended when the value goes.
pub struct Owned {
    child: Child,
    process: Process,
}

impl Owned {
    pub fn process(&self) -> Process {
        self.process
    }

    /// The status with which it ended, if it has.
    pub fn exit_code(&mut self) -> Option<i32> {
        if self.process.is_alive() {
            return None;
        }
        // It is a zombie as soon as its first thread is gone, and has a status when its last is.
        self.child.wait().ok()?.code()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.process.signal(Signal::SIGTERM);
        let _ = self.process.signal(Signal::SIGCONT);
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
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
    let process = i32::try_from(child.id()).ok().and_then(Process::of);
    let owned = process.map(|process| Owned { child, process });
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
    Ok((owned.context("it ended at once")?, ready))
}
