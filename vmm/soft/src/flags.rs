//! RFLAGS: status flags as the host computes them, control flags apart.

use crate::cpu::{Cpu, attention};

pub const CF: u64 = 1;
pub const PF: u64 = 1 << 2;
pub const AF: u64 = 1 << 4;
pub const ZF: u64 = 1 << 6;
pub const SF: u64 = 1 << 7;
pub const TF: u64 = 1 << 8;
pub const IF: u64 = 1 << 9;
pub const DF: u64 = 1 << 10;
pub const OF: u64 = 1 << 11;
pub const IOPL: u64 = 3 << 12;
pub const NT: u64 = 1 << 14;
pub const RF: u64 = 1 << 16;
pub const VM: u64 = 1 << 17;
pub const AC: u64 = 1 << 18;
pub const VIF: u64 = 1 << 19;
pub const VIP: u64 = 1 << 20;
pub const ID: u64 = 1 << 21;

/// The status flags.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
/// Every bit of RFLAGS that exists, beside the fixed bit 1.
pub const ALL: u64 = STATUS | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;

impl Cpu {
    /// RFLAGS.
    pub fn rflags(&self) -> u64 {
        self.control | self.status & STATUS
    }

    /// Sets all of RFLAGS; bits that do not exist are ignored. Which bits an instruction may change
    /// is its own affair.
    pub fn set_rflags(&mut self, rflags: u64) {
        self.status = rflags & STATUS;
        let old = std::mem::replace(&mut self.control, rflags & ALL & !STATUS | 2);
        if (old ^ rflags) & AC != 0 {
            self.update_rights();
        }
        self.attention &= !attention::TRAP;
        if rflags & TF != 0 {
            self.attention |= attention::TRAP;
        }
    }

    /// Whether a control flag is set.
    #[inline(always)]
    pub fn control_flag(&self, flag: u64) -> bool {
        self.control & flag != 0
    }

    /// RFLAGS.IOPL.
    pub fn iopl(&self) -> u8 {
        (self.control >> 12 & 3) as u8
    }
}
