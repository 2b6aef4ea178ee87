//! A machine that `ft-ctl up` started, in a folder of its own.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cli::eprintln;
use nix::sys::signal::Signal;
use wire::control::{ControlClient, Protection, Request, Response, Role, Status};
use wire::register::{RegisterClient, ReplicaId, View, VmId};
use wire::running::{Process, ReplicaProcess, Running};

use crate::conditions::patient;
use crate::home::{self, Home};
use crate::process::{self, Owned};
use crate::wait;

/// How long a replica may take to answer; a stopped one never does.
const ANSWER: Duration = Duration::from_secs(2);
/// How long it may take to save or to hash all of its memory.
const LONG: Duration = Duration::from_secs(180);
/// Lines of a replica's log that are shown after a failure.
const LOG_LINES: usize = 25;
/// When the console's shell is asked again whether it is there.
const SHELL_AGAIN: Duration = Duration::from_secs(3);

/// What the replicas of machines said last that were let go without being ended.
static LEFT: Mutex<String> = Mutex::new(String::new());

/// What the replicas said last of the machines that were let go since the last call, without being
/// ended: those of a test that failed, for one.
pub fn take_left() -> String {
    LEFT.lock()
        .map(|mut left| std::mem::take(&mut *left))
        .unwrap_or_default()
}

/// A word as it is typed in a shell, and as the shell prints it.
fn word() -> (String, String) {
    let (left, right) = (rand::random::<u32>(), rand::random::<u32>());
    (
        format!("w{left:08x}''{right:08x}"),
        format!("w{left:08x}{right:08x}"),
    )
}

/// The command line of a disk server that was killed.
pub struct StoppedDiskd(Vec<String>);

/// A machine that runs. It is ended when this value goes.
pub struct Machine {
    home: Home,
    running: Running,
    keep: bool,
    /// Processes that `ft-ctl` does not know of.
    own: Vec<Owned>,
}

impl Machine {
    /// The machine that is up in this folder.
    pub fn adopt(home: Home) -> Result<Self> {
        let name = home::names(&home).pop();
        let name = name.with_context(|| format!("no machine in {}", home.path().display()))?;
        let file = home.file(&name).join("running.json");
        let running = serde_json::from_slice(&std::fs::read(&file)?)
            .with_context(|| format!("{} is not understood", file.display()))?;
        Ok(Self {
            home,
            running,
            keep: false,
            own: Vec::new(),
        })
    }

