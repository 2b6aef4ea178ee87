//! The rig's machine: QEMU's TCG with AMD SVM, and the agent in it that runs our commands.
//!
//! The agent speaks over a virtio port that is QEMU's standard input and output; the kernel's console
//! goes to a file, from which an error shows the last lines.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::wait;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::parts::Parts;

/// From power-on to the agent's first word; 10 s on an idle machine, 80 s on a busy one.
const START: Duration = Duration::from_secs(300);

/// What the agent may need to end a command that ran over its time, beyond the time.
const GRACE: Duration = Duration::from_secs(30);

/// AMD-V with nested paging. RDRAND and RDSEED of a guest's guest cannot be hidden on AMD, so that the
/// rig has none; the rest is what TCG would leave out anyhow, each with a warning.
const CPU: &str = "EPYC,+svm,+npt,-rdrand,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,\
                   -osvw,-topoext,-nrip-save,-xsavec";

const MEMORY_MIB: u32 = 3072;

pub struct Machine {
    qemu: Child,
    commands: ChildStdin,
    lines: Receiver<String>,
    console: PathBuf,
    number: u32,
    /// From power-on to the agent's first word.
    pub started_in: Duration,
    /// As `uname -r` says it in the rig.
    pub kernel: String,
}

impl Machine {
    /// Starts it, with nested paging for KVM's guests or without. The console's text goes to the file
    /// `console`.
    pub fn start(parts: &Parts, nested_paging: bool, console: &Path) -> Result<Self> {
        let begun = Instant::now();
        let mut command = command(parts, nested_paging, console);
        let mut qemu = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("QEMU could not be started (packages qemu-system-x86, util-linux)")?;
        let commands = qemu.stdin.take().context("QEMU has no input")?;
        let output = qemu.stdout.take().context("QEMU has no output")?;
        let mut machine = Self {
            qemu,
            commands,
            lines: read_lines(output),
            console: console.to_owned(),
            number: 0,
            started_in: Duration::ZERO,
            kernel: String::new(),
        };
        machine.kernel = machine.wait_for("@@ready ", begun + START, &mut |_| ())?;
        machine.started_in = begun.elapsed();
        Ok(machine)
    }

    /// Runs the bash script `script` in the rig for at most `bound`; each line that it writes goes to
    /// `line`. Gives its exit status: 124 if it ran over its time, 137 if it had to be killed then.
    pub fn run(
        &mut self,
        script: &str,
        bound: Duration,
        line: &mut dyn FnMut(&str),
    ) -> Result<i32> {
        self.number += 1;
        let token = format!("{:x}.{}", std::process::id(), self.number);
        let seconds = bound.as_secs().max(1);
        let request = format!("{token} {seconds} {}\n", base64(script.as_bytes()));
        self.commands
            .write_all(request.as_bytes())
            .and_then(|()| self.commands.flush())
            .with_context(|| self.why("the rig takes no command"))?;
        let end = Instant::now() + bound + GRACE;
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
        format!("{what}; its console ends with\n    {tail}")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// `setpriv` lets QEMU die with this process, whichever way that ends; in a process group of its own
/// QEMU does not get the terminal's Ctrl-C before us.
///
/// All of QEMU's threads stay on one of the host's processors. On two of them QEMU 7.2 loses interrupts:
/// its VMRUN sets a bit in the word of pending ones with an `or` that is neither atomic nor under the
/// lock, and what the timer's thread puts there in that moment is gone. The kernel in the rig then
/// waits for ever, halted, with the timer's vector in the APIC's IRR. On one processor no other thread
/// gets in the middle of an instruction.
fn command(parts: &Parts, nested_paging: bool, console: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    command.args(["taskset", "--cpu-list", &processor().to_string()]);
    command.arg("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-machine", "q35", "-no-reboot"]);
    // One core, since all of QEMU runs on one.
    command.args(["-accel", "tcg,tb-size=512", "-smp", "1", "-m"]);
    command.arg(MEMORY_MIB.to_string());
    command.args(["-cpu", CPU]);
    command.arg("-kernel").arg(&parts.kernel.kernel);
    command.arg("-initrd").arg(&parts.kernel.initrd);
    let npt = u8::from(nested_paging);
    command.arg("-append").arg(format!(
        "console=ttyS0 quiet panic=-1 mitigations=off rcupdate.rcu_expedited=1 tsc=reliable cryptomgr.notests rig.npt={npt}"
    ));
    let serial = format!("file,id=console,path={}", escaped(console));
    command.args(["-chardev", &serial, "-serial", "chardev:console"]);
    for (disk, options) in [
        (&parts.root, "snapshot=on"),
        (&parts.image, "readonly=on"),
        (&parts.work, "discard=unmap"),
    ] {
        let path = escaped(disk);
        command.arg("-drive").arg(format!(
            "file={path},format=raw,if=virtio,cache=unsafe,{options}"
        ));
    }
    command.args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]);
    command.args(["-chardev", "stdio,id=agent,signal=off"]);
    command.args(["-device", "virtserialport,chardev=agent,name=rig"]);
    command.process_group(0);
    command
}

/// The last processor that we may run on; most of the host's interrupts go to the first.
fn processor() -> usize {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    let is_allowed = |number: &usize| allowed.is_set(*number).unwrap_or(false);
    (0..CpuSet::count()).rev().find(is_allowed).unwrap_or(0)
}

/// QEMU's options are separated by commas; a doubled one stands for itself.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// The lines of `output`, until it ends.
fn read_lines(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
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
