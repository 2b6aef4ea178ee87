//! Model-specific registers, and the time-stamp counter. An MSR that is not listed here raises
//! #GP(0), for reads and writes.

use iced_x86::Mnemonic;

use crate::control::{cr0, cr4, efer};
use crate::cpu::{Cpu, reg, seg};
use crate::decode::Decoding;
use crate::mmu::is_canonical;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::system::{edx_eax, set_base, set_edx_eax};

/// MSR numbers (SDM vol. 4, table 2-2).
mod number {
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

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Rdmsr => rdmsr,
        Mnemonic::Wrmsr => {
            d.ends = true;
            wrmsr
        }
        Mnemonic::Rdtsc => rdtsc,
        Mnemonic::Rdtscp => rdtscp,
        Mnemonic::Rdpmc => rdpmc,
        _ => return None,
    })
}

fn index(cpu: &Cpu) -> u32 {
    cpu.gpr[usize::from(reg::RCX)] as u32
}

fn rdmsr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let m = &cpu.msrs;
    let v = match index(cpu) {
        number::TSC => tsc(cpu, op),
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
        number::FS_BASE => cpu.seg[usize::from(seg::FS)].base,
        number::GS_BASE => cpu.seg[usize::from(seg::GS)].base,
        number::KERNEL_GS_BASE => m.kernel_gs_base,
        number::TSC_AUX => m.tsc_aux,
        _ => return Err(cpu.raise_gp(0)),
    };
    set_edx_eax(cpu, v);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let v = edx_eax(cpu);
    let index = index(cpu);
    let fine = match index {
        number::LSTAR
        | number::CSTAR
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
    };
    if !fine {
        return Err(cpu.raise_gp(0));
    }
    let clock = cpu.clock.at(cpu.count_before(op));
    let m = &mut cpu.msrs;
    match index {
        number::TSC => m.tsc_offset = v.wrapping_sub(clock),
        number::TSC_ADJUST => m.tsc_offset = v,
        number::MICROCODE | number::DEBUG_CONTROL | number::MISC_FEATURES => {}
        number::SYSENTER_CS => m.sysenter_cs = v,
        number::SYSENTER_ESP => m.sysenter_esp = v,
        number::SYSENTER_EIP => m.sysenter_eip = v,
        number::MISC_ENABLE => m.misc_enable = v,
        number::PAT => m.pat = v,
        number::EFER => write_efer(cpu, v)?,
        number::STAR => m.star = v,
        number::LSTAR => m.lstar = v,
        number::CSTAR => m.cstar = v,
        number::SFMASK => m.sfmask = v,
        number::FS_BASE => set_base(cpu, seg::FS, v)?,
        number::GS_BASE => set_base(cpu, seg::GS, v)?,
        number::KERNEL_GS_BASE => m.kernel_gs_base = v,
        number::TSC_AUX => m.tsc_aux = v,
        _ => return Err(cpu.raise_gp(0)),
    }
    cpu.advance(op);
    Ok(())
}

/// LMA is read-only; LME cannot be changed while paging is on.
fn write_efer(cpu: &mut Cpu, v: u64) -> Result<(), Stop> {
    let known = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    let switches = (v ^ cpu.msrs.efer) & efer::LME != 0 && cpu.cr0 & cr0::PG != 0;
    if v & !known != 0 || switches {
        return Err(cpu.raise_gp(0));
    }
    cpu.msrs.efer = v & !efer::LMA | cpu.msrs.efer & efer::LMA;
    cpu.translation_changed();
    Ok(())
}

/// The time-stamp counter: the clock at the position of the instruction.
fn tsc(cpu: &Cpu, op: &Op) -> u64 {
    cpu.clock
        .at(cpu.count_before(op))
        .wrapping_add(cpu.msrs.tsc_offset)
}

fn check_tsd(cpu: &mut Cpu) -> Result<(), Stop> {
    if cpu.cr4 & cr4::TSD != 0 && cpu.protected() {
        cpu.require_supervisor()?;
    }
    Ok(())
}

fn rdtsc(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    check_tsd(cpu)?;
    let v = tsc(cpu, op);
    set_edx_eax(cpu, v);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    rdtsc(cpu, op)?;
    cpu.gpr[usize::from(reg::RCX)] = cpu.msrs.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// There are no performance counters.
fn rdpmc(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    Err(cpu.raise_gp(0))
}
