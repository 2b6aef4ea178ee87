//! The replica's side of the control API: status, console, save, power.

use std::io::{BufReader, Read, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use engine::EngineInfo;
use ftlog::replica::{HaltReason, Phase};
use ftlog::{EntryKind, ReplicaId, VmId};
use wire::control::client::ControlStream;
use wire::control::server::Handler;
use wire::control::{
    LogBytes, PositionStatus, Protection, Request, Response, Role, Status, Stretches,
};

use super::protocol::Protocol;
use super::record::Command;
use super::view_of_vcpu::VcpuView;
use crate::link::{Arrival, Console, ConsoleLine};

/// How long the vCPU's thread may take to obey (a save of a large memory takes longest).
const OBEY_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Api {
    pub vm: VmId,
    pub id: ReplicaId,
    pub engine: EngineInfo,
    pub protocol: Protocol,
    pub vcpu: VcpuView,
    pub commands: Sender<Command>,
    pub arrivals: Sender<Arrival>,
    pub serial: Console,
    pub log_addr: Option<String>,
    pub started: Instant,
}

impl Handler for Api {
    fn handle(&self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(self.status())),
            // As if the host had failed: no destructor, no goodbye.
            Request::Kill => std::process::abort(),
            Request::Quit => {
                self.protocol.quit();
                Response::Done
            }
            Request::Console => Response::Done,
            Request::Poweroff => self.tell(Command::PowerOff, || Response::Done),
            Request::Reset => self.tell(Command::Reset, || Response::Done),
            Request::Save { path } => {
                let (reply, answer) = crossbeam_channel::bounded(1);
                let command = Command::Save {
                    path: path.clone().into(),
                    reply,
                };
                self.ask(command, &answer, |saved| match saved {
                    Ok(bytes) => Response::Saved { path, bytes },
                    Err(message) => Response::Error { message },
                })
            }
            Request::Hash { memory } => {
                let (reply, answer) = crossbeam_channel::bounded(1);
                self.ask(
                    Command::Hash { memory, reply },
                    &answer,
                    |(position, hash)| Response::Hash {
                        position: PositionStatus::new(position.count, position.rip),
                        registers: hash.registers,
                        memory: hash.memory,
                        devices: hash.devices,
                    },
                )
            }
        }
    }

    /// What the guest says on ttyS0 goes out, what comes in is typed.
    fn console(&self, stream: BufReader<ControlStream>) {
        let Ok(mut writer) = stream.get_ref().try_clone() else {
            return;
        };
        let (history, said) = self.serial.watch();
        let typed = self.arrivals.clone();
        let reader = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || type_in(stream, &typed));
        if writer.write_all(&history).is_err() || reader.is_err() {
            return;
        }
        for chunk in said {
            if writer.write_all(&chunk).is_err() {
                break;
            }
        }
        writer.close();
    }
}

/// Keystrokes, in pieces that fit the guest's FIFO.
fn type_in(mut stream: BufReader<ControlStream>, typed: &Sender<Arrival>) {
    let mut buffer = [0; 16];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        let bytes = Bytes::copy_from_slice(&buffer[..length]);
        if typed
            .send(Arrival::Typed(ConsoleLine::Serial, bytes))
            .is_err()
        {
            return;
        }
    }
}

impl Api {
    fn tell(&self, command: Command, done: impl FnOnce() -> Response) -> Response {
        if let Some(refusal) = self.not_live() {
            return refusal;
        }
        if self.commands.send(command).is_err() {
            return gone();
        }
        // It fails if the vCPU has taken the command already, and ended by it.
        let _ = self.arrivals.send(Arrival::Wake);
        done()
    }

    fn ask<T>(
        &self,
        command: Command,
        answer: &Receiver<T>,
        respond: impl FnOnce(T) -> Response,
    ) -> Response {
        if let Response::Error { message } = self.tell(command, || Response::Done) {
            return Response::Error { message };
        }
        match answer.recv_timeout(OBEY_TIMEOUT) {
            Ok(answer) => respond(answer),
            Err(RecvTimeoutError::Timeout) => Response::Error {
                message: "the vCPU did not come to rest in time".to_owned(),
            },
            Err(RecvTimeoutError::Disconnected) => gone(),
        }
    }

    /// Only the live replica takes commands: what they do is an event of the log.
    fn not_live(&self) -> Option<Response> {
        let phase = self.protocol.phase();
        let live = matches!(phase, Phase::Protected | Phase::Alone);
        (!live).then(|| Response::Error {
            message: format!("this replica is not live ({phase:?}); ask the other one"),
        })
    }

    fn stretches(&self, log_bytes: &LogBytes) -> Stretches {
        let (closed, pages, interrupts) = self.vcpu.stretches();
        let kinds = [EntryKind::Pages, EntryKind::Stretch];
        let bytes = kinds.iter().filter_map(|kind| log_bytes.get(kind.name()));
        Stretches {
            closed,
            pages,
            interrupts,
            bytes: bytes.sum(),
        }
    }

    fn status(&self) -> Status {
        let figures = self.protocol.figures();
        let phase = self.protocol.phase();
        let halted = self.protocol.halted();
        Status {
            vm: self.vm,
            replica: self.id,
            role: role(phase, figures.recording),
            state: protection(phase, halted),
            view: self.protocol.view(),
            pid: std::process::id(),
            engine: self.engine.name.to_owned(),
            counts: self.engine.counts.to_string(),
            position: PositionStatus::new(self.vcpu.count(), self.vcpu.rip()),
            guest_clock_ns: self.vcpu.clock_ns(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            lag_ms: figures.lag_ms,
            lag_quantiles_ms: figures.lag_quantiles_ms,
            log_mbit_per_s: figures.log_mbit_per_s,
            log_bytes: figures.log_bytes.clone(),
            log_entries: figures.log_entries,
            output_hold_ms: figures.hold_ms,
            outputs_held: figures.outputs_held,
            speed: figures.speed,
            instructions_per_s: self.protocol.instruction_rate(self.vcpu.count()),
            stretches: self.stretches(&figures.log_bytes),
            exits: self.vcpu.exits(),
            address: self.log_addr.clone(),
            hashes_compared: self.vcpu.hashes(),
            last_failover: self.protocol.timeline().last(),
        }
    }
}

fn gone() -> Response {
    Response::Error {
        message: "the vCPU has stopped".to_owned(),
    }
}

fn role(phase: Phase, recording: bool) -> Role {
    match phase {
        Phase::Starting | Phase::Protected => Role::Primary,
        Phase::Claiming if recording => Role::Primary,
        Phase::Waiting | Phase::Replaying | Phase::Draining | Phase::Claiming => Role::Backup,
        Phase::Alone => Role::Solo,
        Phase::Halted => Role::Halted,
    }
}

fn protection(phase: Phase, halted: Option<HaltReason>) -> Protection {
    match (phase, halted) {
        (_, Some(HaltReason::PoweredOff)) => Protection::NotRunning,
        (_, Some(reason)) => Protection::Halted(reason.to_string()),
        (Phase::Starting | Phase::Waiting, None) => Protection::Starting,
        (Phase::Protected | Phase::Replaying, None) => Protection::Protected,
        (Phase::Claiming | Phase::Draining | Phase::Alone, None) => Protection::NeedBackup,
        (Phase::Halted, None) => Protection::NotRunning,
    }
}
