//! CLC, STC, CMC, CLD, STD, LAHF, SAHF, SALC, and the instructions that do nothing.

use iced_x86::Mnemonic;

use crate::chain::{Link, chained, ending};
use crate::cpu::{Cpu, reg};
use crate::decode::Decoding;
use crate::flags::{AF, CF, DF, OF, PF, SF, STATUS, ZF};
use crate::op::Op;
use crate::stop::Stop;
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Clc => chained(clc),
        Mnemonic::Stc => chained(stc),
        Mnemonic::Cmc => chained(cmc),
        Mnemonic::Cld => chained(cld),
        Mnemonic::Std => chained(std),
        Mnemonic::Lahf => chained(lahf),
        Mnemonic::Sahf => chained(sahf),
        Mnemonic::Salc => chained(salc),
        // Hint space: what later processors gave a meaning there acts as NOP on this one.
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Pause
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq => chained(nop),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => ending(crate::decode::ud),
        _ => return None,
    })
}

fn nop(_cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    Ok(())
}

fn clc(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.status &= !CF;
    Ok(())
}

fn stc(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.status |= CF;
    Ok(())
}

fn cmc(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.status ^= CF;
    Ok(())
}

fn cld(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.control &= !DF;
    Ok(())
}

fn std(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    cpu.control |= DF;
    Ok(())
}

/// The flags that LAHF and SAHF move.
const AH_FLAGS: u64 = SF | ZF | AF | PF | CF;

fn lahf(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let ah = (cpu.status & AH_FLAGS | 2) as u8;
    u8::set(&mut cpu.gpr, reg::RAX | 0x20, ah);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let ah = u64::from(u8::get(&cpu.gpr, reg::RAX | 0x20));
    cpu.status = cpu.status & (STATUS & OF) | ah & AH_FLAGS;
    Ok(())
}

/// AL from CF; undocumented, legacy modes only.
fn salc(cpu: &mut Cpu, _op: &Op) -> Result<(), Stop> {
    let al = if cpu.status & CF != 0 { 0xff } else { 0 };
    u8::set(&mut cpu.gpr, reg::RAX, al);
    Ok(())
}
