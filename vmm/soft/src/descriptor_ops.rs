//! Instructions on descriptor tables and selectors: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR,
//! LAR, LSL, VERR, VERW, ARPL.

use engine::DescriptorTable;
use iced_x86::Mnemonic;

use crate::cpu::{CodeMode, Cpu};
use crate::decode::Decoding;
use crate::descriptor::{Descriptor, access, error_code, is_null, null_segment, system};
use crate::flags::ZF;
use crate::mmu::is_canonical;
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::stop::{Stop, vector};
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    let mut ends = false;
    let handler: Handler = match d.ins.mnemonic() {
        Mnemonic::Lgdt => lgdt,
        Mnemonic::Lidt => lidt,
        Mnemonic::Sgdt => sgdt,
        Mnemonic::Sidt => sidt,
        Mnemonic::Lldt => {
            ends = true;
            rm_source(d, 0);
            lldt
        }
        Mnemonic::Ltr => {
            ends = true;
            rm_source(d, 0);
            ltr
        }
        Mnemonic::Sldt => {
            d.op.dst = d.reg(0);
            sldt
        }
        Mnemonic::Str => {
            d.op.dst = d.reg(0);
            str
        }
        Mnemonic::Lar => {
            d.op.dst = d.reg(0);
            rm_source(d, 1);
            lar
        }
        Mnemonic::Lsl => {
            d.op.dst = d.reg(0);
            rm_source(d, 1);
            lsl
        }
        Mnemonic::Verr => {
            rm_source(d, 0);
            verr
        }
        Mnemonic::Verw => {
            rm_source(d, 0);
            verw
        }
        Mnemonic::Arpl => {
            d.op.src = d.reg(1);
            d.op.dst = d.reg(0);
            d.op.extra = u8::from(d.is_memory(0));
            arpl
        }
        _ => return None,
    };
    d.ends = ends;
    Some(handler)
}

/// The 16-bit register or memory operand `i`: `extra` is 1 for memory.
fn rm_source(d: &mut Decoding, i: u32) {
    d.op.extra = u8::from(d.is_memory(i));
    if !d.is_memory(i) {
        d.op.src = d.reg(i);
    }
}

fn source(cpu: &mut Cpu, op: &Op) -> Result<u16, Stop> {
    if op.extra == 1 {
        crate::system::operand::<u16>(cpu, op)
    } else {
        Ok(u16::get(&cpu.gpr, op.src))
    }
}

fn table_operand(cpu: &mut Cpu, op: &Op) -> Result<DescriptorTable, Stop> {
    let long = cpu.code_mode == CodeMode::Bits64;
    let at = cpu.operand(op, if long { 10 } else { 6 }, Access::Read)?;
    let limit = cpu.load::<u16>(at)?;
    let at = at.wrapping_add(2) & cpu.mmu.linear_mask;
    let base = if long {
        cpu.load::<u64>(at)?
    } else {
        let base = u64::from(cpu.load::<u32>(at)?);
        if op.operand_size() == 2 {
            base & 0xff_ffff
        } else {
            base
        }
    };
    if !is_canonical(base) {
        return Err(cpu.raise_gp(0));
    }
    Ok(DescriptorTable { base, limit })
}

fn lgdt(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    cpu.gdtr = table_operand(cpu, op)?;
    Ok(())
}

fn lidt(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    cpu.idtr = table_operand(cpu, op)?;
    Ok(())
}

fn sgdt(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    store_table(cpu, op, cpu.gdtr)
}

fn sidt(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    store_table(cpu, op, cpu.idtr)
}

fn store_table(cpu: &mut Cpu, op: &Op, table: DescriptorTable) -> Result<(), Stop> {
    let len = if cpu.code_mode == CodeMode::Bits64 {
        10
    } else {
        6
    };
    let at = cpu.operand(op, len as u64, Access::Write)?;
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    cpu.store_bytes(at, &image[..len])
}

fn lldt(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if !cpu.protected() {
        return Err(cpu.raise_ud());
    }
    cpu.require_supervisor()?;
    let selector = source(cpu, op)?;
    if is_null(selector) {
        cpu.ldtr = null_segment(selector);
        cpu.advance(op);
        return Ok(());
    }
    let d = global(cpu, selector, &[system::LDT])?;
    cpu.ldtr = d.segment();
    cpu.advance(op);
    Ok(())
}

/// A present system descriptor of one of these types in the GDT, widened in long mode.
fn global(cpu: &mut Cpu, selector: u16, types: &[u32]) -> Result<Descriptor, Stop> {
    let error = error_code(selector);
    if selector & 4 != 0 {
        return Err(cpu.raise_gp(error));
    }
    let d = cpu.descriptor(selector, 0)?;
    if !d.system_type().is_some_and(|t| types.contains(&t)) {
        return Err(cpu.raise_gp(error));
    }
    if !d.present() {
        return Err(cpu.raise(vector::NP, Some(error)));
    }
    match cpu.widen(d)? {
        Some(d) if is_canonical(d.segment().base) => Ok(d),
        _ => Err(cpu.raise_gp(error)),
    }
}

