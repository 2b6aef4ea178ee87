//! One test case: where things are in its address space, what it starts from, what it leaves.
//!
//! The same linear addresses are used by the host process that runs the case natively and by the
//! guest: two pages of code (read, execute), three of data (two read-write, one read-only), one of
//! stack, everything else unmapped.

/// Size of a page, in bytes.
pub const PAGE: usize = 0x1000;
/// The pages of code.
pub const CODE: u64 = 0x0100_0000;
/// Bytes of CODE.
pub const CODE_SIZE: usize = 2 * PAGE;
/// Two pages that can be written and one that cannot.
pub const DATA: u64 = 0x0200_0000;
/// Bytes of DATA that can be written.
pub const DATA_WRITABLE: usize = 2 * PAGE;
/// All of DATA.
pub const DATA_SIZE: usize = 3 * PAGE;
/// The page of stack.
pub const STACK: u64 = 0x0300_0000;
/// Native only: the code that enters and leaves cases, and a page for its registers. Unmapped in
/// the guest, and not where the sum of two other places is.
pub const HARNESS: u64 = 0x6b7d_3000;
/// `Mode::end`.
pub const END: u64 = HARNESS + 0x800;
pub const END_32: u64 = HARNESS + 0xc00;
/// Base of GS in both.
pub const GS_BASE: u64 = DATA + 0x800;
/// SS of user code (in 32-bit code DS and ES too), as Linux has it.
pub const USER_SS: u16 = 0x2b;

/// Which code a case is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Bits64,
    /// Compatibility mode, flat segments.
    Bits32,
}

impl Mode {
    pub fn bits(self) -> u32 {
        match self {
            Self::Bits64 => 64,
            Self::Bits32 => 32,
        }
    }

    /// CS of user code, as Linux has it.
    pub fn code_selector(self) -> u16 {
        match self {
            Self::Bits64 => 0x33,
            Self::Bits32 => 0x23,
        }
    }

    /// Where the end of a sequence jumps to: in the guest that is a page fault.
    pub fn end(self) -> u64 {
        match self {
            Self::Bits64 => END,
            Self::Bits32 => END_32,
        }
    }
}
/// Longest sequence, in bytes, with the jump at its end.
pub const SEQUENCE_SIZE: usize = 512;

/// What a case starts from.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Input {
    /// In the order of `CpuState::gpr`.
    pub gpr: [u64; 16],
    pub rflags: u64,
    pub fx: [u8; 512],
    /// Not 0: the guest is stopped at positions that follow from this number, and its state saved
    /// and restored there, which must not show.
    pub stops: u64,
    /// Where the code begins, from CODE on. What does not fit behind it is not there.
    pub code_at: u64,
    pub code: [u8; SEQUENCE_SIZE],
    pub data: [u8; DATA_SIZE],
    pub stack: [u8; PAGE],
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum End {
    /// At `END`.
    #[default]
    Reached = 0,
    /// By an exception.
    Exception = 1,
    /// By something that says nothing about the CPU: a system call, a hang, a crash of the harness,
    /// an instruction whose result is the machine's own affair.
    Skipped = 2,
    /// Guest only: neither within the limit of instructions.
    Limit = 3,
    /// Guest only: an exit that no case may cause.
    Strange = 4,
    /// Guest only: with stops on the way, another number of instructions retired than without.
    Miscounted = 5,
}

/// What a case leaves.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Output {
    pub end: End,
    pub vector: u32,
    pub error: u64,
    pub cr2: u64,
    pub rip: u64,
    pub rflags: u64,
    pub gpr: [u64; 16],
    pub fx: [u8; 512],
    pub data: [u8; DATA_WRITABLE],
    pub stack: [u8; PAGE],
}

impl Input {
    /// Offset of the code in the pages of code, and the bytes of it that fit.
    pub fn placed_code(&self) -> (usize, &[u8]) {
        let at = (self.code_at.wrapping_sub(CODE) as usize).min(CODE_SIZE);
        (at, &self.code[..SEQUENCE_SIZE.min(CODE_SIZE - at)])
    }
}

impl Default for Input {
    fn default() -> Self {
        Self {
            gpr: [0; 16],
            rflags: 0x202,
            fx: [0; 512],
            stops: 0,
            code_at: CODE,
            code: [0; SEQUENCE_SIZE],
            data: [0; DATA_SIZE],
            stack: [0; PAGE],
        }
    }
}

impl Default for Output {
    fn default() -> Self {
        Self {
            end: End::Reached,
            vector: 0,
            error: 0,
            cr2: 0,
            rip: 0,
            rflags: 0,
            gpr: [0; 16],
            fx: [0; 512],
            data: [0; DATA_WRITABLE],
            stack: [0; PAGE],
        }
    }
}
