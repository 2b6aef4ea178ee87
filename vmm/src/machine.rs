//! The machine: one vCPU, the board and the memory, as one deterministic state machine.
//!
//! `run` takes the vCPU from boundary to boundary; whatever the guest asks of the board is answered
//! here, at once, as a function of the machine's own state. Nothing comes in from outside but
//! through [`Machine::deliver`], and nothing leaves but as an [`Output`]. Recording and replaying
//! are therefore the same code: they differ only in who calls `deliver`, and when.

mod stretch;

use bytes::Bytes;
use devices::{Board, BoardSpec, DiskOp, DiskRequest, Input, Output};
use engine::{Boundary, ClockBase, Engine, EngineError, EngineInfo, Entry, Exit, PendingRead};
use ftlog::{Control, Event, Position};

use crate::boot::{self, BootError, BootSpec};
use crate::link::ConsoleLine;
use crate::memory::{GuestRam, MemoryError};
use crate::replica::convert;
use crate::save::State;

pub use stretch::{BadStretch, Stretch};

/// Why the machine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The position asked for is reached.
    Reached,
    /// The vCPU waits for an interrupt.
    Idle,
    /// The vCPU ran past its position for longer than the engine's limit without an exit, and stands
    /// where no position is.
    Adrift,
    /// Outputs wait in [`Machine::take_outputs`], or the vCPU had shut down and was reset.
    Output,
    /// The machine is off and does not run again.
    Off(Off),
}

/// How the machine went off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Off {
    /// The guest turned the power off.
    Power,
    /// The guest wrote this to the exit port.
    Exit(u32),
}

impl Off {
    /// The exit status of a program that ran the machine: 0, or 64 + n for an n (its low 6 bits) on
    /// the exit port. Lower ones are the program's own failures.
    pub fn exit_status(self) -> u8 {
        match self {
            Off::Power => 0,
            Off::Exit(code) => 64 + (code & 63) as u8,
        }
    }

    /// The other way; `None`: the program failed.
    pub fn from_exit_status(status: u8) -> Option<Self> {
        match status {
            0 => Some(Off::Power),
            64..128 => Some(Off::Exit(u32::from(status - 64))),
            _ => None,
        }
    }
}

impl std::fmt::Display for Off {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Off::Power => f.write_str("the guest turned its power off"),
            Off::Exit(code) => write!(f, "the guest wrote {code} to the exit port"),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("the CPU engine failed")]
    Engine(#[from] EngineError),
    #[error("the guest could not be loaded")]
    Load(#[source] BootError),
    #[error("the saved state of the devices is not understood: {0}")]
    Devices(String),
    #[error("the guest's memory could not be cleared")]
    Memory(#[from] MemoryError),
}

/// A hash of the machine's state at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateHash {
    pub registers: u64,
    pub devices: u64,
    pub memory: Option<u64>,
}

pub struct Machine {
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) ram: GuestRam,
    pub(crate) core: Core,
    boot: BootSpec,
    /// The vCPU stands where no position is.
    adrift: bool,
    /// Interrupts that entered since the vCPU's count was this.
    entered: (u64, u32),
}

/// Everything of the machine that is neither the vCPU nor memory: what a saved state keeps beside
/// them, in one piece.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Core {
    pub board: Board,
    pub clock: ClockBase,
    /// How many outputs there were since power-on.
    pub outputs: u64,
    /// The power was cut, and the output that says so has not been taken yet.
    pub cut: bool,
    pub off: Option<Off>,
}

impl Machine {
    /// A machine at power-on: the guest loaded, the vCPU at its entry.
    pub fn power_on(
        mut engine: Box<dyn Engine>,
        ram: GuestRam,
        boot: BootSpec,
        spec: &BoardSpec,
    ) -> Result<Self, MachineError> {
        let state = boot::load(&ram, &boot).map_err(MachineError::Load)?;
        for range in ram.take_written() {
            engine.memory_written(range);
        }
        engine.set_state(&state)?;
        let core = Core {
            board: Board::new(spec),
            clock: ClockBase::at_power_on(engine.info().ns_per_count),
            outputs: 0,
            cut: false,
            off: None,
        };
        engine.set_clock(core.clock);
        Ok(Self::new(engine, ram, core, boot))
    }

    /// A machine that goes on from a saved state; `ram` holds its memory already.
    pub fn resume(
        mut engine: Box<dyn Engine>,
        ram: GuestRam,
        boot: BootSpec,
        state: &State,
    ) -> Result<Self, MachineError> {
        let (core, rest): (Core, _) = postcard::take_from_bytes(&state.board)
            .map_err(|why| MachineError::Devices(why.to_string()))?;
        if !rest.is_empty() {
            return Err(MachineError::Devices("bytes are left over".to_owned()));
        }
        for range in ram.take_written() {
            engine.memory_written(range);
        }
        engine.set_state(&state.cpu)?;
        engine.set_clock(core.clock);
        Ok(Self::new(engine, ram, core, boot))
    }

