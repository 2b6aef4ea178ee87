//! Runs cases on a CPU engine: 64-bit user code in a small address space, with a kernel whose
//! handlers only halt, so that an exception shows as the handler's address and its stack frame.

use std::sync::Arc;

use anyhow::{Context, bail};
use engine::{Boundary, CpuState, DescriptorTable, Engine, Entry, Exit, Segment};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::case::{
    CODE, CODE_SIZE, DATA, DATA_SIZE, DATA_WRITABLE, End, GS_BASE, Input, Mode, Output, PAGE,
    STACK, USER_SS,
};

/// RAM, in bytes.
const RAM: usize = 4 << 20;
/// Linear address at which the kernel sees guest-physical 0.
const KERNEL: u64 = 0xffff_8000_0000_0000;

// Guest-physical places. The pages of CODE and of DATA are not neighbours.
const PML4: u64 = 0x1000;
const LOW_PDPT: u64 = 0x2000;
const LOW_PD: u64 = 0x3000;
const CODE_PT: u64 = 0x4000;
const DATA_PT: u64 = 0x5000;
const STACK_PT: u64 = 0x6000;
const HIGH_PDPT: u64 = 0x7000;
const HIGH_PD: u64 = 0x8000;
const CODE_GPA: [u64; 2] = [0x1_0000, 0x3_2000];
const DATA_GPA: [u64; 3] = [0x3_0000, 0x1_2000, 0x1_5000];
const STACK_GPA: u64 = 0x1_8000;
const IDT: u64 = 0x2_0000;
const GDT: u64 = 0x2_1000;
const TSS: u64 = 0x2_2000;
const HANDLERS: u64 = 0x2_3000;
const KERNEL_STACK_TOP: u64 = 0x2_6000;

// Page table bits.
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Distance between two handlers, in bytes.
const HANDLER: u64 = 16;
/// Instructions after which a case counts as endless.
pub const LIMIT: u64 = 1_000_000;

/// A case's machine on one engine.
pub struct Guest {
    engine: Box<dyn Engine>,
    memory: Arc<GuestMemoryMmap<()>>,
    start: CpuState,
    mode: Mode,
}

