//! The rig's machine: an emulator, and the agent in it that runs our commands. The kernel's console goes
//! to a file, from which an error shows the last lines.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::wait;
use tempfile::TempDir;

use super::parts::Parts;
use super::variant::Variant;
use super::{bochs, qemu};

/// From power-on to the agent's first word: 10 s on an idle machine, 80 s on a busy one; on Bochs 60 s
/// and more.
const START: Duration = Duration::from_secs(600);

/// What the agent may need to end a command that ran over its time, beyond the time.
const GRACE: Duration = Duration::from_secs(30);

/// What the kernel's command line has on every emulator.
pub const KERNEL_LINE: &str = "console=ttyS0 quiet mitigations=off rcupdate.rcu_expedited=1 \
                               tsc=reliable cryptomgr.notests";

/// A running emulator, with our end of the agent's port.
pub struct Emulator {
    pub process: Child,
    pub commands: Box<dyn Write>,
    pub output: Box<dyn Read + Send>,
    /// Where its own messages go, unless to our standard error.
    pub log: Option<PathBuf>,
    /// What is removed after its end.
    pub folder: Option<TempDir>,
}

pub struct Machine {
    process: Child,
    commands: Box<dyn Write>,
    _folder: Option<TempDir>,
    lines: Receiver<String>,
    console: PathBuf,
    log: Option<PathBuf>,
    number: u32,
    /// How many seconds of ours a second in the rig may take.
    slowness: u32,
    /// From power-on to the agent's first word.
    pub started_in: Duration,
    /// As `uname -r` says it in the rig.
    pub kernel: String,
}

impl Machine {
    /// Starts it and waits for the agent. The console's text goes to the file `console`.
    pub fn start(parts: &Parts, variant: Variant, console: &Path) -> Result<Self> {
        let begun = Instant::now();
        let emulator = match variant {
            Variant::Amd { nested_paging } => qemu::start(parts, nested_paging, console)?,
            Variant::Intel => bochs::start(parts, console)?,
        };
        let mut machine = Self {
            process: emulator.process,
            commands: emulator.commands,
            _folder: emulator.folder,
            lines: read_lines(emulator.output),
            console: console.to_owned(),
            log: emulator.log,
            number: 0,
            slowness: variant.seconds_per_second(),
            started_in: Duration::ZERO,
            kernel: String::new(),
        };
        machine.kernel = machine.wait_for("@@ready ", begun + START, &mut |_| ())?;
        machine.started_in = begun.elapsed();
        Ok(machine)
    }

    /// Runs the bash script `script` in the rig for at most `bound` of the rig's time; each line that it
    /// writes goes to `line`. Gives its exit status: 124 if it ran over its time, 137 if it had to be
    /// killed then.
    pub fn run(
        &mut self,
        script: &str,
        bound: Duration,
        line: &mut dyn FnMut(&str),
    ) -> Result<i32> {
        self.number += 1;
        let token = format!("{:x}.{}", std::process::id(), self.number);
        let seconds = bound.as_secs().max(1);
        let script = base64(script.as_bytes());
        let request = format!("{token} {seconds} {} {script}\n", script.len());
        self.commands
            .write_all(request.as_bytes())
            .and_then(|()| self.commands.flush())
            .with_context(|| self.why("the rig takes no command"))?;
        let end = Instant::now() + (bound + GRACE) * self.slowness;
        let status = self.wait_for(&format!("@@{token} "), end, line)?;
        let number = status.parse();
        number.with_context(|| format!("the rig's agent gave the status '{status}'"))
    }

    /// The rest of the first line that begins with `mark`. The empty line that the agent puts before
    /// it is not the script's.
    fn wait_for(&mut self, mark: &str, end: Instant, line: &mut dyn FnMut(&str)) -> Result<String> {
        let mut empty = false;
        loop {
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(text) => {
                    if let Some(rest) = text.strip_prefix(mark) {
                        return Ok(rest.to_owned());
                    }
                    if std::mem::take(&mut empty) {
                        line("");
                    }
                    match text.is_empty() {
                        true => empty = true,
                        false => line(&text),
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    wait::interrupted()?;
                    if self.process.try_wait()?.is_some() {
                        bail!("{}", self.why("the rig has ended"));
                    }
                    if Instant::now() > end {
                        bail!("{}", self.why("the rig does not answer"));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => bail!("{}", self.why("the rig has ended")),
            }
        }
    }

    /// `what`, with the end of the console's text.
    fn why(&self, what: &str) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut tail: VecDeque<&str> = VecDeque::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            tail.push_back(line);
            if tail.len() > 25 {
                tail.pop_front();
            }
        }
        let tail = Vec::from(tail).join("\n    ");
        let emulator = match &self.log {
            Some(log) => format!("\nwhat the emulator said is in {}", log.display()),
            None => String::new(),
        };
        format!("{what}; its console ends with\n    {tail}{emulator}")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The lines of `output`, until it ends.
fn read_lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1024);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut bytes = Vec::new();
        while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&bytes);
            if sender.send(text.trim_end().to_owned()).is_err() {
                return;
            }
            bytes.clear();
        }
    });
    receiver
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0, |group, i| {
            group << 8 | u32::from(chunk.get(i).copied().unwrap_or(0))
        });
        for i in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * i) & 63) as usize];
            text.push(if i > chunk.len() {
                '='
            } else {
                char::from(digit)
            });
        }
    }
    text
}
