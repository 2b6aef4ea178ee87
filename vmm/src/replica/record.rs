//! The replica that records: primary of a pair, or solo.
//!
//! The loop is the paper's: run the vCPU; what it put out gets a mark and waits; what came in gets
//! an entry with its exact position and then takes effect. Nothing else touches the guest.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use devices::Output;
use ftlog::primary::AppendError;
use ftlog::replica::Phase;
use ftlog::{Control, CountUnit, Entry, Event, Position};

use super::clock::HostClock;
use super::convert;
use super::drift::Drift;
use super::protocol::Protocol;
use super::saving::Saver;
use super::slice::Slice;
use super::view_of_vcpu::VcpuView;
use crate::link::{Arrival, ConsoleLine};
use crate::machine::{Machine, MachineError, Off, StateHash, Stop};

/// The clock is re-based at least this often while the vCPU runs, in virtual nanoseconds (1 ms).
/// The entry also lets the backup run up to here.
const REBASE_NS: u64 = 1_000_000;
/// Frames that wait for the guest's receive buffers; more are dropped, as a full NIC does.
const FRAMES_MAX: usize = 1024;
/// The longest wait of an idle vCPU without looking around (1 s).
const IDLE_MAX: Duration = Duration::from_secs(1);
/// An off machine waits this long for the acknowledgement of its last outputs at a time.
const OFF_WAIT: Duration = Duration::from_millis(20);

/// What an administrator asks of the vCPU's thread.
#[derive(Debug)]
pub enum Command {
    /// Save the machine's state; the answer is the file's size in bytes.
    Save {
        path: PathBuf,
        reply: Sender<Result<u64, String>>,
    },
    Hash {
        memory: bool,
        reply: Sender<(Position, StateHash)>,
    },
    PowerOff,
    Reset,
}

/// Instructions that an exit stands for where an interval is given in instructions.
const INSTRUCTIONS_PER_EXIT: u64 = 10_000;

/// How the machine's state is compared between replicas.
#[derive(Clone, Copy, Debug)]
pub struct HashPolicy {
    /// Counts between two hashes; 0: never.
    pub interval: u64,
    /// Of all of memory too.
    pub memory: bool,
}

impl HashPolicy {
    /// `interval` in instructions, for an engine that counts so.
    pub fn new(interval: u64, memory: bool, counted: CountUnit) -> Self {
        let interval = match counted {
            CountUnit::Exits => interval.div_ceil(INSTRUCTIONS_PER_EXIT),
            CountUnit::Instructions | CountUnit::Branches => interval,
        };
        Self { interval, memory }
    }
}

/// Why the recording ended with an error. Whatever the guest does is no reason.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("what happened to the guest could not be logged")]
    Log(#[from] AppendError),
}

/// What a recorder is made of.
pub struct Recorder {
    pub machine: Machine,
    pub clock: HostClock,
    pub protocol: Protocol,
    pub arrivals: Receiver<Arrival>,
    pub commands: Receiver<Command>,
    pub hashes: HashPolicy,
    /// Whether the log carries what disk reads gave.
    pub log_reads: bool,
    /// Where others see how far the vCPU is.
    pub vcpu: VcpuView,
    pub saver: Saver,
    pub queues: Queues,
}

/// What the recorder keeps between two slices.
pub struct Queues {
    slice: Slice,
    drift: Drift,
    frames: VecDeque<(u64, u64, Bytes)>,
    typed: VecDeque<(ConsoleLine, Bytes)>,
    next_hash: u64,
    last_event_ns: u64,
}

impl Queues {
    /// For an engine that counts so, and stops a vCPU without exits after `stretch`.
    pub fn new(counted: CountUnit, stretch: Duration) -> Self {
        Self {
            slice: Slice::new(counted),
            drift: Drift::new(stretch),
            frames: VecDeque::new(),
            typed: VecDeque::new(),
            next_hash: 0,
            last_event_ns: 0,
        }
    }
}

