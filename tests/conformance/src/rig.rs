//! A machine for a case: memory with page tables, descriptor tables and handlers laid out, an
//! engine, and the loop that answers its reads.

use std::sync::Arc;

use engine::{Boundary, CpuState, DescriptorTable, Engine, Entry, Exit, PendingRead, Segment};
use ftlog::CountUnit;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Maker;

/// Guest-physical layout.
pub mod at {
    pub const GDT: u64 = 0x1000;
    pub const IDT: u64 = 0x2000;
    pub const TSS: u64 = 0x3000;
    /// Tops of stacks; the page below belongs to each.
    pub const STACK: u64 = 0x5000;
    pub const STACK0: u64 = 0x6000;
    pub const IST1: u64 = 0x7000;
    /// Handler stubs, 8 bytes each: HLT.
    pub const HANDLERS: u64 = 0x8000;
    pub const PML4: u64 = 0x10000;
    pub const PDPT: u64 = 0x11000;
    pub const PD: u64 = 0x12000;
    /// Identity map of 0 to 2 MiB.
    pub const PT0: u64 = 0x13000;
    /// Maps `TEST` on; empty at first.
    pub const PT_TEST: u64 = 0x15000;
    /// Maps `MMIO` on.
    pub const PT_MMIO: u64 = 0x16000;
    /// A second set of tables, for cases that need one.
    pub const SPARE: u64 = 0x18000;
    pub const CODE: u64 = 0x20000;
    /// Pages that CPL 3 may use: 128 KiB.
    pub const USER: u64 = 0x30000;
    pub const USER_CODE: u64 = 0x30000;
    pub const USER_DATA: u64 = 0x40000;
    pub const USER_STACK: u64 = 0x50000;
    pub const DATA: u64 = 0x60000;
    /// Linear addresses for experiments, mapped by `PT_TEST`.
    pub const TEST: u64 = 0x40_0000;
    /// Linear addresses of memory outside RAM.
    pub const MMIO: u64 = 0x60_0000;
    /// Guest-physical address behind `MMIO`.
    pub const MMIO_GPA: u64 = 0x1000_0000;
    /// Size of RAM.
    pub const END: u64 = 0x20_0000;
}

/// Selectors in the GDT.
pub mod sel {
    pub const CODE64: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const CODE32: u16 = 0x18;
    pub const CODE16: u16 = 0x20;
    pub const DATA16: u16 = 0x28;
    pub const USER32: u16 = 0x33;
    pub const USER_DATA: u16 = 0x3b;
    pub const USER64: u16 = 0x43;
    pub const TSS: u16 = 0x48;
    /// First one free for a case.
    pub const FREE: u16 = 0x58;
}

/// The GDT's first entries.
const GDT: [u64; 11] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x0000_9b00_0000_ffff,
    0x0000_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x0000_8900_3000_0fff,
    0,
];

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 0x20;
pub const D: u64 = 0x40;
pub const PS: u64 = 0x80;
pub const NX: u64 = 1 << 63;

pub const RSP: usize = 4;

/// What came out of a run, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Out { port: u16, size: u8, value: u32 },
    In { port: u16, size: u8 },
    Load { addr: u64, size: u8 },
    Store { addr: u64, size: u8, value: u64 },
    Window,
}

/// An exception as its handler finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error: Option<u64>,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
    pub cr2: u64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Halt,
    Shutdown,
    Reached,
}

/// The machine.
pub struct Rig<'a> {
    pub memory: Arc<GuestMemoryMmap>,
    pub engine: Box<dyn Engine>,
    pub seen: Vec<Seen>,
    make: Maker<'a>,
}

/// Instructions after which a run is given up.
const RUNAWAY: u64 = 5_000_000;

impl<'a> Rig<'a> {
    /// A machine in long mode at privilege level `cpl`, about to run `code`.
    pub fn new(make: Maker<'a>, cpl: u8, code: &[u8]) -> Result<Self, String> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), at::END as usize)])
            .map_err(|e| format!("no memory: {e}"))?;
        let memory = Arc::new(memory);
        let engine = make(&memory);
        let mut rig = Self {
            memory,
            engine,
            seen: Vec::new(),
            make,
        };
        rig.lay_out();
        let start = if cpl == 3 { at::USER_CODE } else { at::CODE };
        rig.write(start, code);
        rig.set(&long_state(cpl))?;
        Ok(rig)
    }

    fn lay_out(&mut self) {
        for (i, d) in GDT.iter().enumerate() {
            self.write_u64(at::GDT + 8 * i as u64, *d);
        }
        for v in 0..256 {
            self.set_gate(v, at::HANDLERS + 8 * v, sel::CODE64, 0x8e00);
            self.write(at::HANDLERS + 8 * v, &[0xf4]);
        }
        self.write_u64(at::TSS + 4, at::STACK0);
        self.write_u64(at::TSS + 0x24, at::IST1);
        // No I/O permission map.
        self.write(at::TSS + 0x66, &0x1000u16.to_le_bytes());
        self.write_u64(at::PML4, at::PDPT | P | W | U);
        self.write_u64(at::PDPT, at::PD | P | W | U);
        self.write_u64(at::PD, at::PT0 | P | W | U);
        self.write_u64(at::PD + 8 * (at::TEST >> 21), at::PT_TEST | P | W | U);
        self.write_u64(at::PD + 8 * (at::MMIO >> 21), at::PT_MMIO | P | W | U);
        for i in 0..512 {
            let user = (at::USER..at::DATA).contains(&(i << 12));
            let rights = P | W | if user { U } else { 0 };
            self.write_u64(at::PT0 + 8 * i, i << 12 | rights);
            self.write_u64(at::PT_MMIO + 8 * i, (at::MMIO_GPA + (i << 12)) | P | W | U);
        }
    }

