//! The engine: the run loop, positions and exits.
#![allow(unsafe_code)]

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use engine::{
    Boundary, ClockBase, CpuState, Engine, EngineError, EngineInfo, Entry, Exit, PendingRead,
};
use ftlog::{CountUnit, Position};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::block::{BlockCache, MAX_OPS, Run};
use crate::chain::{Single, follow, push_end, push_op};
use crate::cpu::{Cpu, attention, reg, seg};
use crate::cpuid;
use crate::decode::{DecodeError, decode};
use crate::flags;
use crate::native::NativeCode;
use crate::phys::{Phys, Region};
use crate::stop::{Exception, Stop, StopReason, vector};

/// Exceptions in a row, without an instruction that retires, after which the vCPU shuts down.
const MAX_EXCEPTIONS: u32 = 1 << 16;

/// The software CPU.
pub struct SoftEngine {
    cpu: Cpu,
    blocks: BlockCache,
    /// The read that the last exit asked for.
    pending: Option<PendingRead>,
    /// Exceptions delivered since an instruction retired, and the count at which they were.
    stuck: (u64, u32),
    /// The last instruction that straddled two pages, which is not in the cache.
    straddler: Single,
    /// `EngineInfo::host_math`.
    host_math: u64,
    /// Keeps the RAM mapped.
    _memory: Box<dyn Any + Send + Sync>,
}

