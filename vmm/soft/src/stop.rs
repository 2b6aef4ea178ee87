//! Why an instruction did not complete.
//!
//! Handlers and memory accesses return `Result<T, Stop>`. `Stop` is zero-sized, so that the hot
//! path carries one bit; the reason lies in `cpu.stop`. An instruction that stops has changed
//! nothing: registers, flags and memory are as before it.

use engine::PendingRead;

use crate::cpu::Cpu;

/// The instruction did not complete; `cpu.stop` says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop;

/// Exception vectors (SDM vol. 3, table 6-1).
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// A fault to deliver with the saved IP at the instruction that stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    pub vector: u8,
    /// The error code, for the vectors that push one.
    pub error: Option<u32>,
    /// The faulting linear address of a page fault.
    pub cr2: u64,
}

/// Why the last instruction did not complete. All of these leave it not retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// A fault is to be delivered.
    Exception(Exception),
    /// A memory operand's linear address is not canonical: #SS(0) if the instruction's segment is
    /// SS, else #GP(0). The run loop tells which by `Op::seg`.
    NonCanonical,
    /// The access is one that may end the block it is in (a store to a page with decoded code or
    /// to memory outside RAM): the instruction is to be run again alone, with `cpu.stepping` set.
    Step,
    /// A port or memory outside RAM must be read: see `external`.
    Read(PendingRead),
}

impl Cpu {
    /// Stops with an exception; `Err(cpu.raise(..))`.
    #[cold]
    pub fn raise(&mut self, vector: u8, error: Option<u32>) -> Stop {
        self.stop = StopReason::Exception(Exception {
            vector,
            error,
            cr2: 0,
        });
        Stop
    }

    /// #PF with its error code (SDM vol. 3, 4.7).
    #[cold]
    pub fn raise_page_fault(&mut self, linear: u64, error: u32) -> Stop {
        self.stop = StopReason::Exception(Exception {
            vector: vector::PF,
            error: Some(error),
            cr2: linear,
        });
        Stop
    }

    /// #UD.
    #[cold]
    pub fn raise_ud(&mut self) -> Stop {
        self.raise(vector::UD, None)
    }

    /// #GP with a selector or 0.
    #[cold]
    pub fn raise_gp(&mut self, error: u32) -> Stop {
        self.raise(vector::GP, Some(error))
    }

    /// Stops for another reason.
    #[cold]
    pub fn stop_for(&mut self, reason: StopReason) -> Stop {
        self.stop = reason;
        Stop
    }
}