    /// Sets a gate of the 64-bit IDT; `flags` as in its second doubleword.
    pub fn set_gate(&mut self, vector: u64, offset: u64, selector: u16, flags: u64) {
        let low = offset & 0xffff
            | u64::from(selector) << 16
            | flags << 32
            | (offset >> 16 & 0xffff) << 48;
        self.write_u64(at::IDT + 16 * vector, low);
        self.write_u64(at::IDT + 16 * vector + 8, offset >> 32);
    }

    pub fn write(&mut self, gpa: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(gpa))
            .expect("cases write inside RAM");
        self.engine.memory_written(gpa..gpa + bytes.len() as u64);
    }

    pub fn write_u64(&mut self, gpa: u64, v: u64) {
        self.write(gpa, &v.to_le_bytes());
    }

    pub fn read_u64(&self, gpa: u64) -> u64 {
        self.memory
            .read_obj(GuestAddress(gpa))
            .expect("cases read inside RAM")
    }

    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(gpa))
            .expect("cases read inside RAM");
        bytes
    }

    /// Maps the page at `TEST` + `page` * 4096.
    pub fn map(&mut self, page: u64, entry: u64) {
        self.write_u64(at::PT_TEST + 8 * page, entry);
    }

    pub fn set(&mut self, state: &CpuState) -> Result<(), String> {
        self.engine.set_state(state).map_err(|e| e.to_string())
    }

    /// Changes the state in place.
    pub fn change(&mut self, f: impl FnOnce(&mut CpuState)) -> Result<(), String> {
        let mut state = self.engine.state();
        f(&mut state);
        self.set(&state)
    }

    pub fn gpr(&self, i: usize) -> u64 {
        self.engine.state().gpr[i]
    }

    /// Goes on to the next exit, whatever it is.
    pub fn next_exit(&mut self) -> Result<Exit, String> {
        let exit = self.engine.run(None, Entry::Resume);
        exit.map_err(|e| e.to_string())
    }

    /// Runs until HLT, a triple fault, or the position.
    pub fn run_to(&mut self, until: Option<u64>) -> Result<End, String> {
        let runaway = self.engine.position().count + RUNAWAY;
        let limit = until.unwrap_or(runaway);
        let mut entry = Entry::Resume;
        loop {
            let exit = self
                .engine
                .run(Some(limit), entry)
                .map_err(|e| format!("engine failed: {e}"))?;
            entry = Entry::Resume;
            match exit {
                Exit::Boundary(Boundary::Reached) if until.is_some() => return Ok(End::Reached),
                Exit::Boundary(Boundary::Reached) => {
                    return Err(format!(
                        "still running at {:#x} after {RUNAWAY} instructions",
                        self.engine.position().rip
                    ));
                }
                Exit::Boundary(Boundary::Halt { .. }) => return Ok(End::Halt),
                Exit::Boundary(Boundary::Shutdown) => return Ok(End::Shutdown),
                Exit::Boundary(Boundary::Window) => {
                    self.seen.push(Seen::Window);
                    self.engine.request_window(false);
                }
                Exit::Boundary(Boundary::IoWrite { port, size, value }) => {
                    self.seen.push(Seen::Out { port, size, value });
                }
                Exit::Boundary(Boundary::MmioWrite { addr, size, value }) => {
                    self.seen.push(Seen::Store { addr, size, value });
                }
                Exit::Pending(read) => entry = self.answer(read),
                Exit::Adrift => return Err("still running without an exit".to_owned()),
            }
        }
    }

    fn answer(&mut self, read: PendingRead) -> Entry {
        let (seen, value) = match read {
            PendingRead::Io { port, size } => (Seen::In { port, size }, port_value(port, size)),
            PendingRead::Mmio { addr, size } => (Seen::Load { addr, size }, mmio_value(addr, size)),
        };
        self.seen.push(seen);
        Entry::Answer(value)
    }

    /// Runs until HLT outside of the handler stubs.
    pub fn finish(&mut self) -> Result<CpuState, String> {
        let end = self.run_to(None)?;
        let state = self.engine.state();
        if let Some(vector) = handler(&state) {
            return Err(format!("unexpected {:#x?}", self.frame(vector, &state)));
        }
        match end {
            End::Halt => Ok(state),
            other => Err(format!("ended with {other:?} at {:#x}", state.rip)),
        }
    }

    /// Runs until an exception (or software interrupt) is in its stub.
    pub fn fault(&mut self) -> Result<Fault, String> {
        let end = self.run_to(None)?;
        let state = self.engine.state();
        match (end, handler(&state)) {
            (End::Halt, Some(vector)) => Ok(self.frame(vector, &state)),
            _ => Err(format!("no exception: {end:?} at {:#x}", state.rip)),
        }
    }

    fn frame(&self, vector: u8, state: &CpuState) -> Fault {
        let has_error = matches!(vector, 8 | 10..=14 | 17);
        let mut sp = state.gpr[RSP];
        let mut word = || {
            let v = self.read_u64(sp);
            sp += 8;
            v
        };
        let error = has_error.then(&mut word);
        Fault {
            vector,
            error,
            rip: word(),
            cs: word(),
            rflags: word(),
            rsp: word(),
            ss: word(),
            cr2: state.cr2,
        }
    }

    /// Another machine with the same memory contents and state.
    pub fn copy(&self) -> Result<Rig<'a>, String> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), at::END as usize)])
            .map_err(|e| format!("no memory: {e}"))?;
        let memory = Arc::new(memory);
        memory
            .write_slice(&self.read(0, at::END as usize), GuestAddress(0))
            .map_err(|e| e.to_string())?;
        let mut rig = Rig {
            engine: (self.make)(&memory),
            memory,
            seen: Vec::new(),
            make: self.make,
        };
        rig.set(&self.engine.state())?;
        Ok(rig)
    }

    /// Whether positions count instructions.
    pub fn counts_instructions(&self) -> bool {
        self.engine.info().counts == CountUnit::Instructions
    }

    /// A hash of memory.
    pub fn memory_hash(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.read(0, at::END as usize))
    }
}

