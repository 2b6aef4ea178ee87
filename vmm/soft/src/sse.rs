//! SSE to SSE4.2 and MMX.
//!
//! Nearly all of these instructions compute with registers and at most one memory operand: the host
//! executes them ([`crate::native`], [`native`]). Here are the decision which handler an
//! instruction gets, and what is common to them: whether the instructions are enabled.

mod control;
mod moves;
mod native;
mod packed;
mod scalar;

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, Register};

use crate::cpu::Cpu;
use crate::decode::Decoding;
use crate::op::{Handler, Op};
use crate::stop::{Stop, vector};

/// CR0.MP: FWAIT looks at TS.
pub const CR0_MP: u64 = 1 << 1;
/// CR0.EM: no x87.
pub const CR0_EM: u64 = 1 << 2;
/// CR0.TS: task switched.
pub const CR0_TS: u64 = 1 << 3;
/// CR0.NE: x87 exceptions raise #MF.
pub const CR0_NE: u64 = 1 << 5;
/// CR4.OSFXSR: the system saves SSE state; SSE is enabled.
pub const CR4_OSFXSR: u64 = 1 << 9;
/// CR4.OSXMMEXCPT: SSE exceptions raise #XM.
pub const CR4_OSXMMEXCPT: u64 = 1 << 10;

/// The handler of one of these instructions, or None if it is not one.
pub fn decode(d: &mut Decoding) -> Option<Handler> {
    if !is_offered(d.ins) {
        return None;
    }
    control::decode(d)
        .or_else(|| moves::decode(d))
        .or_else(|| native::decode(d))
}

/// Whether the instruction is one of ours and CPUID offers it.
fn is_offered(ins: &Instruction) -> bool {
    const OURS: [CpuidFeature; 9] = [
        CpuidFeature::MMX,
        CpuidFeature::SSE,
        CpuidFeature::SSE2,
        CpuidFeature::SSE3,
        CpuidFeature::SSSE3,
        CpuidFeature::SSE4_1,
        CpuidFeature::SSE4_2,
        CpuidFeature::FXSR,
        CpuidFeature::CLFSH,
    ];
    let prefetchw = matches!(
        ins.code(),
        Code::Prefetch_m8
            | Code::Prefetchw_m8
            | Code::Prefetchwt1_m8
            | Code::Prefetchreserved3_m8
            | Code::Prefetchreserved4_m8
            | Code::Prefetchreserved5_m8
            | Code::Prefetchreserved6_m8
            | Code::Prefetchreserved7_m8
    );
    let integer = matches!(ins.mnemonic(), Mnemonic::Crc32 | Mnemonic::Pause)
        || ins.mnemonic() == Mnemonic::Fisttp;
    let listed = ins.cpuid_features().iter().all(|f| OURS.contains(f));
    ins.encoding() == EncodingKind::Legacy && !integer && (listed || prefetchw)
}

/// Whether one of the explicit operands is a register of the kind that `is` tells.
fn has_register(ins: &Instruction, is: fn(Register) -> bool) -> bool {
    (0..ins.op_count()).any(|i| is(ins.op_register(i)))
}

impl Cpu {
    /// #UD or #NM unless SSE instructions are enabled (SDM vol. 3, table 13-1).
    #[inline(always)]
    pub fn check_sse(&mut self) -> Result<(), Stop> {
        if self.cr0 & (CR0_EM | CR0_TS) | (self.cr4 ^ CR4_OSFXSR) & CR4_OSFXSR != 0 {
            return Err(self.sse_disabled());
        }
        Ok(())
    }

    #[cold]
    fn sse_disabled(&mut self) -> Stop {
        if self.cr0 & CR0_EM != 0 || self.cr4 & CR4_OSFXSR == 0 {
            return self.raise_ud();
        }
        self.raise(vector::NM, None)
    }

    /// #UD, #NM or #MF unless MMX instructions can run (SDM vol. 3, table 12-1).
    pub fn check_mmx(&mut self) -> Result<(), Stop> {
        if self.cr0 & CR0_EM != 0 {
            return Err(self.raise_ud());
        }
        if self.cr0 & CR0_TS != 0 {
            return Err(self.raise(vector::NM, None));
        }
        self.check_pending()
    }

    /// #MF if an unmasked x87 exception is pending. With CR0.NE clear a PC reports it through FERR#
    /// and IRQ 13, which this machine does not wire: the instruction runs on.
    pub fn check_pending(&mut self) -> Result<(), Stop> {
        if self.fp.pending() && self.cr0 & CR0_NE != 0 {
            return Err(self.raise(vector::MF, None));
        }
        Ok(())
    }

    /// #GP(0) unless `linear` is a multiple of 16.
    #[inline(always)]
    pub fn check_aligned(&mut self, linear: u64) -> Result<(), Stop> {
        if linear & 15 != 0 {
            return Err(self.raise_gp(0));
        }
        Ok(())
    }
}

/// Does nothing: prefetches.
fn nothing(_cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    Ok(())
}