impl Recorder {
    /// Runs until the machine is off or this replica has to stop; `Protocol::halted` says why.
    pub fn run(mut self) -> Result<Option<Off>, RecordError> {
        self.put_out()?; // a backup that has just gone live may have outputs that have no mark
        while let Some(share) = self.protocol.may_run() {
            self.queues.slice.slow_down(share);
            let until = self.queues.slice.end(self.machine.position().count);
            match self.machine.run(until)? {
                Stop::Output => {
                    self.put_out()?;
                    let count = self.machine.position().count;
                    self.queues.slice.put_out(count);
                    continue; // events are taken only where the vCPU has come to rest
                }
                Stop::Reached => self.queues.slice.reached(),
                Stop::Idle => self.wait()?,
                Stop::Adrift if !self.must_close() => {
                    if self.machine.position().count > until {
                        // Its counter has stopped the vCPU too late: what it was to reach is past.
                        self.queues.slice.over();
                    }
                    continue;
                }
                Stop::Adrift => self.close_stretch()?,
                Stop::Off(_) => std::thread::sleep(OFF_WAIT),
            }
            self.queues.slice.over();
            self.vcpu.show(&self.machine);
            self.take_arrivals()?;
            self.keep_time()?;
            self.compare()?;
            self.forget_dirty();
            self.protocol.tick();
        }
        Ok(self.machine.off())
    }

    /// The Output Rule: each output is marked and leaves when the mark is acknowledged. The vCPU
    /// does not wait.
    fn put_out(&mut self) -> Result<(), RecordError> {
        let at = self.machine.position();
        let mut marked = Vec::new();
        for output in self.machine.take_outputs()? {
            match convert::mark(output) {
                Ok(output) => marked.push(output),
                // A read shows nothing to the outside and needs no acknowledgement; it comes after
                // what the guest put out before it.
                Err(Output::Disk(request)) => {
                    self.protocol.put_out(at, std::mem::take(&mut marked))?;
                    self.protocol.read_issued(&request);
                    self.protocol.outlet().read(request);
                }
                Err(_) => {}
            }
        }
        Ok(self.protocol.put_out(at, marked)?)
    }

    /// Whether the vCPU, which stands where no position is, must be given one: something waits for
    /// the guest, or it has been there for too long.
    fn must_close(&mut self) -> bool {
        let queued = !self.queues.frames.is_empty() && self.machine.can_receive()
            || (self.queues.typed.front())
                .is_some_and(|(line, _)| self.machine.console_can_receive(*line));
        let waits =
            queued || self.timer_is_due() || !self.arrivals.is_empty() || !self.commands.is_empty();
        let count = self.machine.position().count;
        self.queues.drift.is_long(count) || waits
    }

    /// Gives the vCPU a position where it stands. A backup, which stands at the last one, gets what
    /// has become of the guest since.
    fn close_stretch(&mut self) -> Result<(), RecordError> {
        let followed = self.protocol.phase() == Phase::Protected;
        let stretch = self.machine.close_stretch(followed)?;
        let pages = stretch.page_count();
        self.queues.drift.closed(pages);
        self.queues.slice.reached();
        self.vcpu.stretch(pages, stretch.interrupts());
        if followed {
            for entry in stretch.into_entries() {
                self.protocol.append(&entry)?;
            }
        }
        Ok(())
    }

    /// From time to time the account of written pages begins anew: stretches then stay small.
    fn forget_dirty(&mut self) {
        if self.machine.goes_adrift()
            && self.protocol.phase() == Phase::Protected
            && self.queues.drift.forgets()
        {
            self.machine.forget_dirty();
        }
    }

    /// Logs an event at the present position with `log`, then lets it take effect. `None`: this
    /// replica has halted, and the guest was left alone.
    fn put_in(
        &mut self,
        event: Event,
        data: Option<Bytes>,
        log: impl FnOnce(&Protocol, &Entry) -> Result<Option<u64>, AppendError>,
    ) -> Result<Option<u64>, RecordError> {
        let clock_ns = self.clock.now().max(self.machine.now());
        let at = self.machine.position();
        let entry = Entry::Event {
            at,
            clock_ns,
            event,
        };
        let Some(seq) = log(&self.protocol, &entry)? else {
            return Ok(None);
        };
        self.queues.last_event_ns = clock_ns;
        let Entry::Event { event, .. } = entry else {
            unreachable!("it was made here")
        };
        self.machine.apply(clock_ns, event, data)?;
        self.put_out()?;
        Ok(Some(seq))
    }

