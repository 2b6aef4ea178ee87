//! What `ft-ctl up` writes down of a machine that it has started (`running.json` in the machine's
//! folder), and the processes in it.
//!
//! A process is known by its id and its start time, so that an id that the system has given to
//! somebody else meanwhile is never signalled.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::control::ControlAddr;
use crate::register::{ReplicaId, VmId};

/// How often a process that is ending is looked at.
const POLL: Duration = Duration::from_millis(5);

/// A replica's process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplicaProcess {
    pub id: ReplicaId,
    pub process: Process,
    pub control: ControlAddr,
}

/// A guest port and where the host has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    pub guest_port: u16,
    pub host: SocketAddr,
}

/// What was started for a machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Running {
    pub name: String,
    pub vm: VmId,
    pub diskd: Option<Process>,
    pub netd: Option<Process>,
    /// `HOST:PORT` of the servers.
    pub nbd: Option<String>,
    pub register: Option<String>,
    pub switch: Option<String>,
    pub forwards: Vec<Forwarded>,
    pub replicas: Vec<ReplicaProcess>,
}

impl Running {
    /// All its processes, replicas first.
    pub fn processes(&self) -> impl Iterator<Item = Process> + '_ {
        let replicas = self.replicas.iter().map(|replica| replica.process);
        replicas.chain(self.netd).chain(self.diskd)
    }

    pub fn is_alive(&self) -> bool {
        self.processes().any(|process| process.is_alive())
    }
}

/// A process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks since the host's boot (proc(5), stat field 22).
    start_ticks: u64,
}

impl Process {
    /// The process with this id; `None` if there is none, or a zombie.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self {
            pid,
            start_ticks: start_ticks(pid)?,
        })
    }

    /// Whether it runs still; a zombie does not.
    pub fn is_alive(&self) -> bool {
        start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Sends a signal, if it is still the same process.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        if self.is_alive() {
            kill(Pid::from_raw(self.pid), signal)
        } else {
            Err(Errno::ESRCH)
        }
    }

    /// Waits until it has ended; `false` if it has not in that time.
    pub fn wait_end(&self, timeout: Duration) -> bool {
        let begun = Instant::now();
        while self.is_alive() {
            if begun.elapsed() >= timeout {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// Asks it to end, and makes it if it does not.
    pub fn end(&self, timeout: Duration) {
        // An error means that it has ended already.
        let _ = self.signal(Signal::SIGTERM);
        let _ = self.signal(Signal::SIGCONT);
        if !self.wait_end(timeout) {
            let _ = self.signal(Signal::SIGKILL);
            self.wait_end(timeout);
        }
    }
}

/// Start time of a process that is not a zombie.
fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may have spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_processes() {
        let child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        let reaper = std::thread::spawn({
            let mut child = child;
            move || child.wait()
        });
        assert!(process.is_alive());
        let stranger = Process {
            start_ticks: process.start_ticks + 1,
            ..process
        };
        assert!(!stranger.is_alive());
        assert_eq!(stranger.signal(Signal::SIGKILL), Err(Errno::ESRCH));
        assert!(process.is_alive());
        process.end(Duration::from_secs(10));
        assert!(!process.is_alive());
        reaper.join().unwrap().unwrap();
    }
}
