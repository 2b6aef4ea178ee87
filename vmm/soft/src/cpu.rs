//! The state of the CPU, hot fields first. `repr(C)`: generated code will address its fields.

use engine::{ClockBase, DescriptorTable, Msrs, Segment};

use crate::external::External;
use crate::fpstate::FpState;
use crate::mmu::Mmu;
use crate::native::NativeCode;
use crate::phys::Phys;
use crate::stop::StopReason;

/// Register numbers.
pub mod reg {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
}

/// Indices into `Cpu::seg`.
pub mod seg {
    pub const ES: u8 = 0;
    pub const CS: u8 = 1;
    pub const SS: u8 = 2;
    pub const DS: u8 = 3;
    pub const FS: u8 = 4;
    pub const GS: u8 = 5;
}

/// Bits of `Cpu::attention`: while any is set the run loop looks before every block, and runs
/// instructions one by one where the bit says so.
pub mod attention {
    /// Writes are queued in `external`.
    pub const EXIT: u32 = 1;
    /// In HLT (`Cpu::halted`).
    pub const HALTED: u32 = 1 << 1;
    /// Triple fault (`Cpu::shutdown`).
    pub const SHUTDOWN: u32 = 1 << 2;
    /// `request_window(true)`.
    pub const WINDOW: u32 = 1 << 3;
    /// `Cpu::interrupt_shadow` is set: cleared when the next instruction has retired.
    pub const SHADOW: u32 = 1 << 4;
    /// RFLAGS.TF is set: #DB after each instruction.
    pub const TRAP: u32 = 1 << 5;
    /// DR7 enables a breakpoint.
    pub const BREAKPOINTS: u32 = 1 << 6;
    /// `Phys::written_code` is not empty: decoded blocks are to be dropped.
    pub const CODE: u32 = 1 << 7;
}

/// Width of the code being executed; part of the key of decoded blocks. Follows CS and EFER.LMA:
/// kept by `Cpu::update_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CodeMode {
    Bits16 = 0,
    Bits32 = 1,
    Bits64 = 2,
}

/// The vCPU.
#[repr(C)]
pub struct Cpu {
    /// RAX to R15; 16 and 17 are always 0 (`op::NONE`, `op::BASE_RIP`), the rest unused, so that a
    /// 5-bit number needs no bounds check.
    pub gpr: [u64; 32],
    /// IP (offset in CS) of the next instruction at a boundary; within a block, of the block's
    /// first instruction (see `op::Handler`).
    pub rip: u64,
    /// CF, PF, AF, ZF, SF, OF at their places in RFLAGS; other bits are garbage.
    pub status: u64,
    /// The other bits of RFLAGS (bit 1 set). Written only by `Cpu::set_rflags`.
    pub control: u64,
    /// Retired instructions, one per REP iteration; within a block, at the block's begin.
    pub count: u64,
    /// The count at which the run stops.
    pub until: u64,
    /// Bits of `attention`.
    pub attention: u32,
    /// One instruction is run alone: stores to code pages and outside RAM are allowed (see
    /// `StopReason::Step`).
    pub stepping: bool,
    pub code_mode: CodeMode,
    pub cpl: u8,
    /// All ones in 64-bit code, 32 bits else.
    pub ip_mask: u64,
    /// Why the last instruction stopped.
    pub stop: StopReason,
    /// `Op::offset`, `index` and `seg` of the instruction that stopped.
    pub stop_offset: u16,
    pub stop_index: u8,
    pub stop_segment: u8,
    /// TLB and translation state.
    pub mmu: Mmu,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    /// DR0 to DR3, DR6, DR7.
    pub dr: [u64; 6],
    pub xcr0: u64,
    pub msrs: Msrs,
    pub clock: ClockBase,
    pub halted: bool,
    pub interrupt_shadow: bool,
    pub shutdown: bool,
    /// The instruction has cleared RFLAGS.TF on entry to a handler: it is not trapped.
    pub trap_suppressed: bool,
    /// x87, MMX, SSE registers.
    pub fp: FpState,
    /// Compiled stubs of instructions that the host executes.
    pub native: NativeCode,
    /// Port and MMIO traffic.
    pub external: External,
    /// RAM and what is known of its pages.
    pub phys: Phys,
}

impl Cpu {
    /// A CPU on the given RAM; its state is still to be set.
    pub fn new(phys: Phys, native: NativeCode) -> Self {
        Self {
            gpr: [0; 32],
            rip: 0,
            status: 0,
            control: 2,
            count: 0,
            until: 0,
            attention: 0,
            stepping: false,
            code_mode: CodeMode::Bits16,
            cpl: 0,
            ip_mask: u64::MAX,
            stop: StopReason::Step,
            stop_offset: 0,
            stop_index: 0,
            stop_segment: seg::DS,
            mmu: Mmu::default(),
            seg: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            dr: [0; 6],
            xcr0: 1,
            msrs: Msrs::default(),
            clock: ClockBase::at_power_on(1),
            halted: false,
            interrupt_shadow: false,
            shutdown: false,
            trap_suppressed: false,
            fp: FpState::default(),
            native,
            external: External::default(),
            phys,
        }
    }
}