impl Guest {
    /// A machine whose engine `make` makes.
    pub fn new(
        mode: Mode,
        make: impl FnOnce(&Arc<GuestMemoryMmap<()>>) -> Result<Box<dyn Engine>, engine::EngineError>,
    ) -> anyhow::Result<Self> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)])
            .context("no memory for the guest")?;
        let memory = Arc::new(memory);
        let mut guest = Self {
            engine: make(&memory)?,
            memory,
            start: start_state(mode),
            mode,
        };
        guest.build()?;
        guest.engine.memory_written(0..RAM as u64);
        Ok(guest)
    }

    fn put(&self, gpa: u64, bytes: &[u8]) -> anyhow::Result<()> {
        self.memory
            .write_slice(bytes, GuestAddress(gpa))
            .with_context(|| format!("writing {} bytes at {gpa:#x}", bytes.len()))
    }

    fn get<const N: usize>(&self, gpa: u64) -> anyhow::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(gpa))
            .with_context(|| format!("reading {N} bytes at {gpa:#x}"))?;
        Ok(bytes)
    }

    fn entry(&self, table: u64, index: u64, value: u64) -> anyhow::Result<()> {
        self.put(table + 8 * index, &value.to_le_bytes())
    }

    fn build(&mut self) -> anyhow::Result<()> {
        let all = PRESENT | WRITABLE | ACCESSED;
        let user = all | USER;
        self.entry(PML4, 0, LOW_PDPT | user)?;
        self.entry(LOW_PDPT, 0, LOW_PD | user)?;
        for (linear, table) in [(CODE, CODE_PT), (DATA, DATA_PT), (STACK, STACK_PT)] {
            self.entry(LOW_PD, linear >> 21, table | user)?;
        }
        for (i, gpa) in CODE_GPA.into_iter().enumerate() {
            self.entry(CODE_PT, i as u64, gpa | USER | PRESENT | ACCESSED)?;
        }
        let data = USER | PRESENT | ACCESSED | DIRTY | NO_EXECUTE;
        self.entry(DATA_PT, 0, DATA_GPA[0] | data | WRITABLE)?;
        self.entry(DATA_PT, 1, DATA_GPA[1] | data | WRITABLE)?;
        self.entry(DATA_PT, 2, DATA_GPA[2] | data)?;
        self.entry(STACK_PT, 0, STACK_GPA | data | WRITABLE)?;
        self.entry(PML4, KERNEL >> 39 & 511, HIGH_PDPT | all)?;
        self.entry(HIGH_PDPT, 0, HIGH_PD | all)?;
        for i in 0..2 {
            self.entry(HIGH_PD, i, i << 21 | all | LARGE | DIRTY)?;
        }
        for (i, descriptor) in [
            0,
            0x00af_9b00_0000_ffff_u64, // kernel code
            0x00cf_9300_0000_ffff,     // kernel data
            0,
            0x00cf_fb00_0000_ffff, // 32-bit user code: 20h
            0x00cf_f300_0000_ffff, // user data: 28h
            0x00af_fb00_0000_ffff, // user code: 30h
        ]
        .into_iter()
        .enumerate()
        {
            self.entry(GDT, i as u64, descriptor)?;
        }
        self.put(TSS + 4, &(KERNEL + KERNEL_STACK_TOP).to_le_bytes())?;
        // No I/O permission bitmap.
        self.put(TSS + 102, &0x68u16.to_le_bytes())?;
        self.put(HANDLERS, &[0xf4; (256 * HANDLER) as usize])?;
        for vector in 0..256 {
            // Linux lets user code raise only #BP and #OF.
            let dpl = if matches!(vector, 3 | 4) { 3 } else { 0 };
            let target = KERNEL + HANDLERS + vector * HANDLER;
            let low = target & 0xffff
                | 8 << 16
                | (0x8e00 | dpl << 13) << 32
                | (target >> 16 & 0xffff) << 48;
            self.entry(IDT, 2 * vector, low)?;
            self.entry(IDT, 2 * vector + 1, target >> 32)?;
        }
        Ok(())
    }

    /// Runs a case.
    pub fn run(&mut self, input: &Input, output: &mut Output) -> anyhow::Result<()> {
        self.load(input)?;
        let mut exit = self.engine.run(Some(LIMIT), Entry::Resume)?;
        let count = self.engine.position().count;
        if input.stops != 0 {
            self.load(input)?;
            exit = self.run_with_stops(input.stops)?;
        }
        self.take(output)?;
        match exit {
            Exit::Boundary(Boundary::Halt { .. }) => self.exception(output)?,
            Exit::Boundary(Boundary::Reached) => output.end = End::Limit,
            _ => output.end = End::Strange,
        }
        if self.engine.position().count != count {
            output.end = End::Miscounted;
        }
        Ok(())
    }

    /// Runs a case to a position that it comes to.
    pub fn run_to(
        &mut self,
        position: u64,
        input: &Input,
        output: &mut Output,
    ) -> anyhow::Result<()> {
        self.load(input)?;
        self.engine.run(Some(position), Entry::Resume)?;
        self.take(output)
    }

    /// Registers and memory.
    fn take(&self, output: &mut Output) -> anyhow::Result<()> {
        let state = self.engine.state();
        output.gpr = state.gpr;
        output.rflags = state.rflags;
        output.rip = state.rip;
        output.fx.copy_from_slice(&state.fxsave[..512]);
        (output.vector, output.error, output.cr2) = (0, 0, 0);
        let data: [u8; PAGE] = self.get(DATA_GPA[0])?;
        output.data[..PAGE].copy_from_slice(&data);
        let data: [u8; PAGE] = self.get(DATA_GPA[1])?;
        output.data[PAGE..].copy_from_slice(&data);
        output.stack = self.get(STACK_GPA)?;
        Ok(())
    }

    /// Runs a few instructions at a time; now and then with the state taken out and put back.
    fn run_with_stops(&mut self, seed: u64) -> anyhow::Result<Exit> {
        let mut random = seed;
        for stops in 0.. {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Not for ever through a long REP.
            let step = if stops < 100 { 1 + random % 4 } else { 5000 };
            let until = (self.engine.position().count + step).min(LIMIT);
            let exit = self.engine.run(Some(until), Entry::Resume)?;
            if exit != Exit::Boundary(Boundary::Reached) || until == LIMIT {
                return Ok(exit);
            }
            if random & 0x700 == 0 {
                let state = self.engine.state();
                self.engine.set_state(&state)?;
            }
        }
        unreachable!("the positions go up to LIMIT")
    }

    /// Runs a case step by step, a step being an instruction or an iteration. `see` gets the state
    /// before and after each; none after one that ends the case.
    pub fn walk(
        &mut self,
        input: &Input,
        mut see: impl FnMut(&CpuState, Option<&CpuState>),
    ) -> anyhow::Result<()> {
        self.load(input)?;
        let mut before = self.engine.state();
        for _ in 0..LIMIT {
            let until = self.engine.position().count + 1;
            if self.engine.run(Some(until), Entry::Resume)? != Exit::Boundary(Boundary::Reached) {
                see(&before, None);
                break;
            }
            let after = self.engine.state();
            see(&before, Some(&after));
            before = after;
        }
        Ok(())
    }

    fn load(&mut self, input: &Input) -> anyhow::Result<()> {
        let mut code = [0xcc; CODE_SIZE];
        let (at, bytes) = input.placed_code();
        code[at..at + bytes.len()].copy_from_slice(bytes);
        for (page, gpa) in code.chunks(PAGE).zip(CODE_GPA) {
            self.put(gpa, page)?;
        }
        for (page, gpa) in input.data.chunks(PAGE).zip(DATA_GPA) {
            self.put(gpa, page)?;
        }
        self.put(STACK_GPA, &input.stack)?;
        for gpa in CODE_GPA.into_iter().chain(DATA_GPA).chain([STACK_GPA]) {
            self.engine.memory_written(gpa..gpa + PAGE as u64);
        }
        self.start.gpr = input.gpr;
        self.start.rip = input.code_at;
        self.start.rflags = input.rflags;
        self.start.fxsave.copy_from_slice(&input.fx);
        self.engine.set_state(&self.start)?;
        Ok(())
    }

    /// Reads what the exception pushed.
    fn exception(&self, output: &mut Output) -> anyhow::Result<()> {
        let state = self.engine.state();
        let handler = state.rip.wrapping_sub(KERNEL + HANDLERS);
        if handler >= 256 * HANDLER {
            bail!("halted at {:#x}, which is no handler", state.rip);
        }
        let vector = handler / HANDLER;
        let mut frame = state.gpr[4].wrapping_sub(KERNEL);
        output.end = End::Exception;
        output.vector = vector as u32;
        if matches!(vector, 8 | 10..=14 | 17) {
            output.error = u64::from_le_bytes(self.get(frame)?);
            frame += 8;
        }
        let frame: [u8; 40] = self.get(frame)?;
        let word = |i: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&frame[8 * i..8 * i + 8]);
            u64::from_le_bytes(bytes)
        };
        output.rip = word(0);
        output.rflags = word(2);
        output.gpr[4] = word(3);
        if vector == 14 {
            output.cr2 = state.cr2;
        }
        if vector == 14 && output.rip == self.mode.end() && output.cr2 == output.rip {
            output.end = End::Reached;
            (output.vector, output.error, output.cr2) = (0, 0, 0);
        }
        Ok(())
    }
}

