//! The engine: the run loop, positions and exits.
//!
//! Between two calls every exit is settled: its instruction has completed and RIP lies behind it.
//! The vCPU then stands in the guest, or, after an intercepted instruction, in the trampoline with
//! the guest in the control block ([`Standing`]).

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use ::engine::bits::rflags;
use ::engine::{
    Boundary, ClockBase, CpuState, Engine, EngineError, EngineInfo, Entry, Exit, Msrs, PendingRead,
    cpuid,
};
use ftlog::{CountUnit, Position};
use kvm_ioctls::Kvm;
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::Bitmap;

use crate::block::{Block, Event};
use crate::counted::Tally;
use crate::errors::{call, stopped};
use crate::kick::Kick;
use crate::ram::Ram;
use crate::state::DR7_FIXED;
use crate::trampoline::{self, Kind, Trampoline};
use crate::vcpu::{Nesting, Raw, Vcpu};
use crate::vm::{Vm, cpuid_for_kvm};
use crate::vmcb::Vmcb;
use crate::vmcs::Vmcs;
use crate::vmx::{self, Controls};
use crate::{BRAND, NS_PER_EXIT};

/// Where the vCPU stands, and with it, where the guest's registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// In the guest: KVM has its registers.
    Guest,
    /// In the trampoline: the control block has those that an entry loads.
    Trampoline,
    /// On the way, while it runs and when only a signal has stopped it: nowhere to be found.
    Underway,
}

/// A read that waits for its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    read: PendingRead,
    /// For a port: which of how many elements of the batch.
    element: (u32, u32),
}

/// How often there was which exit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exits {
    pub port_reads: u64,
    pub port_writes: u64,
    pub memory_reads: u64,
    pub memory_writes: u64,
    pub halts: u64,
    pub msrs: u64,
    pub rdtsc: u64,
    pub cpuid: u64,
    pub other_instructions: u64,
    pub windows: u64,
    pub kicks: u64,
}

/// The engine on KVM.
pub struct KvmEngine {
    // Dropped in this order: the vCPU and the VM before the memory that they use.
    pub(crate) vcpu: Vcpu,
    vm: Vm,
    pub(crate) block: Box<dyn Block>,
    pub(crate) trampoline: Trampoline,
    pub(crate) ram: Ram,
    pub(crate) standing: Standing,
    pub(crate) count: u64,
    /// Adds the branches that the guest has retired to the count, where positions are counted so.
    pub(crate) tally: Option<Tally>,
    /// Nothing of the guest was executed since the count became what it is.
    pub(crate) first: bool,
    /// The count at which a vCPU that is watched stops behind an exit; and how many exits it may
    /// have before it stops to be aimed anew.
    pub(crate) until: u64,
    pub(crate) exits_left: u32,
    pub(crate) clock: ClockBase,
    /// The guest's MSRs; `efer` and `kernel_gs_base` may be older than the vCPU's.
    pub(crate) msrs: Msrs,
    pub(crate) halted: bool,
    /// The state that a shut-down vCPU is in: KVM has reset it.
    pub(crate) shut_down: Option<Box<CpuState>>,
    /// What the next entry delivers to the guest.
    pub(crate) event: Option<Event>,
    /// RAM was written from outside since the state was last set.
    memory_changed: bool,
    window: bool,
    pending: Option<Pending>,
    /// Writes that have not been handed out yet.
    writes: VecDeque<Boundary>,
    pub(crate) limit: Option<Duration>,
    pub(crate) kick: Option<Kick>,
    /// The thread whose signals end KVM_RUN.
    pub(crate) hears: Option<libc::pid_t>,
    /// A kick that comes once, for a landing; and that one has come.
    pub(crate) once: Option<Kick>,
    pub(crate) kicked: bool,
    /// Breakpoints or a step are set; and the guest's own DR7 when it was entered for that.
    pub(crate) watched: bool,
    pub(crate) guest_dr7: u64,
    /// The count at the last kick.
    kicked_at: u64,
    /// Exits by kind, for statistics.
    pub(crate) exits: Exits,
}

