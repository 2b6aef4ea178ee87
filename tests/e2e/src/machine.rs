//! A machine that `ft-ctl up` started, in a folder of its own.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tempfile::TempDir;
use wire::control::{ControlAddr, ControlClient, Protection, Request, Response, Role, Status};
use wire::register::{RegisterClient, ReplicaId, View, VmId};

use crate::{programs, wait};

/// How long a replica may take to answer; a stopped one never does.
const ANSWER: Duration = Duration::from_secs(2);
/// How long it may take to save or to hash all of its memory.
const LONG: Duration = Duration::from_secs(180);

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
        all.extend(args.iter().cloned().map(Into::into));
        let output = self.run(&all)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("ft-ctl up ({}):\n{said}", output.status);
        }
        Machine::adopt(self)
    }
}

/// A process of a machine.
#[derive(Clone, Copy, Debug, Deserialize)]
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
}

/// A replica as it was started.
#[derive(Clone, Debug, Deserialize)]
pub struct Replica {
    pub id: ReplicaId,
    pub process: Process,
    pub control: ControlAddr,
}

#[derive(Clone, Debug, Deserialize)]
struct Forward {
    guest_port: u16,
    host: SocketAddr,
}

/// What `ft-ctl` has written down of a machine.
#[derive(Clone, Debug, Deserialize)]
struct Running {
    name: String,
    vm: VmId,
    diskd: Option<Process>,
    netd: Option<Process>,
    nbd: Option<String>,
    register: Option<String>,
    switch: Option<String>,
    forwards: Vec<Forward>,
    replicas: Vec<Replica>,
}

/// A machine that runs. It is ended when this value goes.
pub struct Machine {
    home: Home,
    running: Running,
    keep: bool,
}

impl Machine {
    /// The machine that is up in this folder.
    pub fn adopt(home: Home) -> Result<Self> {
        let name = names(&home).pop();
        let name = name.with_context(|| format!("no machine in {}", home.path().display()))?;
        let file = home.file(&name).join("running.json");
        let running = serde_json::from_slice(&std::fs::read(&file)?)
            .with_context(|| format!("{} is not understood", file.display()))?;
        Ok(Self {
            home,
            running,
            keep: false,
        })
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    /// A file in the machine's own folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.file(&self.running.name).join(name)
    }

    /// The last lines that a program of the machine wrote to its log (`diskd`, `netd`, `replica-1`).
    pub fn log(&self, program: &str) -> String {
        std::fs::read_to_string(self.file(&format!("{program}.log"))).unwrap_or_default()
    }

    pub fn vm(&self) -> VmId {
        self.running.vm
    }

    pub fn diskd(&self) -> Result<Process> {
        self.running.diskd.context("the machine has no disk server")
    }

    pub fn netd(&self) -> Result<Process> {
        self.running.netd.context("the machine has no switch")
    }

    /// `HOST:PORT` of NBD, the register and the switch.
    pub fn addresses(&self) -> (Option<&str>, Option<&str>, Option<&str>) {
        let running = &self.running;
        (
            running.nbd.as_deref(),
            running.register.as_deref(),
            running.switch.as_deref(),
        )
    }

    /// Where a port of the guest is on this host.
    pub fn forward(&self, guest_port: u16) -> Result<SocketAddr> {
        let mut forwards = self.running.forwards.iter();
        forwards
            .find(|forward| forward.guest_port == guest_port)
            .map(|forward| forward.host)
            .with_context(|| format!("port {guest_port} of the guest is not forwarded"))
    }

    pub fn replicas(&self) -> &[Replica] {
        &self.running.replicas
    }

    pub fn replica(&self, id: u64) -> Result<&Replica> {
        let mut replicas = self.running.replicas.iter();
        replicas
            .find(|replica| replica.id == ReplicaId(id))
            .with_context(|| format!("there is no replica {id}"))
    }

    /// What the replicas say that answer.
    pub fn statuses(&self) -> Vec<(Replica, Status)> {
        let ask = |replica: &Replica| status(replica).map(|status| (replica.clone(), status));
        self.running.replicas.iter().filter_map(ask).collect()
    }

    /// The replica that answers for the guest (alone or not), of the highest view.
    pub fn live(&self) -> Option<(Replica, Status)> {
        self.statuses()
            .into_iter()
            .filter(|(_, status)| matches!(status.role, Role::Primary | Role::Solo))
            .max_by_key(|(_, status)| status.view.number)
    }

    /// The replica that follows.
    pub fn backup(&self) -> Option<(Replica, Status)> {
        let mut all = self.statuses().into_iter();
        all.find(|(_, status)| status.role == Role::Backup)
    }