    fn new(engine: Box<dyn Engine>, ram: GuestRam, core: Core, boot: BootSpec) -> Self {
        Self {
            engine,
            ram,
            core,
            boot,
            adrift: false,
            entered: (0, 0),
        }
    }

    /// The state as it is saved; memory goes beside it.
    pub fn state(&self) -> State {
        State {
            cpu: self.engine.state(),
            clock: self.core.clock,
            board: self.core_bytes(),
            outputs: self.core.outputs,
        }
    }

    /// What is booted, and again after a reset.
    pub fn boot_spec(&self) -> &BootSpec {
        &self.boot
    }

    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    pub fn engine_info(&self) -> EngineInfo {
        self.engine.info()
    }

    /// The guest's exits by kind, as far as the engine counts them.
    pub fn exit_counts(&self) -> Vec<(&'static str, u64)> {
        self.engine.exit_counts()
    }

    /// Runs to the position `until`, or until something needs the caller.
    pub fn run(&mut self, until: u64) -> Result<Stop, MachineError> {
        let mut entry = Entry::Resume;
        loop {
            if let Some(off) = self.core.off {
                return Ok(Stop::Off(off));
            }
            // An interrupt enters only on the way forward: at `until` more may yet happen before it,
            // and where the caller looks around must not matter to the guest. Nor must where a vCPU
            // that is adrift was stopped: there the window says when one can be taken.
            if entry == Entry::Resume && !self.adrift && self.position().count < until {
                self.offer_interrupt()?;
            }
            let exit = self.engine.run(Some(until), entry)?;
            self.adrift = exit == Exit::Adrift;
            entry = match exit {
                Exit::Pending(read) => Entry::Answer(self.answer(read)),
                Exit::Adrift => return Ok(Stop::Adrift),
                Exit::Boundary(boundary) => match self.at_boundary(boundary, until)? {
                    Some(stop) => return Ok(stop),
                    None => Entry::Resume,
                },
            };
        }
    }

    /// Puts an asynchronous input in, here and now, with the clock reading `clock_ns`. The answer
    /// says whether the board took it: an input for a device that the guest has reset meanwhile is
    /// dropped, on both replicas alike.
    pub fn deliver(&mut self, clock_ns: u64, input: Option<Input>) -> bool {
        let count = self.engine.position().count;
        self.core.clock = self.core.clock.rebased(count, clock_ns);
        self.engine.set_clock(self.core.clock);
        self.core.board.advance(self.now());
        let Some(input) = input else { return true };
        let taken = self.core.board.deliver(self.ram.memory().as_ref(), input);
        self.tell_engine();
        taken
            .inspect_err(|why| tracing::debug!(%why, "input dropped"))
            .is_ok()
    }

    /// Lets a logged event take effect; `data` are those of a disk read that the log left out.
    pub fn apply(
        &mut self,
        clock_ns: u64,
        event: Event,
        data: Option<Bytes>,
    ) -> Result<(), MachineError> {
        match event {
            Event::Control(Control::PowerOff) => self.power_off(),
            Event::Control(Control::Reset) => self.reset()?,
            event => {
                self.deliver(clock_ns, convert::input(event, data));
            }
        }
        Ok(())
    }

    /// The outputs since the last call, oldest first. All of them happened at the present position.
    /// A reset takes effect here.
    pub fn take_outputs(&mut self) -> Result<Vec<Output>, MachineError> {
        let mut outputs = self.core.board.take_outputs();
        if std::mem::take(&mut self.core.cut) {
            outputs.push(Output::PowerOff);
        }
        for output in &outputs {
            match output {
                Output::Reset => self.reset()?,
                Output::PowerOff => self.core.off = Some(Off::Power),
                Output::Exit(code) => self.core.off = Some(Off::Exit(*code)),
                Output::NetTransmit(_) | Output::Disk(_) | Output::Console { .. } => {}
            }
        }
        self.core.outputs += outputs.len() as u64;
        Ok(outputs)
    }

    /// Whether `take_outputs` would give any.
    pub fn has_outputs(&self) -> bool {
        self.core.cut || self.core.board.has_outputs()
    }

    pub fn position(&self) -> Position {
        self.engine.position()
    }

    /// What the clock reads here: virtual nanoseconds since power-on.
    pub fn now(&self) -> u64 {
        self.core.clock.at(self.engine.position().count)
    }

