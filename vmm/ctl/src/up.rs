//! `up`: everything that a machine needs, started on this host in the right order.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use vmm::config::{ByteSize, Config, ConfigError, EngineKind, Net, NetMode, Positions, Seed};
use vmm::engines::NoEngine;
use vmm::machine::Off;
use vmm::save::{About, LoadError};
use wire::control::{ControlAddr, Protection, Role};
use wire::register::{RegisterClient, RegisterError, ReplicaId, VmId};
use wire::running::{Forwarded, ReplicaProcess, Running};

use crate::process::{self, End, StartError, Started, tail};
use crate::progress::Teller;
use crate::rundir::{RunDir, RunDirError};
use crate::{interrupt, log, status};

const REGISTER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the replicas may take to find each other, beyond what the configuration allows them.
const PAIRING_EXTRA: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum UpError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error("the Debian guest could not be built")]
    Guest(#[from] guest_images::BuildError),
    #[error(transparent)]
    Engine(#[from] NoEngine),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error("the disk image {path} cannot be made")]
    Disk {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("there is no disk image {path}; make one, or say how large with --disk-size")]
    NoDisk { path: PathBuf },
    #[error("cannot go on from {path}")]
    From {
        path: PathBuf,
        #[source]
        source: LoadError,
    },
    #[error("the saved state {path} does not fit: {what}")]
    Foreign { path: PathBuf, what: String },
    #[error("{path} cannot be written")]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("replica {id} ended while the machine was starting; it said:\n{said}")]
    Ended { id: ReplicaId, said: String },
    #[error("the machine ended while it was starting: {0}")]
    Off(Off),
    #[error("the machine was not running after {seconds} s: {state}")]
    NotRunning { seconds: u64, state: String },
    #[error("interrupted; what was started has been ended")]
    Interrupted,
}

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct Up {
    pub config: Config,
    /// A saved state to go on from.
    pub from: Option<PathBuf>,
    pub quiet: bool,
}

/// A machine that is up.
#[derive(Clone, Debug)]
pub struct Machine {
    pub dir: RunDir,
    pub running: Running,
}

#[derive(Deserialize)]
struct DiskdReady {
    nbd: String,
    register: String,
}

#[derive(Deserialize)]
struct NetdReady {
    replicas: String,
    forwards: Vec<Forwarded>,
}

#[derive(Deserialize)]
struct VmmReady {
    control: ControlAddr,
    log: Option<String>,
}

/// Starts a machine and waits until it runs. Whatever was started is ended again on an error.
pub fn up(request: Up) -> Result<Machine, UpError> {
    let mut teller = Teller::new(request.quiet);
    let dir = RunDir::create(&request.config.vm.name)?;
    let mut starting = Starting::new(dir, request);
    match starting.all(&mut teller) {
        Ok(()) => Ok(Machine {
            dir: starting.dir,
            running: starting.running,
        }),
        Err(why) => {
            for process in starting.running.processes() {
                process.end(Duration::from_secs(2));
            }
            // The error that is told is the first one.
            let _ = starting.dir.remove();
            Err(why)
        }
    }
}

struct Starting {
    dir: RunDir,
    config: Config,
    from: Option<PathBuf>,
    running: Running,
    /// Of the replicas.
    ends: Vec<(ReplicaId, End)>,
}

impl Starting {
    fn new(dir: RunDir, request: Up) -> Self {
        let mut config = request.config;
        let vm = *config.vm.uuid.get_or_insert_with(|| VmId(rand::random()));
        config.vm.seed.get_or_insert_with(|| Seed(rand::random()));
        let now = std::time::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default()
            .as_secs();
        config.vm.start_time.get_or_insert(now);
        // The replicas read them from a file in another folder.
        let paths = [
            &mut config.boot.kernel,
            &mut config.boot.initrd,
            &mut config.disk.path,
            &mut config.log.record,
        ];
        for path in paths.into_iter().flatten() {
            *path = std::path::absolute(&*path).unwrap_or(path.clone());
        }
        let running = Running {
            name: config.vm.name.clone(),
            vm,
            diskd: None,
            netd: None,
            nbd: None,
            register: None,
            switch: None,
            forwards: Vec::new(),
            replicas: Vec::new(),
        };
        Self {
            dir,
            config,
            from: request.from,
            running,
            ends: Vec::new(),
        }
    }

    fn all(&mut self, teller: &mut Teller) -> Result<(), UpError> {
        self.check_saved()?;
        self.engine(teller)?;
        let built = self.guest(teller);
        // Ctrl-C also ends the programs that build the guest, which is then no fault of theirs.
        go_on()?;
        built?;
        if let Some(disk) = self.disk(teller)? {
            self.start_diskd(&disk)?;
        }
        go_on()?;
        self.start_netd()?;
        go_on()?;
        self.start_replicas(teller)?;
        self.wait_running(teller)?;
        go_on()
    }

    /// A saved machine brings its own size and identity of hardware.
    fn check_saved(&mut self) -> Result<(), UpError> {
        let Some(path) = &self.from else {
            return Ok(());
        };
        let failed = |source| UpError::From {
            path: path.clone(),
            source,
        };
        let about: About = vmm::save::load_about(path).map_err(failed)?;
        let saved = Config::parse(&about.config)?;
        self.config.net.mac.get_or_insert(saved.mac());
        self.config.vm.memory = saved.vm.memory;
        self.config.boot = saved.boot;
        self.config.guest = saved.guest;
        self.config.vm.engine = self.config.vm.engine.or_named(&about.engine.name);
        if self.config.vm.positions == Positions::Auto {
            self.config.vm.positions = saved.vm.positions;
        }
        Ok(())
    }

    /// Both replicas get the same engine, and the log's configuration names it.
    fn engine(&mut self, teller: &mut Teller) -> Result<(), UpError> {
        let vm = &mut self.config.vm;
        if vm.engine == EngineKind::Auto {
            let choice = vmm::engines::choose();
            vm.engine = choice.engine;
            teller.step(&format!(
                "engine: {} ({})",
                choice.engine.name(),
                choice.why
            ));
        }
        if vm.engine == EngineKind::Kvm && vm.positions == Positions::Auto {
            let (positions, why) = vmm::engines::positions(vm.positions)?;
            vm.positions = positions;
            teller.step(&format!("positions: {} ({why})", positions.name()));
        }
        Ok(())
    }

    /// Kernel, initrd and command line; of the Debian guest unless something else is named.
    fn guest(&mut self, teller: &mut Teller) -> Result<(), UpError> {
        if self.config.boot.kernel.is_some() {
            return Ok(());
        }
        teller.step("guest: Debian 12 with Redis and nginx");
        let image = guest_images::build(&guest_images::Options::default(), &mut |progress| {
            teller.building(progress);
        })?;
        self.config.boot.cmdline = Some(self.config.kernel_cmdline(&image.cmdline));
        self.config.boot.append = String::new();
        self.config.boot.kernel = Some(image.kernel.clone());
        self.config.boot.initrd = Some(image.initrd.clone());
        if self.config.disk.path.is_none() && self.from.is_none() {
            teller.step("disk: a copy of the Debian guest's");
            let copy = self.dir.file("disk.img");
            image.copy_disk(&copy)?;
            self.config.disk.path = Some(copy);
        }
        Ok(())
    }

    /// The disk image, if the machine has one.
    fn disk(&mut self, teller: &mut Teller) -> Result<Option<PathBuf>, UpError> {
        if let Some(state) = &self.from
            && self.config.disk.path.is_none()
        {
            let saved = PathBuf::from(format!("{}.disk", state.display()));
            if saved.exists() {
                teller.step("disk: a copy of the saved one");
                let copy = self.dir.file("disk.img");
                guest_images::copy_sparse(&saved, &copy)?;
                self.config.disk.path = Some(copy);
            }
        }
        let Some(path) = self.config.disk.path.clone() else {
            return Ok(None);
        };
        if !path.exists() {
            let Some(ByteSize(size)) = self.config.disk.size else {
                return Err(UpError::NoDisk { path });
            };
            let made = fs::File::create_new(&path).and_then(|file| file.set_len(size));
            made.map_err(|source| UpError::Disk {
                path: path.clone(),
                source,
            })?;
        }
        let found = fs::metadata(&path).map_err(|source| UpError::Disk {
            path: path.clone(),
            source,
        })?;
        self.config.disk.size = Some(ByteSize(found.len()));
        Ok(Some(path))
    }

    fn start_diskd(&mut self, disk: &Path) -> Result<(), UpError> {
        let state = self.dir.file("register");
        fs::create_dir_all(&state).map_err(|source| UpError::Write {
            path: state.clone(),
            source,
        })?;
        let mut disk_arg = OsString::from(format!("name={},path=", self.config.vm.name));
        disk_arg.push(disk);
        let at = |address: &Option<vmm::config::Address>| {
            OsString::from(
                address
                    .as_ref()
                    .map_or("127.0.0.1:0".to_owned(), ToString::to_string),
            )
        };
        let args = [
            "--nbd".into(),
            at(&self.config.primary.nbd),
            "--register".into(),
            at(&self.config.primary.register),
            "--state".into(),
            state.into(),
            "--disk".into(),
            disk_arg,
            // The disk server of a machine that was started here is as trusted as its starter.
            "--snapshots".into(),
            "/".into(),
        ];
        let log = self.dir.file("diskd.log");
        let Started { process, ready, .. } = process::start::<DiskdReady>("ft-diskd", &args, &log)?;
        self.running.diskd = Some(process);
        self.running.nbd = Some(ready.nbd);
        self.running.register = Some(ready.register);
        Ok(self.dir.save(&self.running)?)
    }

    fn start_netd(&mut self) -> Result<(), UpError> {
        if self.config.net.mode == NetMode::None {
            return Ok(());
        }
        let mut args: Vec<OsString> = vec![
            "--replicas".into(),
            "127.0.0.1:0".into(),
            "--net".into(),
            self.config.net.mode.to_string().into(),
        ];
        // Behind a TAP the guest has an address of its own, and nothing is forwarded by default.
        let net = &self.config.net;
        let forwards = match net.mode {
            NetMode::Tap { .. } if net.forward == Net::default().forward => &[],
            _ => net.forward.as_slice(),
        };
        for forward in forwards {
            args.push("--forward".into());
            args.push(format!("{}:{}", forward.host, forward.guest).into());
        }
        let log = self.dir.file("netd.log");
        let Started { process, ready, .. } = process::start::<NetdReady>("ft-netd", &args, &log)?;
        self.running.netd = Some(process);
        self.running.switch = Some(ready.replicas);
        self.running.forwards = ready.forwards;
        Ok(self.dir.save(&self.running)?)
    }

    /// The view, then the backup, then the primary that connects to it.
    fn start_replicas(&mut self, teller: &mut Teller) -> Result<(), UpError> {
        let pair = self.config.ft.enabled;
        let (first, second) = (ReplicaId(1), pair.then_some(ReplicaId(2)));
        if pair && self.running.register.is_none() {
            // A machine without a disk still needs somebody who breaks ties.
            let disk = self.dir.file("no-disk.img");
            let made = fs::File::create(&disk).and_then(|file| file.set_len(1 << 20));
            made.map_err(|source| UpError::Disk {
                path: disk.clone(),
                source,
            })?;
            self.start_diskd(&disk)?;
            self.running.nbd = None;
        }
        if let Some(register) = &self.running.register {
            let disks = [self.config.vm.name.clone()];
            RegisterClient::new(register, REGISTER_TIMEOUT).create(
                self.running.vm,
                first,
                second,
                &disks,
                true,
            )?;
        }
        let beside_log = self.config.log.record.as_deref().map(log::config_beside);
        for path in [Some(self.dir.file("vm.toml")), beside_log]
            .into_iter()
            .flatten()
        {
            fs::write(&path, self.config.to_toml()?)
                .map_err(|source| UpError::Write { path, source })?;
        }
        let mut log_address = None;
        if let Some(second) = second {
            teller.step("backup: starting");
            log_address = self.start_replica(second, "backup", None)?.log;
            go_on()?;
        }
        let role = if pair { "primary" } else { "solo" };
        teller.step(&format!("{role}: starting"));
        self.start_replica(first, role, log_address)?;
        Ok(())
    }

    fn start_replica(
        &mut self,
        id: ReplicaId,
        role: &str,
        log_address: Option<String>,
    ) -> Result<VmmReady, UpError> {
        let mut args: Vec<OsString> = vec![
            "--role".into(),
            role.into(),
            "--replica".into(),
            id.to_string().into(),
            "--config".into(),
            self.dir.file("vm.toml").into(),
            "--serial-file".into(),
            self.dir.file(&format!("replica-{id}.serial")).into(),
            "--virtio-file".into(),
            self.dir.file(&format!("replica-{id}.hvc")).into(),
        ];
        let socket = self.dir.file(&format!("replica-{id}.sock"));
        args.push("--control".into());
        args.push(ControlAddr::Unix(socket).to_string().into());
        let addresses = [
            ("--nbd", self.running.nbd.clone()),
            ("--register", self.running.register.clone()),
            ("--netd", self.running.switch.clone()),
            ("--log", log_address),
        ];
        for (flag, address) in addresses {
            if let Some(address) = address {
                args.extend([flag.into(), address.into()]);
            }
        }
        if let Some(from) = &self.from {
            args.push("--from".into());
            args.push(
                std::path::absolute(from)
                    .unwrap_or_else(|_| from.clone())
                    .into(),
            );
        }
        let log = self.log(id);
        let Started {
            process,
            ready,
            end,
        } = process::start::<VmmReady>("ft-vmm", &args, &log)?;
        self.ends.push((id, end));
        let control = ready.control.clone();
        self.running.replicas.push(ReplicaProcess {
            id,
            process,
            control,
        });
        self.dir.save(&self.running)?;
        Ok(ready)
    }

    fn log(&self, id: ReplicaId) -> PathBuf {
        self.dir.file(&format!("replica-{id}.log"))
    }

    fn wait_running(&self, teller: &mut Teller) -> Result<(), UpError> {
        let patience = Duration::from_millis(self.config.ft.start_wait_ms.get()) + PAIRING_EXTRA;
        let begun = Instant::now();
        loop {
            let seen = status::status(&self.running);
            let runs = seen.replicas.iter().any(|replica| {
                matches!(replica.role, Role::Primary | Role::Solo)
                    && matches!(
                        replica.state,
                        Protection::Protected | Protection::NeedBackup
                    )
            });
            if runs {
                teller.step(&format!("running: {}", seen.state));
                return Ok(());
            }
            go_on()?;
            if let Some((id, end)) = self.ends.iter().find(|(_, end)| end.is_known()) {
                // A test kernel may be done before anybody has seen it run.
                return Err(match end.code().and_then(Off::from_exit_status) {
                    Some(off) => UpError::Off(off),
                    None => UpError::Ended {
                        id: *id,
                        said: tail(&self.log(*id)),
                    },
                });
            }
            if begun.elapsed() > patience {
                let seconds = patience.as_secs();
                return Err(UpError::NotRunning {
                    seconds,
                    state: seen.state.to_string(),
                });
            }
            std::thread::sleep(POLL);
        }
    }
}

/// An error once the user wants to have it ended.
fn go_on() -> Result<(), UpError> {
    if interrupt::requested() {
        return Err(UpError::Interrupted);
    }
    Ok(())
}