impl SoftEngine {
    /// A CPU in its state at reset, on the given RAM.
    pub fn new<B>(memory: &Arc<GuestMemoryMmap<B>>) -> Result<Self, EngineError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let regions = memory
            .iter()
            .map(|r| Region {
                gpa: r.start_addr().0,
                host: r.as_ptr(),
                len: r.len(),
            })
            .collect();
        // SAFETY: the regions stay mapped as long as `memory`, which `Self` keeps; devices access
        // them only while no method of the engine runs.
        let phys = unsafe { Phys::new(regions) }
            .map_err(|e| EngineError::BadState(format!("memory layout: {e}")))?;
        let mut native = NativeCode::new().map_err(EngineError::Host)?;
        let host_math = native
            .fingerprint()
            .map_err(|e| EngineError::Host(std::io::Error::other(e)))?;
        let mut engine = Self {
            cpu: Cpu::new(phys, native),
            host_math,
            blocks: BlockCache::new(),
            pending: None,
            stuck: (0, 0),
            straddler: Single::NOTHING,
            _memory: Box::new(Arc::clone(memory)),
        };
        engine.set_state(&CpuState::at_reset())?;
        Ok(engine)
    }

    /// Runs until an exit.
    fn go(&mut self, mut step: bool) -> Exit {
        loop {
            if self.cpu.attention != 0 && self.pending.is_none() {
                if let Some(exit) = self.attend() {
                    return Exit::Boundary(exit);
                }
                step |= self.must_step();
            }
            let left = self.cpu.until.saturating_sub(self.cpu.count);
            if left == 0 && self.pending.is_none() {
                return Exit::Boundary(Boundary::Reached);
            }
            let result = match self.next() {
                _ if step && self.at_breakpoint() => Err(Stop),
                Ok(Some(run)) => self.enter(run, left, step),
                Ok(None) => {
                    let single = self.straddler;
                    self.step(&single)
                }
                Err(stop) => Err(stop),
            };
            step = false;
            if let Err(Stop) = result {
                match self.stopped(&mut step) {
                    Some(read) => {
                        self.pending = Some(read);
                        return Exit::Pending(read);
                    }
                    None => continue,
                }
            }
        }
    }

    /// Runs a block, or only its first instruction.
    #[inline(always)]
    fn enter(&mut self, run: Run, left: u64, step: bool) -> Result<(), Stop> {
        let (len, bytes) = (run.len(), run.bytes());
        let cpu = &mut self.cpu;
        if step || len > left || !cpu.within_code_segment(bytes) {
            // SAFETY: as below.
            let first = unsafe { Single::first_of(run.ops()) };
            return self.step(&first);
        }
        // SAFETY: blocks are dropped only by `drop_written_code` and `decode_block`, neither of
        // which runs before this returns; what was dropped is not found.
        let result = unsafe { follow(cpu, run.ops()) };
        if result.is_err() {
            cpu.rip = cpu.wrap_ip(cpu.rip.wrapping_add(u64::from(cpu.stop_offset)));
            cpu.count += u64::from(cpu.stop_index);
        } else {
            cpu.count += len;
        }
        result
    }

    /// Runs one instruction alone.
    fn step(&mut self, single: &Single) -> Result<(), Stop> {
        let cpu = &mut self.cpu;
        if !cpu.within_code_segment(single.len()) {
            return Err(cpu.raise_gp(0));
        }
        let shadow = cpu.interrupt_shadow;
        let trap = cpu.control_flag(flags::TF);
        let resumed = cpu.control_flag(flags::RF);
        let start = cpu.rip;
        cpu.mmu.watch_hits = 0;
        cpu.trap_suppressed = false;
        cpu.external.restart();
        cpu.stepping = true;
        let result = single.run(cpu);
        cpu.stepping = false;
        result?;
        self.pending = None;
        cpu.external.finish();
        cpu.count += 1;
        if shadow {
            cpu.interrupt_shadow = false;
            cpu.attention &= !attention::SHADOW;
        }
        if resumed && cpu.rip != start {
            cpu.clear_resume();
        }
        if trap || cpu.mmu.watch_hits != 0 {
            cpu.trap_after(trap && !cpu.trap_suppressed);
        }
        Ok(())
    }

    /// Decides what follows a stop. Some: an exit for a read.
    fn stopped(&mut self, step: &mut bool) -> Option<PendingRead> {
        let exception = match self.cpu.stop {
            StopReason::Step => {
                *step = true;
                return None;
            }
            StopReason::Read(read) => return Some(read),
            StopReason::Exception(exception) => exception,
            StopReason::NonCanonical => Exception {
                vector: if self.cpu.stop_segment == seg::SS {
                    vector::SS
                } else {
                    vector::GP
                },
                error: Some(0),
                cr2: 0,
            },
        };
        self.cpu.external.finish();
        self.pending = None;
        if self.is_stuck() {
            self.cpu.shut_down();
        } else {
            self.cpu.deliver(exception);
        }
        None
    }

    /// Whether handlers fault at their first instruction for ever. A processor would then take
    /// exceptions until it is reset; here the position would stand still and `run` never return.
    fn is_stuck(&mut self) -> bool {
        let count = self.cpu.count;
        self.stuck = match self.stuck {
            (at, n) if at == count => (at, n + 1),
            _ => (count, 0),
        };
        self.stuck.1 >= MAX_EXCEPTIONS
    }

    /// Looks after the bits of `attention`. Some: an exit.
    fn attend(&mut self) -> Option<Boundary> {
        let bits = self.cpu.attention;
        if bits & attention::CODE != 0 {
            self.drop_written_code();
        }
        if bits & attention::EXIT != 0 {
            if let Some(exit) = self.cpu.external.next_exit() {
                return Some(exit);
            }
            self.cpu.attention &= !attention::EXIT;
        }
        if bits & attention::SHUTDOWN != 0 {
            return Some(Boundary::Shutdown);
        }
        if bits & attention::WINDOW != 0 && self.can_interrupt() {
            return Some(Boundary::Window);
        }
        if bits & attention::HALTED != 0 {
            return Some(Boundary::Halt {
                interrupts_enabled: self.cpu.control_flag(flags::IF),
            });
        }
        None
    }

    /// Whether an instruction breakpoint strikes; then `cpu.stop` is its #DB.
    fn at_breakpoint(&mut self) -> bool {
        let set = self.cpu.attention & attention::BREAKPOINTS != 0;
        set && self.pending.is_none() && self.cpu.breakpoint()
    }

    /// Whether instructions must be run one by one.
    fn must_step(&self) -> bool {
        self.cpu.attention & (attention::SHADOW | attention::TRAP | attention::BREAKPOINTS) != 0
    }

    fn drop_written_code(&mut self) {
        self.cpu.attention &= !attention::CODE;
        for range in std::mem::take(&mut self.cpu.phys.written_code) {
            // The whole page: most often it is being put to another use, and more stores follow.
            let page = range.start & !0xfff;
            self.blocks.drop_page(page);
            self.cpu.phys.unmark_code(page);
        }
    }

    /// The block at CS:RIP, or None: the straddling instruction.
    #[inline(always)]
    fn next(&mut self) -> Result<Option<Run>, Stop> {
        let cpu = &mut self.cpu;
        let linear = cpu.code_linear(cpu.rip)?;
        if let Some(gpa) = cpu.fetch_known(linear)
            && let Some(run) = self.blocks.find(gpa, cpu.code_mode)
        {
            return Ok(Some(run));
        }
        self.next_slow(linear)
    }

    #[cold]
    #[inline(never)]
    fn next_slow(&mut self, linear: u64) -> Result<Option<Run>, Stop> {
        let cpu = &mut self.cpu;
        let page = cpu.fetch_page(linear)?;
        let gpa = page.gpa | linear & 0xfff;
        if cpu.attention & attention::CODE != 0 {
            // The walk has set accessed bits in bytes from which code was decoded.
            self.drop_written_code();
        }
        let cpu = &mut self.cpu;
        let known = self.blocks.find_slow(gpa, cpu.code_mode);
        let run = known.or_else(|| self.decode_block(gpa));
        if run.is_none() {
            self.straddling(linear)?;
        }
        Ok(run)
    }

    /// Decodes the block at `gpa`; None if its first instruction goes on in the next page.
    fn decode_block(&mut self, gpa: u64) -> Option<Run> {
        let mode = self.cpu.code_mode;
        let mut buf = [0; MAX_OPS * 15];
        let room = (0x1000 - (gpa & 0xfff)) as usize;
        let code = &mut buf[..room.min(MAX_OPS * 15)];
        self.cpu.phys.read_code(gpa, code);
        let (mut ops, mut len, mut at) = (Vec::new(), 0, 0);
        while usize::from(len) < MAX_OPS {
            let Ok(mut decoded) = decode(&code[at..], mode, at as u16, &mut self.cpu.native) else {
                break;
            };
            decoded.op.index = len;
            len += 1;
            at += usize::from(decoded.op.len);
            push_op(&mut ops, decoded.op, decoded.code);
            if decoded.code.ends() {
                break;
            }
        }
        if len == 0 {
            return None;
        }
        push_end(&mut ops, at as u16);
        if self.blocks.is_full() {
            for page in self.blocks.clear() {
                self.cpu.phys.unmark_code(page << 12);
            }
        }
        self.cpu.mark_code(gpa, at as u64);
        Some(self.blocks.insert(gpa, mode, ops, len, at as u16))
    }

    /// Decodes an instruction that may go on in the next page.
    fn straddling(&mut self, linear: u64) -> Result<(), Stop> {
        let cpu = &mut self.cpu;
        let mut bytes = [0; 15];
        let head = bytes.len().min((0x1000 - (linear & 0xfff)) as usize);
        let first = cpu.fetch_page(linear)?;
        let gpa = first.gpa | linear & 0xfff;
        cpu.phys.read_code(gpa, &mut bytes[..head]);
        if head < bytes.len() {
            let second = cpu.fetch_page(linear.wrapping_add(head as u64))?;
            cpu.phys.read_code(second.gpa, &mut bytes[head..]);
        }
        match decode(&bytes, cpu.code_mode, 0, &mut cpu.native) {
            Ok(d) => {
                self.straddler = Single::of(d.op, d.code);
                Ok(())
            }
            Err(DecodeError::TooLong | DecodeError::NeedMore) => Err(cpu.raise_gp(0)),
        }
    }
}