impl Exits {
    fn note(&mut self, raw: Raw) {
        let counter = match raw {
            Raw::PortRead { .. } => &mut self.port_reads,
            Raw::PortWrite { .. } => &mut self.port_writes,
            Raw::MemoryRead { .. } => &mut self.memory_reads,
            Raw::MemoryWrite { .. } => &mut self.memory_writes,
            Raw::ReadMsr { .. } | Raw::WriteMsr { .. } => &mut self.msrs,
            Raw::Halt => &mut self.halts,
            Raw::Window => &mut self.windows,
            Raw::Shutdown | Raw::Debug { .. } | Raw::Nothing | Raw::Interrupted => return,
        };
        *counter += 1;
    }

    fn by_kind(&self) -> [(&'static str, u64); 11] {
        [
            ("port read", self.port_reads),
            ("port write", self.port_writes),
            ("mmio read", self.memory_reads),
            ("mmio write", self.memory_writes),
            ("hlt", self.halts),
            ("msr", self.msrs),
            ("rdtsc", self.rdtsc),
            ("cpuid", self.cpuid),
            ("other instruction", self.other_instructions),
            ("window", self.windows),
            ("kick", self.kicks),
        ]
    }
}

impl KvmEngine {
    /// A vCPU in its state at reset, on the given RAM.
    pub fn new<B>(memory: &Arc<GuestMemoryMmap<B>>) -> Result<Self, EngineError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let kvm = Kvm::new().map_err(|e| call("open /dev/kvm", e))?;
        let ram = Ram::new(memory);
        let kind = crate::host::kind().ok_or_else(|| {
            let vendor = crate::host::vendor();
            EngineError::Hypervisor(format!("the engine does not know processors of {vendor}"))
        })?;
        let mut trampoline = Trampoline::new(kind).map_err(EngineError::Host)?;
        let vm = Vm::new(&kvm, &ram, &trampoline)?;
        let vcpu = vm.fd.create_vcpu(0).map_err(|e| call("create a vCPU", e))?;
        vcpu.set_cpuid2(&cpuid_for_kvm(kind)?)
            .map_err(|e| call("take the CPUID table", e))?;
        let page = trampoline.block();
        let block: Box<dyn Block> = match kind {
            Kind::Svm => Box::new(Vmcb::new(page)),
            Kind::Vmx => {
                let controls = Controls::of(|index| vmx::read_msr(&vcpu, index))?;
                Box::new(Vmcs::new(page, controls, Trampoline::vmx_host()))
            }
        };
        let mut engine = Self {
            vcpu: Vcpu::new(vcpu),
            vm,
            block,
            trampoline,
            ram,
            standing: Standing::Trampoline,
            count: 0,
            tally: None,
            first: true,
            until: u64::MAX,
            exits_left: u32::MAX,
            clock: ClockBase::at_power_on(NS_PER_EXIT),
            msrs: Msrs::default(),
            halted: false,
            shut_down: None,
            event: None,
            memory_changed: false,
            window: false,
            pending: None,
            writes: VecDeque::new(),
            limit: None,
            kick: None,
            hears: None,
            once: None,
            kicked: false,
            watched: false,
            guest_dr7: DR7_FIXED,
            kicked_at: 0,
            exits: Exits::default(),
        };
        engine.set_state(&CpuState::at_reset())?;
        Ok(engine)
    }

    fn go(&mut self, until: u64) -> Result<Exit, EngineError> {
        loop {
            if let Some(exit) = self.at_boundary(until) {
                return Ok(Exit::Boundary(exit));
            }
            if self.standing == Standing::Trampoline {
                self.prepare_entry()?;
            }
            self.standing = Standing::Underway;
            let raw = self.run_guest()?;
            if let Some(exit) = self.handle(raw)? {
                return Ok(exit);
            }
        }
    }

    /// What there is to say before the guest goes on.
    pub(crate) fn at_boundary(&mut self, until: u64) -> Option<Boundary> {
        if let Some(write) = self.writes.pop_front() {
            return Some(write);
        }
        if self.shut_down.is_some() {
            return Some(Boundary::Shutdown);
        }
        if self.window && self.can_interrupt() {
            return Some(Boundary::Window);
        }
        if self.halted {
            let interrupts_enabled = self.rflags() & rflags::IF != 0;
            return Some(Boundary::Halt { interrupts_enabled });
        }
        let reached = self.count == until && (self.first || self.tally.is_none());
        reached.then_some(Boundary::Reached)
    }

    /// Runs the guest, and adds to the count what it has retired.
    pub(crate) fn run_guest(&mut self) -> Result<Raw, EngineError> {
        self.first = false;
        let raw = self.vcpu.run(false)?;
        self.tally()?;
        Ok(raw)
    }