    fn take_arrivals(&mut self) -> Result<(), RecordError> {
        while let Ok(arrival) = self.arrivals.try_recv() {
            self.take(arrival)?;
        }
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command)?;
        }
        self.feed_guest()
    }

    fn take(&mut self, arrival: Arrival) -> Result<(), RecordError> {
        match arrival {
            Arrival::Frame {
                connection,
                number,
                frame,
            } => {
                if self.queues.frames.len() < FRAMES_MAX {
                    self.queues.frames.push_back((connection, number, frame));
                }
            }
            Arrival::Disk(answer) => {
                let carry = self.log_reads || self.protocol.must_carry(answer.id);
                let event = convert::disk_event(&answer, carry);
                let data = answer.result.ok().filter(|data| !data.is_empty());
                let with_data = carry || data.is_none();
                if let Some(seq) = self.put_in(event, data, Protocol::append)? {
                    self.protocol.disk_done(answer.id, seq, with_data);
                }
            }
            Arrival::Typed(line, bytes) => self.queues.typed.push_back((line, bytes)),
            Arrival::Fenced { by, view, reason } => self.protocol.fenced(by, view, &reason),
            Arrival::Wake => {}
        }
        Ok(())
    }

    /// Frames and key strokes enter when the guest has room for them.
    fn feed_guest(&mut self) -> Result<(), RecordError> {
        while self.machine.can_receive()
            && let Some((connection, number, frame)) = self.queues.frames.pop_front()
        {
            self.put_in(Event::NetReceive(frame), None, |protocol, entry| {
                protocol.append_frame(entry, connection, number)
            })?;
        }
        while let Some((line, _)) = self.queues.typed.front()
            && self.machine.console_can_receive(*line)
            && let Some((line, bytes)) = self.queues.typed.pop_front()
        {
            self.put_in(convert::typed(line, bytes), None, Protocol::append)?;
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) -> Result<(), RecordError> {
        match command {
            Command::PowerOff => self.control(Control::PowerOff)?,
            Command::Reset => self.control(Control::Reset)?,
            Command::Hash { memory, reply } => {
                let hash = self.hash(memory)?;
                // Whoever asked may have gone.
                let _ = reply.send((self.machine.position(), hash));
            }
            Command::Save { path, reply } => {
                let saved = self.saver.save(&self.machine, &path);
                let _ = reply.send(saved.map_err(|why| crate::errors::chain(&why)));
            }
        }
        Ok(())
    }

    fn control(&mut self, control: Control) -> Result<(), RecordError> {
        self.put_in(Event::Control(control), None, Protocol::append)
            .map(drop)
    }

    /// Moves the clock when a timer of the board is due, and from time to time anyway.
    fn keep_time(&mut self) -> Result<(), RecordError> {
        let now = self.clock.now();
        if self.timer_is_due() || now >= self.queues.last_event_ns.saturating_add(REBASE_NS) {
            self.put_in(Event::Timer, None, Protocol::append)?;
        }
        Ok(())
    }

    fn timer_is_due(&self) -> bool {
        let deadline = self.machine.next_deadline();
        deadline.is_some_and(|deadline| deadline <= self.clock.now())
    }

    /// From time to time the backup is told what its state must be.
    fn compare(&mut self) -> Result<(), RecordError> {
        let count = self.machine.position().count;
        if self.hashes.interval > 0 && count >= self.queues.next_hash {
            self.hash(self.hashes.memory)?;
            self.queues.next_hash = count.saturating_add(self.hashes.interval);
        }
        Ok(())
    }

    fn hash(&mut self, memory: bool) -> Result<StateHash, RecordError> {
        let hash = self.machine.hash(memory);
        self.protocol.append(&Entry::Hash {
            at: self.machine.position(),
            registers: hash.registers,
            memory: hash.memory,
            devices: hash.devices,
        })?;
        Ok(hash)
    }

    /// The vCPU waits for an interrupt: so do we, for an arrival or the next timer.
    fn wait(&mut self) -> Result<(), RecordError> {
        self.queues.slice.idled();
        if !self.commands.is_empty() {
            return Ok(());
        }
        let timeout = match self.machine.next_deadline() {
            Some(deadline) => self.clock.until(deadline),
            None => IDLE_MAX,
        };
        match self.arrivals.recv_timeout(timeout.min(IDLE_MAX)) {
            Ok(arrival) => self.take(arrival),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}