/// The vector of the handler stub in which the state is halted.
fn handler(state: &CpuState) -> Option<u8> {
    let offset = state.rip.checked_sub(at::HANDLERS + 1)?;
    (offset < 256 * 8 && offset.is_multiple_of(8)).then_some((offset / 8) as u8)
}

/// What a port reads as.
pub fn port_value(port: u16, size: u8) -> u64 {
    let v = 0x89ab_cdefu64.wrapping_mul(u64::from(port) | 1);
    v & (u64::MAX >> (64 - 8 * u32::from(size)))
}

/// What memory outside RAM reads as: each byte depends on its address.
pub fn mmio_value(addr: u64, size: u8) -> u64 {
    let mut bytes = [0; 8];
    for (i, b) in bytes[..usize::from(size)].iter_mut().enumerate() {
        *b = ((addr + i as u64).wrapping_mul(29) ^ 0x5a) as u8;
    }
    u64::from_le_bytes(bytes)
}

fn flat(selector: u16, access: u32) -> Segment {
    Segment {
        selector,
        access,
        base: 0,
        limit: u32::MAX,
    }
}

/// 64-bit mode with paging, NX, WP; interrupts off.
pub fn long_state(cpl: u8) -> CpuState {
    let mut s = CpuState::at_reset();
    let dpl = u32::from(cpl) << 5;
    let (code, data) = if cpl == 3 {
        (sel::USER64, sel::USER_DATA)
    } else {
        (sel::CODE64, sel::DATA)
    };
    s.segments = [flat(data, 0xc093 | dpl); 6];
    s.segments[1] = flat(code, 0xa09b | dpl);
    s.cr0 = 0x8001_0033;
    s.cr3 = at::PML4;
    s.cr4 = 0x6a0;
    s.msrs.efer = 0xd01;
    s.gdtr = DescriptorTable {
        base: at::GDT,
        limit: 0xfff,
    };
    s.idtr = DescriptorTable {
        base: at::IDT,
        limit: 0xfff,
    };
    s.tr = Segment {
        selector: sel::TSS,
        access: 0x8b,
        base: at::TSS,
        limit: 0xfff,
    };
    s.ldtr = Segment {
        selector: 0,
        access: 0x1_0000,
        base: 0,
        limit: 0,
    };
    s.cpl = cpl;
    s.gpr = [0; 16];
    (s.rip, s.gpr[RSP]) = if cpl == 3 {
        (at::USER_CODE, at::USER_STACK)
    } else {
        (at::CODE, at::STACK)
    };
    s
}

/// 32-bit protected mode without paging, flat segments, CPL 0.
pub fn protected_state() -> CpuState {
    let mut s = long_state(0);
    s.cr0 = 0x11;
    s.cr4 = 0;
    s.cr3 = 0;
    s.msrs.efer = 0;
    s.segments[1] = flat(sel::CODE32, 0xc09b);
    s.idtr.limit = 0x7ff;
    s
}

/// Real mode: code at 2000:0000, data segments and stack at 0, stack pointer 5000h.
pub fn real_state() -> CpuState {
    let mut s = CpuState::at_reset();
    s.segments[1] = Segment {
        selector: 0x2000,
        access: 0x9b,
        base: at::CODE,
        limit: 0xffff,
    };
    s.rip = 0;
    s.gpr = [0; 16];
    s.gpr[RSP] = at::STACK;
    s.cr0 = 0x10;
    s.idtr = DescriptorTable {
        base: 0,
        limit: 0x3ff,
    };
    s
}
