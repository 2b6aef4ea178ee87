//! One replica of a virtual machine: the machine, the protocol and the connections, put together.
//!
//! ```text
//!   link::{net, disk, console} --arrivals--> vCPU thread (record | replay) <--entries-- protocol
//!            ^                                  | marks, events                          |  ^
//!            +---------- outlet <---released----+----------> protocol --bytes--> channel-+  |
//!                                                              |  claims --> register ------+
//! ```
//!
//! Threads: the vCPU; the channel's two; the register's; the timer; the outlet; one for each link;
//! the control API's. All but the vCPU's only move bytes.

mod channel;
mod clock;
mod control;
pub mod convert;
mod drift;
mod lease;
mod metrics;
pub mod offline;
mod outlet;
mod protocol;
mod read_again;
mod record;
pub mod replay;
mod saving;
mod setup;
mod slice;
mod threads;
mod timeline;
mod view_of_vcpu;

pub use setup::{ReadyAt, Role, SetupError, Spec};
pub use view_of_vcpu::VcpuView;

use std::time::Duration;

use crossbeam_channel::Receiver;
use devices::Output;
use ftlog::replica::HaltReason;

use crate::link::Arrival;
use crate::machine::{Machine, MachineError, Off};
use clock::{HostClock, Pace};
use outlet::Release;
use protocol::Protocol;
use record::{Command, HashPolicy, Queues, RecordError, Recorder};
use replay::{Reads, Replayed, Replayer};

/// How a replica's life ended.
#[derive(Debug)]
pub enum Ended {
    /// The guest is off.
    Off(Off),
    /// This replica had to stop.
    Halted(HaltReason),
    /// It was asked to end.
    Quit,
}

/// Why a replica could not go on: its own host's or program's fault.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error("the machine cannot go on")]
    Machine(#[from] MachineError),
    #[error("recording cannot go on")]
    Record(#[from] RecordError),
}

/// Runs a replica to its end.
pub fn run(spec: Spec) -> Result<Ended, ReplicaError> {
    let ready = setup::prepare(spec)?;
    ready.run()
}

/// A replica that is set up: what its vCPU's thread needs.
struct Ready {
    machine: Machine,
    role: Role,
    protocol: Protocol,
    arrivals: Receiver<Arrival>,
    commands: Receiver<Command>,
    hashes: HashPolicy,
    /// How long the vCPU may run without an exit while it is recorded.
    stretch: Duration,
    /// Of the guest's clock.
    pace: Pace,
    log_reads: bool,
    reads: Option<Box<dyn Reads>>,
    vcpu: VcpuView,
    saver: saving::Saver,
    /// Ends the control API when it goes.
    _control: Option<wire::control::server::ControlServer>,
    register: Option<setup::PowerRegister>,
}

impl Ready {
    fn run(mut self) -> Result<Ended, ReplicaError> {
        let reads = self.reads.take();
        let (machine, clock) = match self.role {
            Role::Primary | Role::Solo => {
                // A saved machine may have been saved with requests in flight.
                reissue(&self.machine, &self.protocol);
                let clock = HostClock::from(self.machine.now(), self.pace);
                (self.machine, clock)
            }
            Role::Backup => {
                let log = self.protocol.clone();
                let replayer =
                    Replayer::new(self.machine, log, reads, self.vcpu.clone(), self.pace);
                match replayer.run()? {
                    Replayed::Live {
                        machine,
                        unmarked,
                        clock,
                    } => {
                        let clock = clock.take_over(machine.now());
                        go_live(*machine, unmarked, clock, &self.protocol)
                    }
                    Replayed::Ended(machine) => return Ok(ended(&self.protocol, machine.off())),
                }
            }
        };
        let mut machine = machine;
        machine.set_stretch_limit(Some(self.stretch));
        let queues = Queues::new(machine.engine_info().counts, self.stretch);
        let off = Recorder {
            machine,
            clock,
            protocol: self.protocol.clone(),
            arrivals: self.arrivals,
            commands: self.commands,
            hashes: self.hashes,
            log_reads: self.log_reads,
            vcpu: self.vcpu,
            saver: self.saver,
            queues,
        }
        .run()?;
        let end = ended(&self.protocol, off);
        self.protocol.outlet().drain();
        if let (Ended::Off(_), Some(register)) = (&end, self.register) {
            register.off(self.protocol.view());
        }
        Ok(end)
    }
}

/// The design's rule 7: the log is consumed and the protocol has released what the old primary may
/// not have sent. Disk requests without a completion are issued again, the outputs behind the last
/// mark are made, and the network is told where the guest is now.
fn go_live(
    mut machine: Machine,
    unmarked: Vec<(ftlog::Position, convert::Marked)>,
    clock: HostClock,
    protocol: &Protocol,
) -> (Machine, HostClock) {
    let outlet = protocol.outlet();
    reissue(&machine, protocol);
    for (at, marked) in unmarked {
        // Disk requests are among those in flight.
        if !matches!(marked.output, Output::Disk(_)) {
            let outcome = protocol.put_out(at, vec![marked]);
            debug_assert!(outcome.is_ok(), "alone, nothing is encoded");
        }
    }
    if let Some(frame) = machine.announcement() {
        outlet.release(Release::Output(None, Output::NetTransmit(frame)));
    }
    protocol.timeline().live();
    (machine, clock)
}

/// Issues the disk requests that have no completion (again).
fn reissue(machine: &Machine, protocol: &Protocol) {
    for request in machine.disk_in_flight() {
        protocol
            .outlet()
            .release(Release::Output(None, Output::Disk(request)));
    }
}

fn ended(protocol: &Protocol, off: Option<Off>) -> Ended {
    match (protocol.halted(), off) {
        (Some(HaltReason::PoweredOff), off) => Ended::Off(off.unwrap_or(Off::Power)),
        (None, _) => Ended::Quit,
        (Some(reason), _) => Ended::Halted(reason),
    }
}
