//! Puts a replica together: reads its files, reaches its servers, checks that its view is its own.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use devices::BoardSpec;
use engine::Engine;
use ftlog::backup::Backup;
use ftlog::primary::Primary;
use ftlog::replica::Replica;
use ftlog::{Header, Region, ReplicaId, View, VmId};
use wire::control::ControlAddr;
use wire::control::server::ControlListenError;
use wire::nbd::{ExportName, NbdError, ViewTag};
use wire::netport::{Hello, Mac, NetportError};
use wire::register::{RegisterClient, RegisterError};

use super::channel::{self, End};
use super::clock::{Monotonic, Pace};
use super::control::Api;
use super::outlet::{Outlet, Outside};
use super::protocol::Protocol;
use super::read_again::ReadAgain;
use super::replay::Reads;
use super::saving::Saver;
use super::timeline::Timeline;
use super::{HashPolicy, Ready, VcpuView, threads};
use crate::boot::{BootError, BootSpec};
use crate::config::{Config, DiskReads, Endpoints, NetMode};
use crate::engines::{MakeEngine, NoEngine};
use crate::link::{Arrival, Console, DiskLink, NetLink, NetSpec, arrivals};
use crate::machine::{Machine, MachineError};
use crate::memory::{GuestRam, MemoryError};
use crate::save::LoadError;

/// The bound on each step of asking the register.
const REGISTER_TIMEOUT: Duration = Duration::from_millis(500);

/// What a replica begins as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Records, and has a backup.
    Primary,
    /// Replays, and takes over.
    Backup,
    /// Runs alone, without protection.
    Solo,
}

/// What a replica is started with.
#[derive(Clone, Debug)]
pub struct Spec {
    pub role: Role,
    pub id: ReplicaId,
    pub config: Config,
    /// Makes the CPU engine: [`crate::engines::make`].
    pub engine: MakeEngine,
    /// Where the others are; what is missing the machine does not have.
    pub endpoints: Endpoints,
    /// Where the control API listens.
    pub control: ControlAddr,
    /// A saved state to go on from.
    pub from: Option<PathBuf>,
    /// Files that get what the guest says on ttyS0 and hvc0, as far as it was released.
    pub serial_file: Option<PathBuf>,
    pub virtio_file: Option<PathBuf>,
    /// Told once the replica can be reached: its control address and, for a backup, the address of
    /// its end of the logging channel.
    pub ready: Sender<ReadyAt>,
}

/// Where a replica can be reached.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ReadyAt {
    pub control: String,
    pub log: Option<String>,
}