    /// An exit has completed.
    pub(crate) fn exited(&mut self) {
        self.count += 1;
        self.first = true;
    }

    /// Before an entry: what the guest may have written over, and what KVM does not carry along.
    pub(crate) fn prepare_entry(&mut self) -> Result<(), EngineError> {
        self.block.prepare(self.event.take());
        let dr7 = self.block.dr7();
        if dr7 != DR7_FIXED && self.trampoline.kind == Kind::Svm {
            // KVM loads the breakpoints' addresses only if its own DR7 enables one, and gives its own
            // back after the engine's breakpoints. (VMLAUNCH sets KVM's own.)
            let mut registers = self.vcpu.debug_registers()?;
            registers.dr7 = dr7;
            self.vcpu.set_debug_registers(&registers)?;
        }
        Ok(())
    }

    /// Handles what KVM_RUN came back with. Some: an exit for the caller.
    pub(crate) fn handle(&mut self, raw: Raw) -> Result<Option<Exit>, EngineError> {
        if raw == Raw::Interrupted {
            return self.interrupted();
        }
        if let Raw::PortWrite { port, .. } = raw
            && self.is_intercept(port)?
        {
            self.standing = Standing::Trampoline;
            self.emulate()?;
            return Ok(None);
        }
        self.standing = Standing::Guest;
        self.exits.note(raw);
        match raw {
            Raw::PortRead { port, size, count } => {
                Ok(Some(self.ask(PendingRead::Io { port, size }, count)))
            }
            Raw::MemoryRead { addr, size } => {
                Ok(Some(self.ask(PendingRead::Mmio { addr, size }, 1)))
            }
            Raw::PortWrite { port, size, count } => {
                for i in 0..count {
                    let value = self.vcpu.port_data(i, size);
                    self.writes
                        .push_back(Boundary::IoWrite { port, size, value });
                }
                self.settle()
            }
            Raw::MemoryWrite { addr, size, value } => {
                self.writes
                    .push_back(Boundary::MmioWrite { addr, size, value });
                self.settle()
            }
            Raw::ReadMsr { index } => {
                let value = self.read_msr(index);
                self.complete_msr(value)
            }
            Raw::WriteMsr { index, value } => {
                let done = self.write_msr(index, value)?;
                self.complete_msr(done.then_some(value))
            }
            Raw::Halt => {
                self.exited();
                // A single step over HLT wakes it at once.
                self.halted = !self.debug_due();
                Ok(None)
            }
            Raw::Shutdown => {
                self.shut_down();
                Ok(None)
            }
            Raw::Window if !self.can_interrupt() || self.nesting()?.entering => {
                // Right behind an entry KVM takes the window for open whatever the guest's flags say,
                // and then it says so instead of telling of a signal.
                self.standing = Standing::Underway;
                self.interrupted()
            }
            Raw::Window if self.may_be_in_shadow() => self.pass_shadow(),
            Raw::Debug { dr6 } => {
                let what = format!("a debug exit that nothing was asked for (DR6 {dr6:#x})");
                Err(stopped(&what, self.vcpu.seen.regs.rip))
            }
            Raw::Window | Raw::Nothing | Raw::Interrupted => Ok(None),
        }
    }

    /// The guest has had a triple fault.
    pub(crate) fn shut_down(&mut self) {
        let mut state = CpuState::at_reset();
        state.count = self.count;
        state.shutdown = true;
        self.shut_down = Some(Box::new(state));
    }

    /// Whether the write to `port` is the trampoline's. The guest could bring about the same
    /// registers, so KVM has the last word.
    fn is_intercept(&self, port: u16) -> Result<bool, EngineError> {
        let seen = &self.vcpu.seen;
        Ok(port == u16::from(trampoline::PORT)
            && self.trampoline.looks_like(seen.regs.rip, seen.sregs.cr3)
            && !self.nesting()?.in_guest)
    }

