//! A shell in the guest, driven over the serial console.

use std::io::{BufReader, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::conditions::patient;
use e2e::machine::Machine;
use e2e::wait;
use wire::control::ControlClient;
use wire::control::client::ControlStream;

const CONNECT: Duration = Duration::from_secs(5);
/// How long a read waits before the bound and Ctrl-C are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// The console of the replica that was live when it was opened.
pub struct Shell {
    stream: BufReader<ControlStream>,
    commands: u32,
}

impl Shell {
    pub fn open(machine: &Machine) -> Result<Self> {
        let (replica, _) = machine.live().context("no replica is live")?;
        let stream = ControlClient::connect(&replica.control, patient(CONNECT))?.console()?;
        stream.get_ref().set_read_timeout(Some(LOOK))?;
        Ok(Self {
            stream,
            commands: 0,
        })
    }

    /// Makes the login shell a silent one: neither prompt nor echo, each byte of which would be an
    /// output of the machine.
    pub fn silence(&mut self, bound: Duration) -> Result<()> {
        // What is typed before the shell is there is lost.
        self.wait_for("~# ", bound, "the login shell")?;
        self.stream
            .get_mut()
            .write_all(b"export PS1= PS2=; stty -echo; exec sh\n")?;
        self.run(":", bound).map(drop)
    }

    /// Runs a command to its end and gives what it said; an error if it fails.
    pub fn run(&mut self, command: &str, bound: Duration) -> Result<String> {
        self.commands += 1;
        let number = self.commands;
        // What is typed does not contain what is waited for, should it be echoed.
        let line = format!("{command}\nprintf '=%s=%s=\\n' {number} $?\n");
        self.stream.get_mut().write_all(line.as_bytes())?;
        let said = self.wait_for(&format!("={number}="), bound, command)?;
        let status = self.wait_for("=", bound, command)?;
        if status != "0" {
            bail!("in the guest, `{command}` ended with status {status}: {said}");
        }
        Ok(said.trim().to_owned())
    }

    /// Reads up to `mark`; gives what came before it.
    fn wait_for(&mut self, mark: &str, bound: Duration, command: &str) -> Result<String> {
        let bound = patient(bound);
        let end = Instant::now() + bound;
        let mut said = Vec::new();
        while !said.ends_with(mark.as_bytes()) {
            wait::interrupted()?;
            if Instant::now() > end {
                bail!(
                    "in the guest, `{command}` did not end within {} s; it said: {}",
                    bound.as_secs(),
                    String::from_utf8_lossy(&said)
                );
            }
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => bail!("the guest's console closed while `{command}` ran"),
                Ok(_) => said.push(byte[0]),
                Err(why)
                    if matches!(
                        why.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(why) => return Err(why).context("the guest's console"),
            }
        }
        said.truncate(said.len() - mark.len());
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}