    /// A machine whose processes were started one by one.
    pub fn assembled(home: Home, running: Running, own: Vec<Owned>) -> Self {
        Self {
            home,
            running,
            keep: false,
            own,
        }
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

    pub fn replicas(&self) -> &[ReplicaProcess] {
        &self.running.replicas
    }

    pub fn replica(&self, id: u64) -> Result<&ReplicaProcess> {
        let mut replicas = self.running.replicas.iter();
        replicas
            .find(|replica| replica.id == ReplicaId(id))
            .with_context(|| format!("there is no replica {id}"))
    }

    /// What the replicas say that answer.
    pub fn statuses(&self) -> Vec<(ReplicaProcess, Status)> {
        let ask =
            |replica: &ReplicaProcess| status(replica).map(|status| (replica.clone(), status));
        self.running.replicas.iter().filter_map(ask).collect()
    }

    /// The replica that answers for the guest (alone or not), of the highest view.
    pub fn live(&self) -> Option<(ReplicaProcess, Status)> {
        self.statuses()
            .into_iter()
            .filter(|(_, status)| matches!(status.role, Role::Primary | Role::Solo))
            .max_by_key(|(_, status)| status.view.number)
    }

    /// The replica that follows.
    pub fn backup(&self) -> Option<(ReplicaProcess, Status)> {
        let mut all = self.statuses().into_iter();
        all.find(|(_, status)| status.role == Role::Backup)
    }

    /// Both, while the machine is protected.
    pub fn pair(&self) -> Result<(ReplicaProcess, ReplicaProcess)> {
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
            self.check_processes()?;
            let live = self.live();
            Ok(live
                .filter(|(replica, status)| status.role == Role::Solo && Some(replica.id) != not)
                .map(|(_, status)| status))
        })
    }

    /// Waits until Redis in the guest answers, telling `tell` how the boot goes.
    pub fn wait_redis(&self, bound: Duration, mut tell: impl FnMut(&Status)) -> Result<()> {
        let address = self.forward(6379)?;
        let mut told = Instant::now();
        wait::until("Redis in the guest answers", bound, || {
            self.check_processes()?;
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
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
        bail!("all replicas have ended")
    }

    /// The last lines of what the replicas logged.
    fn last_logged(&self) -> String {
        let mut text = String::new();
        for replica in &self.running.replicas {
            let name = format!("replica-{}", replica.id);
            let log = self.log(&name);
            let from = log.lines().count().saturating_sub(LOG_LINES);
            text += &format!("  {name} said last:\n");
            for line in log.lines().skip(from) {
                text += &format!("    {line}\n");
            }
        }
        text
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
        let record = RegisterClient::new(register, patient(ANSWER)).get(self.running.vm)?;
        Ok(record
            .context("the register does not know the machine")?
            .view)
    }

    /// Kills the disk server.
    pub fn kill_diskd(&mut self) -> Result<StoppedDiskd> {
        let diskd = self.diskd()?;
        let mut command = process::command_line(diskd)?;
        let (nbd, register, _) = self.addresses();
        for (flag, address) in [("--nbd", nbd), ("--register", register)] {
            let at = command.iter().position(|word| word == flag);
            let value = at.and_then(|at| command.get_mut(at + 1));
            *value.context("the disk server's command line")? =
                address.context("the disk server's address")?.to_owned();
        }
        diskd.signal(Signal::SIGKILL)?;
        process::wait_end(diskd, LONG)?;
        Ok(StoppedDiskd(command))
    }

    /// Starts it again, at the same addresses.
    pub fn restart_diskd(&mut self, stopped: &StoppedDiskd) -> Result<()> {
        let (program, args) = stopped.0.split_first().context("no command line")?;
        let mut command = Command::new(program);
        command.args(args);
        let (owned, _) = process::start(command, &self.file("diskd.log"))?;
        self.running.diskd = Some(owned.process());
        self.own.push(owned);
        Ok(())
    }

    /// With which status a process of ours ended.
    pub fn exit_code(&mut self, process: Process) -> Option<i32> {
        let mut own = self.own.iter_mut();
        own.find(|owned| owned.process() == process)?.exit_code()
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
        let mut client = ControlClient::connect(&replica.control, patient(LONG))?;
        Ok(client.call(&Request::Hash { memory: true })?)
    }

    /// What the guest has said on the serial console of a replica.
    pub fn serial(&self, replica: u64) -> String {
        let text = std::fs::read(self.file(&format!("replica-{replica}.serial")));
        String::from_utf8_lossy(&text.unwrap_or_default()).into_owned()
    }

    /// Runs a command in the shell on the guest's console; gives what it said.
    pub fn shell(&self, command: &str, bound: Duration) -> Result<String> {
        self.wait_shell(bound)?;
        let from = self.said().len();
        let (typed, printed) = word();
        self.type_line(&format!("({command}) 2>&1; echo {typed}"))?;
        wait::until(&format!("`{command}` in the guest ends"), bound, || {
            let text = self.said();
            let text = text.get(from.min(text.len())..).unwrap_or(&text);
            Ok(text.find(&printed).map(|at| text[..at].to_owned()))
        })
        .with_context(|| self.said())
    }

    /// Waits until there is a shell on the console. One that starts throws away what was typed
    /// before, so the question is asked again and again.
    pub fn wait_shell(&self, bound: Duration) -> Result<()> {
        let mut asked: Option<(Instant, String)> = None;
        wait::until("a shell on the guest's console", bound, || {
            let due = asked
                .as_ref()
                .is_none_or(|(at, _)| at.elapsed() > patient(SHELL_AGAIN));
            if due {
                let (typed, printed) = word();
                self.type_line(&format!("echo {typed}"))?;
                asked = Some((Instant::now(), printed));
            }
            let answered = asked.as_ref().map(|(_, word)| self.said().contains(word));
            Ok((answered == Some(true)).then_some(()))
        })
        .with_context(|| self.said())
    }

    /// What the guest has said on the console of the live replica.
    fn said(&self) -> String {
        let live = self.live().map_or(1, |(live, _)| live.id.0);
        self.serial(live)
    }

    /// Types a line on the guest's serial console.
    pub fn type_line(&self, line: &str) -> Result<()> {
        let (replica, _) = self.live().context("no replica is live")?;
        let mut stream = ControlClient::connect(&replica.control, patient(ANSWER))?.console()?;
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
        home::end(&self.home)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Whoever has let it go may have failed, and then wants to know.
        if let Ok(mut left) = LEFT.lock() {
            left.push_str(&self.last_logged());
        }
        if let Err(why) = home::end(&self.home) {
            eprintln!("the machine could not be ended: {why:#}");
        }
    }
}

/// What a replica says of itself, if it answers.
pub fn status(replica: &ReplicaProcess) -> Option<Status> {
    if !replica.process.is_alive() {
        return None;
    }
    let mut client = ControlClient::connect(&replica.control, patient(ANSWER)).ok()?;
    client.status().ok()
}

/// Whether a Redis server answers at `address`.
pub fn redis_pings(address: SocketAddr) -> bool {
    use std::io::Read;
    let ping = || -> std::io::Result<bool> {
        let mut stream = std::net::TcpStream::connect_timeout(&address, patient(ANSWER))?;
        stream.set_read_timeout(Some(patient(ANSWER)))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG\r\n")
    };
    ping().unwrap_or(false)
}