    /// Where the vCPU stands as KVM sees it.
    ///
    /// Before VMLAUNCH KVM is not asked: when a guest was left for another state, it keeps in mind that
    /// what it has of that one is still to go into the VMCS, and does so as it tells its nested state
    /// (`copy_vmcs02_to_vmcs12_rare`): into the VMCS that VMPTRLD has just read.
    pub(crate) fn nesting(&self) -> Result<Nesting, EngineError> {
        let seen = &self.vcpu.seen;
        if self
            .trampoline
            .is_before_launch(seen.regs.rip, seen.sregs.cr3)
        {
            return Ok(Nesting {
                in_guest: false,
                entering: false,
            });
        }
        self.vcpu.nesting()
    }

    fn ask(&mut self, read: PendingRead, of: u32) -> Exit {
        self.pending = Some(Pending {
            read,
            element: (0, of),
        });
        Exit::Pending(read)
    }

    /// Gives a pending read its value, if one is pending.
    pub(crate) fn begin(&mut self, entry: Entry) -> Result<Option<Exit>, EngineError> {
        let expected = match (self.pending, entry) {
            (None, Entry::Resume) => return Ok(None),
            (Some(pending), Entry::Answer(value)) => return self.answer(pending, value),
            (None, Entry::Answer(_)) => "no read is pending: resume it",
            (Some(_), Entry::Resume) => "a read is pending: answer it",
        };
        Err(EngineError::WrongEntry { entry, expected })
    }

    fn answer(&mut self, pending: Pending, value: u64) -> Result<Option<Exit>, EngineError> {
        match pending.read {
            PendingRead::Io { size, .. } => {
                let (i, of) = pending.element;
                self.vcpu.set_port_data(i, size, value as u32);
                if i + 1 < of {
                    // KVM reads strings ahead: the next element of the batch.
                    self.pending = Some(Pending {
                        element: (i + 1, of),
                        ..pending
                    });
                    return Ok(Some(Exit::Pending(pending.read)));
                }
            }
            PendingRead::Mmio { .. } => self.vcpu.set_memory_data(value),
        }
        self.pending = None;
        self.settle()
    }

    /// Completes the instruction of the last exit: it may go on to another one first.
    fn settle(&mut self) -> Result<Option<Exit>, EngineError> {
        match self.vcpu.run(true)? {
            Raw::Interrupted => {
                if self.rflags() & rflags::TF != 0 && !self.debug_due() {
                    // KVM forgets the step where it has emulated a write to a device.
                    self.vcpu.raise_step()?;
                }
                self.exited();
                Ok(None)
            }
            raw => self.handle(raw),
        }
    }

    /// As `settle`, for an MSR: an instruction that faults does not complete.
    fn complete_msr(&mut self, value: Option<u64>) -> Result<Option<Exit>, EngineError> {
        self.vcpu.answer_msr(value);
        match self.vcpu.run(true)? {
            Raw::Interrupted => {
                if value.is_some() {
                    self.exited();
                }
                Ok(None)
            }
            raw => Err(stopped(
                &format!("{raw:?} where an MSR access should have ended"),
                self.vcpu.seen.regs.rip,
            )),
        }
    }

    /// A signal came while the guest ran.
    fn interrupted(&mut self) -> Result<Option<Exit>, EngineError> {
        let taken = match &self.kick {
            Some(kick) => kick.take().map_err(EngineError::Host)?,
            None => false,
        };
        if !taken {
            // Somebody else's.
            return Ok(None);
        }
        self.exits.kicks += 1;
        if std::mem::replace(&mut self.kicked_at, self.count) != self.count {
            return Ok(None);
        }
        let nesting = self.nesting()?;
        let between = !nesting.in_guest || nesting.entering || self.vcpu.event_in_flight();
        if between || self.may_be_in_shadow() {
            // In the trampoline, with an event half delivered, or maybe in a shadow that has been
            // lost: no state says that. Soon over.
            return Ok(None);
        }
        self.standing = Standing::Guest;
        Ok(Some(Exit::Adrift))
    }

    /// The timer that kicks this thread runs if there is a limit.
    pub(crate) fn arm(&mut self) -> Result<(), EngineError> {
        let Some(limit) = self.limit else {
            return Ok(());
        };
        if self.kick.as_ref().is_some_and(Kick::is_mine) {
            return Ok(());
        }
        // Adrift at the second kick without an exit between.
        self.kick = Some(Kick::start(limit / 2).map_err(EngineError::Host)?);
        self.hear_kicks()
    }

    /// Whether the state is the vCPU's own, at whatever count.
    fn goes_on_from(&self, state: &CpuState) -> bool {
        let own = CpuState {
            count: state.count,
            ..self.read_state()
        };
        own == *state
    }

