//! Model-specific registers: what a read gives and a write does, the same on every engine. An MSR
//! that is not listed here raises #GP(0), for reads and writes.

use crate::Msrs;
use crate::bits::{efer, is_canonical};

/// MSR numbers (SDM vol. 4, table 2-2).
pub mod number {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const MICROCODE: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MISC_FEATURES: u32 = 0x140;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUG_CONTROL: u32 = 0x1d9;
    pub const PAT: u32 = 0x277;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// Bits of IA32_MISC_ENABLE that the guest may change: fast strings, limit CPUID, XD disable are
/// kept; what they would switch is not affected.
const MISC_ENABLE_BITS: u64 = 0x0000_0004_0085_1889;

/// What the MSRs depend on beside themselves.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// What the clock reads at the beginning of the instruction.
    pub clock: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    /// CR0.PG.
    pub paging: bool,
}

/// What a write asks of the engine beside what is in [`Msrs`] now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    FsBase(u64),
    GsBase(u64),
    /// EFER was written; addresses and rights may depend on it.
    Efer,
}

/// What RDMSR gives; None: #GP(0).
pub fn read(index: u32, m: &Msrs, context: &Context) -> Option<u64> {
    Some(match index {
        number::TSC => context.clock.wrapping_add(m.tsc_offset),
        number::PLATFORM_ID
        | number::PLATFORM_INFO
        | number::MISC_FEATURES
        | number::DEBUG_CONTROL => 0,
        // What writes have added to the TSC, and so its distance to the clock (SDM vol. 3, 17.17.3).
        number::TSC_ADJUST => m.tsc_offset,
        // Locked, nothing enabled.
        number::FEATURE_CONTROL => 1,
        // Revision 1.
        number::MICROCODE => 1 << 32,
        number::SYSENTER_CS => m.sysenter_cs,
        number::SYSENTER_ESP => m.sysenter_esp,
        number::SYSENTER_EIP => m.sysenter_eip,
        number::MISC_ENABLE => m.misc_enable,
        number::PAT => m.pat,
        number::EFER => m.efer,
        number::STAR => m.star,
        number::LSTAR => m.lstar,
        number::CSTAR => m.cstar,
        number::SFMASK => m.sfmask,
        number::FS_BASE => context.fs_base,
        number::GS_BASE => context.gs_base,
        number::KERNEL_GS_BASE => m.kernel_gs_base,
        number::TSC_AUX => m.tsc_aux,
        _ => return None,
    })
}

/// What WRMSR does; None: #GP(0), and nothing is changed.
pub fn write(index: u32, v: u64, m: &mut Msrs, context: &Context) -> Option<Effect> {
    if !may_hold(index, v) {
        return None;
    }
    match index {
        number::TSC => m.tsc_offset = v.wrapping_sub(context.clock),
        number::TSC_ADJUST => m.tsc_offset = v,
        number::MICROCODE | number::DEBUG_CONTROL | number::MISC_FEATURES => {}
        number::SYSENTER_CS => m.sysenter_cs = v,
        number::SYSENTER_ESP => m.sysenter_esp = v,
        number::SYSENTER_EIP => m.sysenter_eip = v,
        number::MISC_ENABLE => m.misc_enable = v,
        number::PAT => m.pat = v,
        number::EFER => return write_efer(v, m, context.paging),
        number::STAR => m.star = v,
        number::LSTAR => m.lstar = v,
        number::CSTAR => m.cstar = v,
        number::SFMASK => m.sfmask = v,
        number::FS_BASE => return Some(Effect::FsBase(v)),
        number::GS_BASE => return Some(Effect::GsBase(v)),
        number::KERNEL_GS_BASE => m.kernel_gs_base = v,
        number::TSC_AUX => m.tsc_aux = v,
        _ => return None,
    }
    Some(Effect::None)
}

/// Whether the MSR, if there is one, can take the value.
fn may_hold(index: u32, v: u64) -> bool {
    match index {
        number::LSTAR
        | number::CSTAR
        | number::FS_BASE
        | number::GS_BASE
        | number::KERNEL_GS_BASE
        | number::SYSENTER_ESP
        | number::SYSENTER_EIP => is_canonical(v),
        number::SYSENTER_CS | number::SFMASK | number::TSC_AUX => v >> 32 == 0,
        number::MISC_ENABLE => v & !MISC_ENABLE_BITS == 0,
        number::PAT => v
            .to_le_bytes()
            .iter()
            .all(|t| [0, 1, 4, 5, 6, 7].contains(t)),
        // A microcode revision of 0 is what the guest writes before it reads it.
        number::MICROCODE | number::DEBUG_CONTROL | number::MISC_FEATURES => v == 0,
        _ => true,
    }
}

/// LMA is read-only; LME cannot be changed while paging is on.
fn write_efer(v: u64, m: &mut Msrs, paging: bool) -> Option<Effect> {
    let switches = (v ^ m.efer) & efer::LME != 0 && paging;
    if v & !efer::ALL != 0 || switches {
        return None;
    }
    m.efer = v & !efer::LMA | m.efer & efer::LMA;
    Some(Effect::Efer)
}
