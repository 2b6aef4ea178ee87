//! RDMSR, WRMSR, RDPMC, and the time-stamp counter. Which MSRs there are says `engine::msr`.

use engine::msr::{self, Context, Effect};
use iced_x86::Mnemonic;

use crate::control::{cr0, cr4};
use crate::cpu::{Cpu, reg, seg};
use crate::decode::Decoding;
use crate::op::{Handler, Op};
use crate::stop::Stop;
use crate::system::{edx_eax, set_base, set_edx_eax};

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

/// What the MSRs depend on.
fn context(cpu: &Cpu, op: &Op) -> Context {
    Context {
        clock: cpu.clock.at(cpu.count_before(op)),
        fs_base: cpu.seg[usize::from(seg::FS)].base,
        gs_base: cpu.seg[usize::from(seg::GS)].base,
        paging: cpu.cr0 & cr0::PG != 0,
    }
}

fn rdmsr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let Some(v) = msr::read(index(cpu), &cpu.msrs, &context(cpu, op)) else {
        return Err(cpu.raise_gp(0));
    };
    set_edx_eax(cpu, v);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let (index, v, context) = (index(cpu), edx_eax(cpu), context(cpu, op));
    match msr::write(index, v, &mut cpu.msrs, &context) {
        None => return Err(cpu.raise_gp(0)),
        Some(Effect::None) => {}
        Some(Effect::FsBase(base)) => set_base(cpu, seg::FS, base)?,
        Some(Effect::GsBase(base)) => set_base(cpu, seg::GS, base)?,
        Some(Effect::Efer) => cpu.translation_changed(),
    }
    cpu.advance(op);
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
