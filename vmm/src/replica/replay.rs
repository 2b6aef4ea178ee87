//! The replica that replays: the backup, until it goes live.
//!
//! The loop is the recorder's seen from the other side: run the vCPU to the position of the next
//! entry and never beyond; what it puts out there must be what the mark says, and goes nowhere;
//! what came in takes effect at the very same place. Whatever does not agree is a divergence: the
//! protocol halts this replica, loudly.

use std::collections::VecDeque;

use bytes::Bytes;
use devices::{DiskRequest, Output};
use ftlog::replay::{Divergence, Hashes};
use ftlog::{Entry, Event, PageBlock, Position};

use super::clock::{Pace, PrimaryClock};
use super::convert::{self, Marked};
use super::protocol::{Next, Protocol};
use super::view_of_vcpu::VcpuView;
use crate::machine::{Machine, MachineError, Stop, Stretch};

/// Repeats disk reads whose data the log does not carry (`disk-reads=backup`).
pub trait Reads: Send {
    /// The guest issued a read.
    fn issued(&mut self, request: &DiskRequest);
    /// The data of a read that completed on the primary.
    fn data(&mut self, id: u64) -> Result<Bytes, String>;
}

/// Where the entries come from, and who judges what the replay makes of them: the protocol, or a
/// log file's reader. A `false` ends the replay.
pub trait Log {
    /// The next entry, once there is one.
    fn next(&mut self) -> Next;
    fn arrived(&mut self, at: Position) -> bool;
    fn suppressed(&mut self, at: Position, marked: Marked) -> bool;
    fn hashed(&mut self, hashes: Hashes) -> bool;
    fn applied(&mut self) -> bool;
    fn diverged(&mut self, divergence: Divergence);
}

impl Log for Protocol {
    fn next(&mut self) -> Next {
        Protocol::next(self)
    }
    fn arrived(&mut self, at: Position) -> bool {
        Protocol::arrived(self, at)
    }
    fn suppressed(&mut self, at: Position, marked: Marked) -> bool {
        Protocol::suppressed(self, at, marked)
    }
    fn hashed(&mut self, hashes: Hashes) -> bool {
        Protocol::hashed(self, hashes)
    }
    fn applied(&mut self) -> bool {
        Protocol::applied(self)
    }
    fn diverged(&mut self, divergence: Divergence) {
        Protocol::diverged(self, divergence);
    }
}

/// How a replay ends.
pub enum Replayed {
    /// The log is consumed and this replica is alone: its machine goes on from here. With the
    /// outputs that the guest made after the last mark, and the clock.
    Live {
        machine: Box<Machine>,
        unmarked: Vec<(Position, Marked)>,
        clock: PrimaryClock,
    },
    /// It must not go on, or the log is at its end.
    Ended(Box<Machine>),
}

pub struct Replayer<L> {
    machine: Machine,
    log: L,
    reads: Option<Box<dyn Reads>>,
    /// Outputs of the present position that still have no mark, oldest first.
    made: VecDeque<(Position, Marked)>,
    /// Pages of a stretch whose closing entry has not come. If it never comes, the stretch has not
    /// happened, and they are dropped.
    aside: Vec<PageBlock>,
    clock: PrimaryClock,
    vcpu: VcpuView,
}

impl<L: Log> Replayer<L> {
    /// `reads`: for logs that do not carry what disk reads gave.
    /// `pace`: that of the guest's clock, should this replica go live.
    pub fn new(
        machine: Machine,
        log: L,
        reads: Option<Box<dyn Reads>>,
        vcpu: VcpuView,
        pace: Pace,
    ) -> Self {
        Self {
            machine,
            log,
            reads,
            made: VecDeque::new(),
            aside: Vec::new(),
            clock: PrimaryClock::new(pace),
            vcpu,
        }
    }

    /// Replays until the log ends.
    pub fn run(mut self) -> Result<Replayed, MachineError> {
        loop {
            let (seq, entry) = match self.log.next() {
                Next::Entry(seq, entry) => (seq, entry),
                Next::Live(_) => return Ok(self.live()),
                Next::Halted => return Ok(Replayed::Ended(Box::new(self.machine))),
            };
            if !self.replay(seq, &entry)? {
                return Ok(Replayed::Ended(Box::new(self.machine)));
            }
            self.vcpu.show(&self.machine);
        }
    }

    fn live(self) -> Replayed {
        Replayed::Live {
            machine: Box::new(self.machine),
            unmarked: self.made.into(),
            clock: self.clock,
        }
    }