impl Engine for SoftEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: "soft",
            counts: CountUnit::Instructions,
            ns_per_count: 1,
            cpuid_hash: cpuid::hash(),
            host_math: self.host_math,
        }
    }

    fn run(&mut self, until: Option<u64>, entry: Entry) -> Result<Exit, EngineError> {
        if let Some(asked) = until
            && asked < self.cpu.count
        {
            let now = self.cpu.count;
            return Err(EngineError::PositionPassed { asked, now });
        }
        self.cpu.until = until.unwrap_or(u64::MAX);
        match (self.pending, entry) {
            (None, Entry::Resume) => Ok(self.go(false)),
            (Some(read), Entry::Answer(value)) => {
                self.cpu.external.answer(read, value);
                Ok(self.go(true))
            }
            (None, Entry::Answer(_)) => Err(EngineError::WrongEntry {
                entry,
                expected: "no read is pending: resume it",
            }),
            (Some(_), Entry::Resume) => Err(EngineError::WrongEntry {
                entry,
                expected: "a read is pending: answer it",
            }),
        }
    }

    fn position(&self) -> Position {
        Position {
            count: self.cpu.count,
            rip: self.cpu.rip,
            rcx: self.cpu.gpr[usize::from(reg::RCX)],
        }
    }

    fn can_interrupt(&self) -> bool {
        self.cpu.control_flag(flags::IF) && !self.cpu.interrupt_shadow && !self.cpu.shutdown
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.cpu.interrupt(vector);
        Ok(())
    }

    fn request_window(&mut self, on: bool) {
        if on {
            self.cpu.attention |= attention::WINDOW;
        } else {
            self.cpu.attention &= !attention::WINDOW;
        }
    }

    fn halted(&self) -> bool {
        self.cpu.halted
    }

    fn set_clock(&mut self, clock: ClockBase) {
        self.cpu.clock = clock;
    }

    fn state(&self) -> CpuState {
        self.cpu.state()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.cpu.set_state(state).map_err(EngineError::BadState)?;
        self.pending = None;
        self.stuck = (0, 0);
        self.cpu.external.clear();
        Ok(())
    }

    fn memory_written(&mut self, range: Range<u64>) {
        self.cpu.memory_written(range);
    }

    fn take_dirty(&mut self) -> Vec<u64> {
        self.cpu.take_dirty()
    }
}