    /// Whether the exit's instruction was single-stepped and the guest has not got the #DB for it yet.
    pub(crate) fn debug_due(&self) -> bool {
        match self.standing {
            Standing::Guest | Standing::Underway => self.vcpu.debug_due(),
            Standing::Trampoline => self.event == Some(Event::DEBUG),
        }
    }

    pub(crate) fn rflags(&self) -> u64 {
        match self.standing {
            Standing::Guest | Standing::Underway => self.vcpu.seen.regs.rflags,
            Standing::Trampoline => self.block.rflags(),
        }
    }
}

impl Engine for KvmEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "kvm",
            counts: CountUnit::Exits,
            ns_per_count: NS_PER_EXIT,
            cpuid_hash: cpuid::hash(BRAND),
            host_math: crate::host::model(),
        }
    }

    fn run(&mut self, until: Option<u64>, entry: Entry) -> Result<Exit, EngineError> {
        if let Some(asked) = until
            && asked < self.count
        {
            let now = self.count;
            return Err(EngineError::PositionPassed { asked, now });
        }
        self.arm()?;
        if let Some(exit) = self.begin(entry)? {
            return Ok(exit);
        }
        self.go(until.unwrap_or(u64::MAX))
    }

    fn position(&self) -> Position {
        let rip = match (&self.shut_down, self.standing) {
            (Some(state), _) => state.rip,
            (None, Standing::Guest | Standing::Underway) => self.vcpu.seen.regs.rip,
            (None, Standing::Trampoline) => self.block.rip(),
        };
        let rcx = match &self.shut_down {
            Some(state) => state.gpr[1],
            None => self.vcpu.seen.regs.rcx,
        };
        Position {
            count: self.count,
            rip,
            rcx,
        }
    }

    fn can_interrupt(&self) -> bool {
        let clear = match self.standing {
            Standing::Guest => {
                self.vcpu.seen.events.interrupt.shadow == 0 && !self.vcpu.event_in_flight()
            }
            Standing::Trampoline => !self.block.shadow() && self.event.is_none(),
            Standing::Underway => false,
        };
        clear
            && self.rflags() & rflags::IF != 0
            && self.shut_down.is_none()
            && self.writes.is_empty()
    }

    fn set_stretch_limit(&mut self, limit: Option<Duration>) {
        self.limit = limit.map(|limit| limit.max(Duration::from_micros(100)));
        self.kick = None;
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.halted = false;
        match self.standing {
            Standing::Guest | Standing::Underway => self.vcpu.interrupt(vector),
            Standing::Trampoline => {
                self.event = Some(Event::Interrupt(vector));
                Ok(())
            }
        }
    }

    fn request_window(&mut self, on: bool) {
        self.window = on;
        self.vcpu.request_window(on);
    }

    fn halted(&self) -> bool {
        self.halted
    }

    fn set_clock(&mut self, clock: ClockBase) {
        self.clock = clock;
    }

    fn state(&self) -> CpuState {
        self.read_state()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        ::engine::check(state).map_err(EngineError::BadState)?;
        if std::mem::take(&mut self.memory_changed)
            && crate::probe::shadow_paging()
            && !self.goes_on_from(state)
        {
            // The guest that the state is of may have other page tables at the same places.
            self.vm.forget_page_tables(&self.trampoline)?;
        }
        self.write_state(state)?;
        self.standing = Standing::Trampoline;
        self.count = state.count;
        self.first = true;
        self.kicked_at = u64::MAX;
        self.msrs = state.msrs;
        self.halted = state.halted;
        self.shut_down = state.shutdown.then(|| Box::new(state.clone()));
        self.event = state.debug_due.then_some(Event::DEBUG);
        self.pending = None;
        self.writes.clear();
        Ok(())
    }

    /// KVM sees what is in memory, but for page tables that it shadows. Only a new state brings new
    /// ones of those: no device writes into the present ones.
    fn memory_written(&mut self, _range: Range<u64>) {
        self.memory_changed = true;
    }

    fn exit_counts(&self) -> Vec<(&'static str, u64)> {
        self.exits.by_kind().to_vec()
    }

    fn take_dirty(&mut self) -> Vec<u64> {
        self.vm
            .take_dirty()
            .expect("KVM keeps a dirty log of every slot of RAM")
    }
}