    /// When the next timer of the board is due, in virtual nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        self.core.board.next_deadline()
    }

    pub fn can_receive(&self) -> bool {
        self.core.board.can_receive(self.ram.memory().as_ref())
    }

    /// Whether the guest takes what is typed at a console.
    pub fn console_can_receive(&self, line: ConsoleLine) -> bool {
        match line {
            ConsoleLine::Serial => self.core.board.serial_can_receive(),
            ConsoleLine::Virtio => self.core.board.console_can_receive(),
        }
    }

    /// Disk requests without a completion, oldest first: what a replica that goes live re-issues.
    pub fn disk_in_flight(&self) -> Vec<DiskRequest> {
        self.core.board.pending_disk()
    }

    /// The frame that tells the network where the guest's MAC address is now.
    pub fn announcement(&mut self) -> Option<Vec<u8>> {
        self.core.board.announce()
    }

    /// Whether the disk request `id` is a read in flight.
    pub fn is_read(&self, id: u64) -> bool {
        let request = self.core.board.pending_request(id);
        request.is_some_and(|request| request.op == DiskOp::Read)
    }

    /// Cuts the power: the next thing that the machine puts out is that it is off.
    pub fn power_off(&mut self) {
        self.core.cut = true;
    }

    pub fn off(&self) -> Option<Off> {
        self.core.off
    }

    /// The state's hash at this position; of memory too if asked (about a second for 4 GiB).
    pub fn hash(&self, with_memory: bool) -> StateHash {
        StateHash {
            registers: self.engine.state().hash(),
            devices: xxhash_rust::xxh3::xxh3_64(&self.core_bytes()),
            memory: with_memory.then(|| self.ram.hash()),
        }
    }

    fn core_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.core).expect("the devices' state is plain data")
    }

    fn at_boundary(
        &mut self,
        boundary: Boundary,
        until: u64,
    ) -> Result<Option<Stop>, MachineError> {
        let goes_on = self.position().count < until;
        match boundary {
            Boundary::Reached => return Ok(Some(Stop::Reached)),
            Boundary::IoWrite { port, size, value } => {
                let now = self.now();
                self.core
                    .board
                    .io_write(self.ram.memory().as_ref(), now, port, size, value);
                self.tell_engine();
            }
            Boundary::MmioWrite { addr, size, value } => {
                let now = self.now();
                self.core
                    .board
                    .mmio_write(self.ram.memory().as_ref(), now, addr, size, value);
                self.tell_engine();
            }
            // Without ACPI this is how Linux turns the power off.
            Boundary::Halt {
                interrupts_enabled: false,
            } => self.power_off(),
            Boundary::Halt {
                interrupts_enabled: true,
            } if goes_on && self.core.board.interrupt_pending() => {}
            Boundary::Halt {
                interrupts_enabled: true,
            } => return Ok(Some(Stop::Idle)),
            Boundary::Window if goes_on => {}
            Boundary::Window => return Ok(Some(Stop::Reached)),
            Boundary::Shutdown if goes_on => {
                // It counts as an instruction. Otherwise a guest whose first instruction faults
                // would be reset for ever at one position, which nobody could ever reach the end of.
                let count = self.position().count + 1;
                self.reset_at(count)?;
                return Ok(Some(Stop::Output));
            }
            Boundary::Shutdown => return Ok(Some(Stop::Reached)),
        }
        Ok(self.has_outputs().then_some(Stop::Output))
    }

    /// The value of a synchronous read. Inside an instruction the clock stands at its beginning.
    fn answer(&mut self, read: PendingRead) -> u64 {
        let now = self.now();
        let memory = self.ram.memory().as_ref();
        let value = match read {
            PendingRead::Io { port, size } => {
                u64::from(self.core.board.io_read(memory, now, port, size))
            }
            PendingRead::Mmio { addr, size } => self.core.board.mmio_read(memory, now, addr, size),
        };
        self.tell_engine();
        value
    }

    fn offer_interrupt(&mut self) -> Result<(), MachineError> {
        let pending = self.core.board.interrupt_pending();
        if pending && self.engine.can_interrupt() {
            let vector = self.core.board.acknowledge_interrupt();
            self.engine.inject(vector)?;
            let count = self.engine.position().count;
            self.entered = match self.entered {
                (since, number) if since == count => (count, number + 1),
                _ => (count, 1),
            };
        }
        self.engine
            .request_window(self.core.board.interrupt_pending());
        Ok(())
    }

    /// The vCPU's caches must not outlive what a device wrote over.
    fn tell_engine(&mut self) {
        for range in self.ram.take_written() {
            self.engine.memory_written(range);
        }
    }

    /// Power-on state again; the position, the clock and the disk requests in flight go on.
    pub fn reset(&mut self) -> Result<(), MachineError> {
        self.reset_at(self.engine.position().count)
    }

    fn reset_at(&mut self, count: u64) -> Result<(), MachineError> {
        self.ram.clear()?;
        self.core.board.reset();
        let mut state = boot::load(&self.ram, &self.boot).map_err(MachineError::Load)?;
        state.count = count;
        self.tell_engine();
        self.engine.set_state(&state)?;
        tracing::info!(position = count, "the guest was reset");
        Ok(())
    }
}