/// Long mode, CPL 3, in the tables that `Guest::build` makes.
fn start_state(mode: Mode) -> CpuState {
    let mut state = CpuState::at_reset();
    let data = |selector, base| Segment {
        selector,
        access: 0xc0f3,
        base,
        limit: u32::MAX,
    };
    let null = |base| Segment {
        selector: 0,
        access: 1 << 16,
        base,
        limit: 0,
    };
    let (code, other) = match mode {
        Mode::Bits64 => (0xa0fb, null(0)),
        Mode::Bits32 => (0xc0fb, data(USER_SS, 0)),
    };
    state.segments = [
        other,
        Segment {
            selector: mode.code_selector(),
            access: code,
            base: 0,
            limit: u32::MAX,
        },
        data(USER_SS, 0),
        other,
        null(0),
        null(GS_BASE),
    ];
    state.tr = Segment {
        selector: 0x40,
        access: 0x8b,
        base: KERNEL + TSS,
        limit: 0x67,
    };
    state.gdtr = DescriptorTable {
        base: KERNEL + GDT,
        limit: 0x4f,
    };
    state.idtr = DescriptorTable {
        base: KERNEL + IDT,
        limit: 0xfff,
    };
    // PG, AM, WP, NE, ET, MP, PE; OSXMMEXCPT, OSFXSR, PGE, PAE; NXE, LMA, LME, SCE.
    state.cr0 = 0x8005_0033;
    state.cr3 = PML4;
    state.cr4 = 0x6a0;
    state.msrs.efer = 0xd01;
    state.cpl = 3;
    state
}

const _: () = assert!(DATA_WRITABLE == 2 * PAGE && DATA_SIZE == 3 * PAGE);