    /// Replays one entry; `false` ends the replay.
    fn replay(&mut self, seq: u64, entry: &Entry) -> Result<bool, MachineError> {
        let at = entry.at();
        self.run_to(entry.runs_to())?;
        if let Some((made_at, marked)) = self.made.pop_front() {
            return Ok(self.log.suppressed(made_at, marked));
        }
        if let Entry::Stretch {
            interrupts, cpu, ..
        } = entry
        {
            return self.jump(seq, at, *interrupts, cpu);
        }
        if !self.log.arrived(self.machine.position()) {
            return Ok(false);
        }
        match entry {
            Entry::Event {
                clock_ns, event, ..
            } => {
                self.clock.heard(*clock_ns);
                if !self.put_in(seq, at, *clock_ns, event)? {
                    return Ok(false);
                }
            }
            Entry::Hash { memory, .. } => {
                let state = self.machine.hash(memory.is_some());
                let hashes = Hashes {
                    registers: state.registers,
                    devices: state.devices,
                    memory: state.memory,
                };
                if !self.log.hashed(hashes) {
                    return Ok(false);
                }
                self.vcpu.hash_agreed();
            }
            Entry::Pages { pages, .. } => self.aside.push(pages.clone()),
            Entry::Mark { .. } | Entry::Progress { .. } | Entry::Stretch { .. } => {}
        }
        Ok(self.log.applied())
    }

    /// Takes over what the primary's vCPU has become in a stretch that only it has run.
    fn jump(
        &mut self,
        seq: u64,
        at: Position,
        interrupts: u32,
        cpu: &[u8],
    ) -> Result<bool, MachineError> {
        let stands = self.machine.position();
        let outcome =
            Stretch::decode(interrupts, cpu, std::mem::take(&mut self.aside)).and_then(|stretch| {
                let here = stands.count.checked_add(1) == Some(at.count);
                let arrived = if here { stretch.at() } else { stands };
                if !self.log.arrived(arrived) {
                    return Ok(false);
                }
                self.machine.jump(&stretch)?;
                self.vcpu.stretch(stretch.page_count(), interrupts);
                Ok(true)
            });
        match outcome {
            Ok(true) => Ok(self.log.applied()),
            Ok(false) => Ok(false),
            Err(bad) => {
                let what = format!("entry {seq}: {}", crate::errors::chain(&bad));
                self.log.diverged(Divergence::Other { at, what });
                Ok(false)
            }
        }
    }

    /// Runs until the vCPU comes to rest at the position, or puts something out, or cannot get
    /// there. Which of them is right, the log's reader decides.
    fn run_to(&mut self, count: u64) -> Result<(), MachineError> {
        while self.made.is_empty() && self.machine.position().count <= count {
            match self.machine.run(count)? {
                Stop::Output => self.suppress()?,
                // The replay sets no limit to a stretch.
                Stop::Adrift | Stop::Reached | Stop::Idle | Stop::Off(_) => break,
            }
        }
        Ok(())
    }

    /// Keeps what the vCPU put out to be compared with its marks.
    fn suppress(&mut self) -> Result<(), MachineError> {
        let at = self.machine.position();
        for output in self.machine.take_outputs()? {
            match convert::mark(output) {
                Ok(marked) => self.made.push_back((at, marked)),
                Err(Output::Disk(request)) => {
                    if let Some(reads) = &mut self.reads {
                        reads.issued(&request);
                    }
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn put_in(
        &mut self,
        seq: u64,
        at: Position,
        clock_ns: u64,
        event: &Event,
    ) -> Result<bool, MachineError> {
        let data = match self.read_again(event) {
            Ok(data) => data,
            Err(what) => {
                let what = format!("entry {seq}: {what}");
                self.log.diverged(Divergence::Other { at, what });
                return Ok(false);
            }
        };
        self.machine.apply(clock_ns, event.clone(), data)?;
        self.suppress()?;
        Ok(true)
    }

    /// The data of a successful read that the log leaves to us.
    fn read_again(&mut self, event: &Event) -> Result<Option<Bytes>, String> {
        let Event::DiskDone {
            id,
            status: 0,
            data: None,
        } = event
        else {
            return Ok(None);
        };
        if !self.machine.is_read(*id) {
            return Ok(None);
        }
        match &mut self.reads {
            Some(reads) => reads.data(*id).map(Some),
            None => Err(format!(
                "disk request {id} was read from the disk, which this replay does not have"
            )),
        }
    }
}