fn ltr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if !cpu.protected() {
        return Err(cpu.raise_ud());
    }
    cpu.require_supervisor()?;
    let selector = source(cpu, op)?;
    if is_null(selector) {
        return Err(cpu.raise_gp(0));
    }
    let types: &[u32] = if cpu.long_mode() {
        &[system::TSS32]
    } else {
        &[system::TSS16, system::TSS32]
    };
    let d = global(cpu, selector, types)?;
    let busy = (d.raw >> 40) as u8 | 2;
    cpu.store_sys::<u8>(cpu.system_address(d.at, 5), busy)?;
    let mut tr = d.segment();
    tr.access |= 2;
    cpu.tr = tr;
    cpu.advance(op);
    Ok(())
}

fn sldt(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    store_selector(cpu, op, cpu.ldtr.selector)
}

fn str(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    store_selector(cpu, op, cpu.tr.selector)
}

fn store_selector(cpu: &mut Cpu, op: &Op, selector: u16) -> Result<(), Stop> {
    if !cpu.protected() {
        return Err(cpu.raise_ud());
    }
    if op.dst == crate::op::NONE {
        let at = cpu.operand(op, 2, Access::Write)?;
        return cpu.store::<u16>(at, selector);
    }
    if op.operand_size() == 2 {
        u16::set(&mut cpu.gpr, op.dst, selector);
    } else {
        u64::set(&mut cpu.gpr, op.dst, u64::from(selector));
    }
    Ok(())
}

fn set_zf(cpu: &mut Cpu, on: bool) {
    cpu.status = if on {
        cpu.status | ZF
    } else {
        cpu.status & !ZF
    };
}

/// The descriptor of a selector, if the current and requested privilege levels may see it.
fn visible(cpu: &mut Cpu, selector: u16) -> Result<Option<Descriptor>, Stop> {
    if is_null(selector) {
        return Ok(None);
    }
    let level = cpu.cpl.max((selector & 3) as u8);
    let d = cpu.find_descriptor(selector)?;
    Ok(d.filter(|d| d.is_conforming() || level <= d.dpl()))
}

fn lar(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let legacy = [
        system::TSS16,
        system::LDT,
        system::TSS16_BUSY,
        system::CALL16,
        system::TASK,
        system::TSS32,
        system::TSS32_BUSY,
        system::CALL32,
    ];
    let long = [
        system::LDT,
        system::TSS32,
        system::TSS32_BUSY,
        system::CALL32,
    ];
    let types: &[u32] = if cpu.long_mode() { &long } else { &legacy };
    let Some(d) = inspect(cpu, op, types)? else {
        return Ok(());
    };
    let v = d.raw >> 32 & 0xf0_ff00;
    write_result(cpu, op, v);
    Ok(())
}

fn lsl(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let legacy = [
        system::TSS16,
        system::LDT,
        system::TSS16_BUSY,
        system::TSS32,
        system::TSS32_BUSY,
    ];
    let long = [system::LDT, system::TSS32, system::TSS32_BUSY];
    let types: &[u32] = if cpu.long_mode() { &long } else { &legacy };
    let Some(d) = inspect(cpu, op, types)? else {
        return Ok(());
    };
    write_result(cpu, op, u64::from(d.segment().limit));
    Ok(())
}

/// The descriptor for LAR and LSL, if there is one to see; sets ZF.
fn inspect(cpu: &mut Cpu, op: &Op, types: &[u32]) -> Result<Option<Descriptor>, Stop> {
    if !cpu.protected() {
        return Err(cpu.raise_ud());
    }
    let selector = source(cpu, op)?;
    let d = visible(cpu, selector)?;
    let d = d.filter(|d| d.system_type().is_none_or(|t| types.contains(&t)));
    set_zf(cpu, d.is_some());
    Ok(d)
}

fn write_result(cpu: &mut Cpu, op: &Op, v: u64) {
    match op.operand_size() {
        2 => u16::set(&mut cpu.gpr, op.dst, v as u16),
        4 => u32::set(&mut cpu.gpr, op.dst, v as u32),
        _ => u64::set(&mut cpu.gpr, op.dst, v),
    }
}

fn verr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    verify(cpu, op, |d| {
        d.has(access::S) && (!d.is_code() || d.has(access::RW))
    })
}

fn verw(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    verify(cpu, op, Descriptor::is_writable_data)
}

fn verify(cpu: &mut Cpu, op: &Op, good: impl Fn(&Descriptor) -> bool) -> Result<(), Stop> {
    if !cpu.protected() {
        return Err(cpu.raise_ud());
    }
    let selector = source(cpu, op)?;
    let d = visible(cpu, selector)?;
    set_zf(cpu, d.is_some_and(|d| good(&d)));
    Ok(())
}

fn arpl(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if !cpu.protected() {
        return Err(cpu.raise_ud());
    }
    let rpl = u16::get(&cpu.gpr, op.src) & 3;
    let (old, at) = if op.extra == 1 {
        // Faults as a read unless there is something to write.
        let at = cpu.operand(op, 2, Access::Read)?;
        (cpu.load::<u16>(at)?, Some(at))
    } else {
        (u16::get(&cpu.gpr, op.dst), None)
    };
    let lower = old & 3 < rpl;
    let new = if lower { old & !3 | rpl } else { old };
    match at {
        Some(_) if lower => {
            let at = cpu.operand(op, 2, Access::Write)?;
            cpu.store::<u16>(at, new)?;
        }
        Some(_) => {}
        None => u16::set(&mut cpu.gpr, op.dst, new),
    }
    set_zf(cpu, lower);
    Ok(())
}