    /// Both, while the machine is protected.
    pub fn pair(&self) -> Result<(Replica, Replica)> {
        let live = self.live().context("no replica is live")?;
        let backup = self.backup().context("there is no backup")?;
        if live.1.state != Protection::Protected {
            bail!("the primary says: {}", live.1.state);
        }
        Ok((live.0, backup.0))
    }

    /// Waits until the live replica says so.
    pub fn wait_protected(&self, bound: Duration) -> Result<()> {
        wait::until("the machine is protected", bound, || {
            self.check_processes()?;
            let live = self.live();
            Ok(live.filter(|(_, status)| status.state == Protection::Protected))
        })?;
        Ok(())
    }

    /// Waits until another replica than `not` is alone; gives what it says.
    pub fn wait_alone(&self, not: Option<ReplicaId>, bound: Duration) -> Result<Status> {
        wait::until("a replica is live alone", bound, || {
            let live = self.live();
            Ok(live
                .filter(|(replica, status)| status.role == Role::Solo && Some(replica.id) != not)
                .map(|(_, status)| status))
        })
    }

    /// Waits until Redis in the guest answers, telling `tell` how the boot goes.
    pub fn wait_redis(&self, bound: Duration, mut tell: impl FnMut(&Status)) -> Result<()> {
        let address = self.forward(6379)?;
        let mut told = std::time::Instant::now();
        wait::until("Redis in the guest answers", bound, || {
            self.check_processes()?;
            if told.elapsed() > Duration::from_secs(5) {
                told = std::time::Instant::now();
                if let Some((_, status)) = self.live() {
                    tell(&status);
                }
            }
            Ok(redis_pings(address).then_some(()))
        })
        .with_context(|| self.console_tail())
    }

    /// An error if all replicas have ended.
    fn check_processes(&self) -> Result<()> {
        let replicas = &self.running.replicas;
        if replicas.iter().any(|replica| replica.process.is_alive()) {
            return Ok(());
        }
        let logs: Vec<String> = (replicas.iter())
            .map(|replica| self.log(&format!("replica-{}", replica.id)))
            .collect();
        bail!("all replicas have ended; they said:\n{}", logs.join("\n"))
    }

    /// The last lines of the guest's console, for an error.
    pub fn console_tail(&self) -> String {
        let text = std::fs::read(self.file("replica-1.serial")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let from = text.lines().count().saturating_sub(15);
        let lines: Vec<&str> = text.lines().skip(from).collect();
        format!("the guest's console said last:\n{}", lines.join("\n"))
    }

    /// The view that the register holds.
    pub fn view(&self) -> Result<View> {
        let register = self.running.register.as_deref().context("no register")?;
        let record = RegisterClient::new(register, ANSWER).get(self.running.vm)?;
        Ok(record
            .context("the register does not know the machine")?
            .view)
    }

    /// Saves the machine to `file`, and its disk beside it.
    pub fn save(&self, file: &Path) -> Result<()> {
        let output = self.home.run(&["save".as_ref(), file.as_os_str()])?;
        if !output.status.success() {
            bail!("ft-ctl save: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Has the primary hash its state now, memory included, and the backup compare.
    pub fn hash_memory(&self) -> Result<Response> {
        let (replica, _) = self.live().context("no replica is live")?;
        let mut client = ControlClient::connect(&replica.control, LONG)?;
        Ok(client.call(&Request::Hash { memory: true })?)
    }

    /// Types a line on the guest's serial console.
    pub fn type_line(&self, line: &str) -> Result<()> {
        let (replica, _) = self.live().context("no replica is live")?;
        let mut stream = ControlClient::connect(&replica.control, ANSWER)?.console()?;
        stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        Ok(())
    }

    /// The machine stays up when this value goes.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Ends it.
    pub fn down(mut self) -> Result<()> {
        self.keep = true;
        end(&self.home)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.keep
            && let Err(why) = end(&self.home)
        {
            eprintln!("the machine could not be ended: {why:#}");
        }
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
fn names(home: &Home) -> Vec<String> {
    let entries = std::fs::read_dir(home.path()).into_iter().flatten();
    entries
        .flatten()
        .filter(|entry| entry.path().join("running.json").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What a replica says of itself, if it answers.
pub fn status(replica: &Replica) -> Option<Status> {
    if !replica.process.is_alive() {
        return None;
    }
    let mut client = ControlClient::connect(&replica.control, ANSWER).ok()?;
    client.status().ok()
}

/// Whether a Redis server answers at `address`.
pub fn redis_pings(address: SocketAddr) -> bool {
    use std::io::Read;
    let ping = || -> std::io::Result<bool> {
        let mut stream = std::net::TcpStream::connect_timeout(&address, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG\r\n")
    };
    ping().unwrap_or(false)
}
