//! `ft-ctl`: starts, watches and ends fault-tolerant machines.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use cli::{eprintln, print, println};
use ft_ctl::rundir::RunDir;
use ft_ctl::up::{Up, UpError};
use ft_ctl::{bench, console, doctor, down, interrupt, log, status, up, watch};
use nix::sys::signal::Signal;
use vmm::config::ConfigFlags;
use wire::control::{ControlClient, Request, Response, Role};
use wire::register::{RegisterClient, ReplicaId, VmId};

/// How long a replica may take to answer a short request.
const CONTROL: Duration = Duration::from_secs(5);
/// How long it may take to save or hash a large memory.
const CONTROL_LONG: Duration = Duration::from_secs(180);

#[derive(Parser)]
#[command(
    name = "ft-ctl",
    version = vmm::BUILD,
    about = "Starts, watches and ends fault-tolerant machines",
    after_help = "Exit status: 0 done; 1 it failed, or what it was to check is wrong; 2 the command \
                  line is not right; 64 + n `up`: the guest has already written n to the exit \
                  port; 130 interrupted."
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args)]
struct Which {
    /// The machine; default: the only one that is up
    #[arg(long = "machine", short = 'm', value_name = "NAME")]
    name: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Victim {
    Primary,
    Backup,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a machine with its servers on this host, and waits until it runs
    Up {
        /// Its configuration (TOML); without one: the Debian guest with Redis and nginx
        file: Option<PathBuf>,
        /// Go on from a state that `save` made
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
        /// Say what was started as JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        flags: ConfigFlags,
    },
    /// Cuts the guest's power and ends everything that `up` started
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// Says whether the machine is protected, and how it is
    Status {
        #[command(flatten)]
        which: Which,
        #[arg(long)]
        json: bool,
    },
    /// A live view of the machine: both replicas, the log, failovers as they happen; q ends
    Watch {
        #[command(flatten)]
        which: Which,
        /// Print one picture as text
        #[arg(long)]
        once: bool,
    },
    /// The guest's serial console; Ctrl-] leaves
    Console {
        #[command(flatten)]
        which: Which,
    },
    /// Kills a replica with SIGKILL, as if its host had failed
    Kill {
        replica: Victim,
        #[command(flatten)]
        which: Which,
    },
    /// Saves the machine to FILE, and its disk to FILE.disk; it goes on afterwards
    Save {
        file: PathBuf,
        #[command(flatten)]
        which: Which,
    },
    /// Hashes the machine's state where it is now, and has the backup compare
    Hash {
        /// Of all of memory too
        #[arg(long)]
        memory: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Presses the guest's reset button
    Reset {
        #[command(flatten)]
        which: Which,
    },
    /// Measures what protection costs, and what clients see of a failover
    Bench {
        #[command(flatten)]
        conditions: e2e::conditions::Conditions,
        #[command(subcommand)]
        command: bench::BenchCommand,
    },
    /// Looks at what this host offers and lacks
    Doctor {
        #[arg(long)]
        json: bool,
    },
    /// Log files that `up --record FILE` wrote
    Log {
        #[command(subcommand)]
        command: log::LogCommand,
    },
    /// The view register, for machines that are not started by `up`
    View {
        #[command(subcommand)]
        command: ViewCommand,
    },
}

#[derive(Subcommand)]
enum ViewCommand {
    /// Shows a machine's view
    Get {
        #[arg(long, value_name = "HOST:PORT")]
        register: String,
        vm: VmId,
    },
    /// Creates a machine's view, before its replicas are started
    Create {
        #[arg(long, value_name = "HOST:PORT")]
        register: String,
        vm: VmId,
        /// Number of the replica that begins as primary
        #[arg(long)]
        primary: ReplicaId,
        /// Number of the replica that begins as backup
        #[arg(long)]
        backup: Option<ReplicaId>,
        /// Export names of its disks
        #[arg(long = "disk")]
        disks: Vec<String>,
        /// Even if the machine has a view: its replicas are fenced then
        #[arg(long)]
        reset: bool,
    },
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        // What was asked for has not arrived.
        Ok(code) if code == ExitCode::SUCCESS && cli::output_lost() => ExitCode::FAILURE,
        Ok(code) => code,
        Err(_) if interrupt::requested() => {
            eprintln!("ft-ctl: interrupted; what was started has been ended");
            ExitCode::from(interrupt::EXIT_CODE)
        }
        Err(error) => {
            eprintln!("ft-ctl: {}", vmm::errors::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The exit status of a command that found out what it was to find out: whether that is good.
fn verdict(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Carries a command out.
fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Bench {
            conditions,
            command,
        } => {
            interrupt::catch()?;
            conditions.set()?;
            return bench::run(command).map(verdict);
        }
        Command::Doctor { json } => return doctor::run(json).map(verdict),
        Command::Log { command } => return log::run(command).map(verdict),
        Command::Up {
            file,
            from,
            json,
            flags,
        } => {
            let config = flags.resolve(file.as_deref())?;
            let quiet = false;
            let up = Up {
                config,
                from,
                quiet,
            };
            return start(up, json);
        }
        Command::Down { which } => {
            let (dir, running) = RunDir::find(which.name.as_deref())?;
            down::down(&dir, &running)?;
            println!("{}: down", running.name);
            Ok(())
        }
        Command::Status { which, json } => show_status(which.name.as_deref(), json),
        Command::Watch { which, once: true } => {
            print!("{}", watch::once(which.name.as_deref())?);
            Ok(())
        }
        Command::Watch { which, once: false } => {
            watch::check_terminal()?;
            watch::watch(which.name.as_deref())
        }
        Command::Console { which } => console::attach(&role(&which, Role::Primary)?.control),
        Command::Kill { replica, which } => kill(replica, &which),
        Command::Save { file, which } => save(&file, &which),
        Command::Hash { memory, which } => hash(memory, &which),
        Command::Reset { which } => {
            let live = role(&which, Role::Primary)?;
            ControlClient::connect(&live.control, CONTROL)?.call(&Request::Reset)?;
            Ok(())
        }
        Command::View { command } => view(command),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Starts a machine. One that is off already is no failure: its end is the exit status.
fn start(request: Up, json: bool) -> Result<ExitCode> {
    interrupt::catch()?;
    let name = request.config.vm.name.clone();
    let machine = match up::up(request) {
        Err(UpError::Off(off)) => {
            if json {
                let report = serde_json::json!({ "name": name, "off": off });
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                println!("{name}: it has run and is off: {off}");
            }
            return Ok(off.exit_status().into());
        }
        outcome => outcome?,
    };
    if json {
        let seen = status::status(&machine.running);
        let report = serde_json::json!({
            "name": machine.running.name,
            "vm": machine.running.vm,
            "dir": machine.dir.path(),
            "state": seen.state,
            "forwards": seen.forwards,
            "replicas": machine.running.replicas,
            "nbd": machine.running.nbd,
            "register": machine.running.register,
            "switch": machine.running.switch,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{}: up, in {}",
        machine.running.name,
        machine.dir.path().display()
    );
    for forward in &machine.running.forwards {
        println!("  guest port {:5} is {}", forward.guest_port, forward.host);
    }
    println!("  ft-ctl status | watch | console | kill primary | down");
    Ok(ExitCode::SUCCESS)
}

fn role(which: &Which, role: Role) -> Result<wire::running::ReplicaProcess> {
    let (_, running) = RunDir::find(which.name.as_deref())?;
    status::with_role(&running, role)
        .with_context(|| format!("the machine {} has no {role} now", running.name))
}

fn show_status(name: Option<&str>, json: bool) -> Result<()> {
    let (_, running) = RunDir::find(name)?;
    let seen = status::status(&running);
    if json {
        println!("{}", serde_json::to_string_pretty(&seen)?);
        return Ok(());
    }
    println!("{}: {}", seen.name, seen.state);
    if let Some(view) = &seen.view {
        println!("  {view}");
    }
    println!(
        "  vLockstep interval {:.1} ms, log bandwidth {:.2} Mbit/s",
        seen.lag_ms, seen.log_mbit_per_s
    );
    for replica in &seen.replicas {
        println!(
            "  replica {} {:8} pid {:7} {:5} at {} {}",
            replica.replica,
            replica.role.to_string(),
            replica.pid,
            replica.engine,
            replica.position.count,
            replica.state,
        );
        if let Some(details) = replica.details.as_ref().filter(|_| replica.is_live()) {
            println!(
                "    output hold p50 {:.2} ms, p99 {:.2} ms; {} held; speed {:.0} %; {}",
                details.output_hold_ms.p50,
                details.output_hold_ms.p99,
                details.outputs_held,
                details.speed * 100.0,
                details.rate(details.instructions_per_s),
            );
            let stretches = &details.stretches;
            if stretches.closed > 0 {
                println!(
                    "    {} stretches without an exit closed, with {} pages",
                    stretches.closed, stretches.pages
                );
            }
        }
    }
    for (guest, host) in &seen.forwards {
        println!("  guest port {guest:5} is {host}");
    }
    Ok(())
}

fn kill(victim: Victim, which: &Which) -> Result<()> {
    let wanted = match victim {
        Victim::Primary => Role::Primary,
        Victim::Backup => Role::Backup,
    };
    let replica = role(which, wanted)?;
    replica
        .process
        .signal(Signal::SIGKILL)
        .context("it could not be killed")?;
    println!(
        "killed replica {} ({wanted}, pid {})",
        replica.id, replica.process.pid
    );
    Ok(())
}

fn save(file: &std::path::Path, which: &Which) -> Result<()> {
    let live = role(which, Role::Primary)?;
    let path = std::path::absolute(file)?;
    let Some(path) = path.to_str() else {
        bail!("the file's name is not UTF-8")
    };
    let request = Request::Save {
        path: path.to_owned(),
    };
    match ControlClient::connect(&live.control, CONTROL_LONG)?.call(&request)? {
        Response::Saved { path, bytes } => println!("saved {path} ({bytes} bytes) and {path}.disk"),
        other => bail!("unexpected answer: {other:?}"),
    }
    Ok(())
}

fn hash(memory: bool, which: &Which) -> Result<()> {
    let live = role(which, Role::Primary)?;
    match ControlClient::connect(&live.control, CONTROL_LONG)?.call(&Request::Hash { memory })? {
        Response::Hash {
            position,
            registers,
            memory,
            devices,
        } => {
            println!("at {} rip {}", position.count, position.rip);
            println!("registers {registers:016x}\ndevices   {devices:016x}");
            if let Some(memory) = memory {
                println!("memory    {memory:016x}");
            }
        }
        other => bail!("unexpected answer: {other:?}"),
    }
    Ok(())
}

fn view(command: ViewCommand) -> Result<()> {
    let record = match command {
        ViewCommand::Get { register, vm } => RegisterClient::new(register, CONTROL)
            .get(vm)?
            .with_context(|| format!("the register has no machine {vm}"))?,
        ViewCommand::Create {
            register,
            vm,
            primary,
            backup,
            disks,
            reset,
        } => RegisterClient::new(register, CONTROL).create(vm, primary, backup, &disks, reset)?,
    };
    println!("{}", serde_json::to_string_pretty(&record)?);
    Ok(())
}