/// Why a replica could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(
        "no kernel is configured: set boot.kernel (--kernel), or use ft-ctl up, which boots the \
             Debian guest"
    )]
    NoKernel,
    #[error("{0}")]
    Config(&'static str),
    #[error(transparent)]
    Toml(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("cannot go on from {path}")]
    Load {
        path: PathBuf,
        #[source]
        source: LoadError,
    },
    #[error("the saved state in {path} does not fit this machine: {what}")]
    Foreign { path: PathBuf, what: String },
    #[error("the CPU engine cannot be made")]
    Engine(#[from] NoEngine),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error("the view register has no VM {0}: create its view first (ft-ctl view create)")]
    NoView(VmId),
    #[error("replica {id} cannot be {role:?} in {view}")]
    WrongView {
        id: ReplicaId,
        role: Role,
        view: View,
    },
    #[error("the VM {0} is off, says the view register; create a new view to start it again")]
    Off(VmId),
    #[error("the shared disk cannot be opened")]
    Disk(#[from] NbdError),
    #[error("the switch cannot be reached")]
    Net(#[from] NetportError),
    #[error("the control API cannot listen")]
    Control(#[from] ControlListenError),
    #[error(transparent)]
    Listen(#[from] wire::net::NetError),
    #[error("the file {path} cannot be written")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("a thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// Marks the machine as off in the register when its guest has gone off.
pub(super) struct PowerRegister {
    client: RegisterClient,
    vm: VmId,
}

impl PowerRegister {
    pub fn off(mut self, view: View) {
        if let Err(why) = self.client.off(self.vm, view.number) {
            tracing::warn!(%why, "the view register was not told that the machine is off");
        }
    }
}

/// Sets everything up. The vCPU has not run yet.
pub(super) fn prepare(spec: Spec) -> Result<Ready, SetupError> {
    let vm = identity(&spec)?;
    let register = spec
        .endpoints
        .register
        .as_ref()
        .map(|addr| addr.to_string());
    let view = view(&spec, vm, register.as_deref())?;
    let (arrivals_in, arrivals) = arrivals();
    let (outside, disk_bytes) = outside(&spec, vm, view, &arrivals_in)?;
    let machine = machine(&spec.config, spec.engine, spec.from.as_ref(), disk_bytes)?;
    let header = header(vm, view.number, &spec.config, &machine);
    let listener = listener(&spec)?;
    let log_addr = listener
        .as_ref()
        .and_then(|listener| listener.local_addr().ok());

    let timeline = Arc::new(Timeline::default());
    let export = outside.export.clone();
    let clock = Monotonic::start();
    let outlet =
        Outlet::start(outside.clone(), clock, Arc::clone(&timeline)).map_err(SetupError::Thread)?;
    let bounds = spec.config.protocol();
    let now = clock.now();
    let replica = match spec.role {
        Role::Primary | Role::Solo => Replica::Primary(Box::new(Primary::new(
            bounds.clone(),
            spec.id,
            view,
            header,
            now,
        ))),
        Role::Backup => Replica::Backup(Box::new(Backup::new(
            bounds.clone(),
            spec.id,
            view,
            header,
            now,
        ))),
    };
    let (to_channel, from_protocol) = crossbeam_channel::unbounded();
    let (to_register, claims) = crossbeam_channel::unbounded();
    let protocol = Protocol::new(
        replica,
        clock,
        to_channel,
        to_register,
        outlet,
        Arc::clone(&timeline),
    );

    threads::tick(protocol.clone()).map_err(SetupError::Thread)?;
    if let Some(addr) = &register {
        let client = RegisterClient::new(addr, REGISTER_TIMEOUT);
        threads::ask(client, vm, protocol.clone(), claims).map_err(SetupError::Thread)?;
    }
    let (to_vcpu, commands) = crossbeam_channel::unbounded();
    let vcpu = VcpuView::default();
    vcpu.show(&machine);
    let api = Api {
        vm,
        id: spec.id,
        engine: machine.engine_info(),
        protocol: protocol.clone(),
        vcpu: vcpu.clone(),
        commands: to_vcpu,
        arrivals: arrivals_in,
        serial: outside.serial,
        log_addr: log_addr.map(|addr| addr.to_string()),
        started: std::time::Instant::now(),
    };
    let control = wire::control::server::serve(&spec.control, Arc::new(api))?;
    let ready_at = ReadyAt {
        control: control.addr().to_string(),
        log: log_addr.map(|addr| addr.to_string()),
    };
    // Whoever started this replica may not want to know.
    let _ = spec.ready.send(ready_at);
    start_channel(
        &spec,
        listener,
        &protocol,
        from_protocol,
        bounds.suspect_after_ns,
    )?;
    let counted = machine.engine_info().counts;
    Ok(Ready {
        machine,
        role: spec.role,
        arrivals,
        commands,
        hashes: HashPolicy::new(spec.config.hash.interval, spec.config.hash.memory, counted),
        stretch: Duration::from_millis(spec.config.vm.stretch_ms.get()),
        pace: Pace::new(spec.config.vm.clock_percent.get()),
        log_reads: spec.config.disk.reads == DiskReads::Log || spec.role == Role::Solo,
        reads: reads(&spec, export, &protocol),
        protocol,
        vcpu,
        saver: saver(&spec, vm)?,
        _control: Some(control),
        register: register.map(|addr| PowerRegister {
            client: RegisterClient::new(addr, REGISTER_TIMEOUT),
            vm,
        }),
    })
}

/// The machine's identity; a pair's must be given to both.
fn identity(spec: &Spec) -> Result<VmId, SetupError> {
    let vm = &spec.config.vm;
    if spec.role != Role::Solo && (vm.seed.is_none() || vm.start_time.is_none()) {
        return Err(SetupError::Config(
            "the two replicas of a machine need the same vm.seed (openssl rand -hex 32) and \
             vm.start_time (date +%s) in their configurations",
        ));
    }
    match vm.uuid {
        Some(uuid) => Ok(uuid),
        None if spec.role == Role::Solo => Ok(VmId(rand::random())),
        None => Err(SetupError::Config(
            "the two replicas of a machine need the same vm.uuid in their configurations",
        )),
    }
}

/// The view that this replica begins in, by the register's word.
fn view(spec: &Spec, vm: VmId, register: Option<&str>) -> Result<View, SetupError> {
    let Some(addr) = register else {
        return match spec.role {
            Role::Solo => Ok(View {
                number: 1,
                primary: spec.id,
                backup: None,
            }),
            _ => Err(SetupError::Config(
                "a pair needs the address of its view register (--register)",
            )),
        };
    };
    let record = RegisterClient::new(addr, REGISTER_TIMEOUT).get(vm)?;
    let record = record.ok_or(SetupError::NoView(vm))?;
    if !record.on {
        return Err(SetupError::Off(vm));
    }
    let view = record.view;
    let mine = match spec.role {
        Role::Primary => view.primary == spec.id && view.backup.is_some(),
        Role::Backup => view.backup == Some(spec.id),
        Role::Solo => view.primary == spec.id && view.backup.is_none(),
    };
    if mine {
        Ok(view)
    } else {
        Err(SetupError::WrongView {
            id: spec.id,
            role: spec.role,
            view,
        })
    }
}

/// The connections to the outside, and the disk's size in bytes.
fn outside(
    spec: &Spec,
    vm: VmId,
    view: View,
    arrivals: &Sender<Arrival>,
) -> Result<(Outside, Option<u64>), SetupError> {
    let history = usize::try_from(spec.config.console.history.0).unwrap_or(usize::MAX);
    let serial = console(spec.serial_file.as_ref(), history)?;
    let virtio_console = console(spec.virtio_file.as_ref(), history)?;
    let mut outside = Outside {
        net: None,
        disk: None,
        export: None,
        serial,
        virtio_console,
    };
    let mut disk_bytes = None;
    if let Some(addr) = &spec.endpoints.nbd {
        let tag = ViewTag {
            vm,
            view: view.number,
            replica: spec.id,
        };
        let registered = spec.endpoints.register.is_some();
        let export = ExportName {
            disk: spec.config.vm.name.clone(),
            view: registered.then_some(tag),
        };
        let (disk, size) = DiskLink::open(&addr.to_string(), export.clone(), arrivals.clone())?;
        disk_bytes = Some(size);
        outside.disk = Some(disk);
        outside.export = Some(export);
    }
    if let Some(addr) = &spec.endpoints.netd {
        let hello = Hello {
            version: wire::netport::VERSION,
            vm,
            replica: spec.id,
            view: view.number,
            live: spec.role != Role::Backup,
            mac: Mac(spec.config.mac().0),
        };
        let net = NetSpec {
            addr: addr.to_string(),
            hello,
        };
        outside.net = Some(NetLink::open(net, arrivals.clone())?);
    }
    Ok((outside, disk_bytes))
}

fn console(file: Option<&PathBuf>, history: usize) -> Result<Console, SetupError> {
    Console::new(file.map(PathBuf::as_path), history).map_err(|source| SetupError::File {
        path: file.cloned().unwrap_or_default(),
        source,
    })
}

/// The machine at power-on, or as it was saved.
pub(super) fn machine(
    config: &Config,
    make_engine: MakeEngine,
    from: Option<&PathBuf>,
    disk_bytes: Option<u64>,
) -> Result<Machine, SetupError> {
    let ram = GuestRam::new(config.vm.memory.bytes())?;
    let engine = make_engine(&config.vm, &ram)?;
    let kernel = config.boot.kernel.as_deref().ok_or(SetupError::NoKernel)?;
    let boot = BootSpec::from_files(
        kernel,
        config.boot.initrd.as_deref(),
        config.kernel_cmdline(""),
        config.boot.mode,
    )?;
    match from {
        None => Ok(Machine::power_on(
            engine,
            ram,
            boot,
            &board(config, disk_bytes),
        )?),
        Some(path) => resume(path, engine, ram, boot),
    }
}

fn board(config: &Config, disk_bytes: Option<u64>) -> BoardSpec {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    BoardSpec {
        memory_bytes: config.vm.memory.bytes(),
        net: config.net.mode != NetMode::None,
        mac: config.mac().0,
        disk_sectors: disk_bytes.map(|bytes| bytes / 512),
        disk_id: config.vm.name.clone(),
        unix_epoch_ns: config
            .vm
            .start_time
            .unwrap_or(now)
            .saturating_mul(1_000_000_000),
        rng_seed: config.vm.seed.map_or_else(rand::random, |seed| seed.0),
        exit_port: config.boot.exit_port,
    }
}

fn resume(
    path: &std::path::Path,
    engine: Box<dyn Engine>,
    ram: GuestRam,
    boot: BootSpec,
) -> Result<Machine, SetupError> {
    let started = std::time::Instant::now();
    let saved = crate::save::load(path, &ram, &mut |progress| {
        if progress.done == progress.total {
            tracing::info!(bytes = progress.total, took = ?started.elapsed(), "state loaded");
        }
    })
    .map_err(|source| SetupError::Load {
        path: path.to_owned(),
        source,
    })?;
    let foreign = |what: String| SetupError::Foreign {
        path: path.to_owned(),
        what,
    };
    if let Some(what) = saved.about.engine.differs(&engine.info().into()) {
        return Err(foreign(what));
    }
    if saved.about.boot_digest != boot.digest() {
        let what = "it was booted from another kernel, initrd or command line";
        return Err(foreign(what.to_owned()));
    }
    Ok(Machine::resume(engine, ram, boot, &saved.state)?)
}

/// What both replicas must agree on before the first entry.
pub(super) fn header(vm: VmId, view: u64, config: &Config, machine: &Machine) -> Header {
    let info = machine.engine_info();
    let state = machine.hash(true);
    let whole = [state.registers, state.devices, state.memory.unwrap_or(0)]
        .map(u64::to_le_bytes)
        .concat();
    let options = format!(
        "reads={:?} net={:?} exit={}",
        config.disk.reads,
        config.net.mode == NetMode::None,
        config.boot.exit_port
    );
    Header {
        vm,
        view,
        build: crate::BUILD.to_owned(),
        engine: info.name.to_owned(),
        counts: info.counts,
        cpuid: info.cpuid_hash,
        memory: machine
            .ram()
            .ranges()
            .map(|range| Region {
                base: range.start,
                len: range.end - range.start,
            })
            .collect(),
        board: xxhash_rust::xxh3::xxh3_64(options.as_bytes()),
        host_math: info.host_math,
        initial_state: xxhash_rust::xxh3::xxh3_64(&whole),
        start: machine.position(),
        start_clock_ns: machine.now(),
    }
}

/// The backup's end of the logging channel.
fn listener(spec: &Spec) -> Result<Option<TcpListener>, SetupError> {
    if spec.role != Role::Backup {
        return Ok(None);
    }
    let addr = spec
        .endpoints
        .log
        .as_ref()
        .map_or("127.0.0.1:0".to_owned(), ToString::to_string);
    Ok(Some(wire::net::listen(&addr)?))
}

fn start_channel(
    spec: &Spec,
    listener: Option<TcpListener>,
    protocol: &Protocol,
    from_protocol: Receiver<channel::ToChannel>,
    silence_ns: u64,
) -> Result<(), SetupError> {
    let end = match (spec.role, listener, &spec.endpoints.log) {
        (Role::Solo, _, _) => return Ok(()),
        (Role::Backup, Some(listener), _) => End::Listen(listener),
        (_, _, Some(addr)) => End::Connect(addr.to_string()),
        _ => {
            return Err(SetupError::Config(
                "a primary needs the address of its backup (--log)",
            ));
        }
    };
    let record = match &spec.config.log.record {
        Some(path) if spec.role == Role::Primary => {
            Some(File::create(path).map_err(|source| SetupError::File {
                path: path.clone(),
                source,
            })?)
        }
        _ => None,
    };
    let silence = Duration::from_nanos(silence_ns);
    channel::start(end, protocol.clone(), from_protocol, silence, record)
        .map_err(SetupError::Thread)
}

fn saver(spec: &Spec, vm: VmId) -> Result<Saver, SetupError> {
    let register = spec.endpoints.register.as_ref().map(ToString::to_string);
    Ok(Saver {
        vm_name: spec.config.vm.name.clone(),
        vm_uuid: vm.to_string(),
        config: spec.config.to_toml()?,
        disk_server: register.filter(|_| spec.endpoints.nbd.is_some()),
    })
}

/// How a backup repeats disk reads, if the log does not carry their data.
fn reads(spec: &Spec, export: Option<ExportName>, protocol: &Protocol) -> Option<Box<dyn Reads>> {
    let addr = spec.endpoints.nbd.as_ref()?.to_string();
    let wanted = spec.role == Role::Backup && spec.config.disk.reads == DiskReads::Backup;
    let export = export.filter(|_| wanted)?;
    Some(Box::new(ReadAgain::new(addr, export, protocol.clone())))
}
