//! Control and debug registers (SDM vol. 3, 2.5 and 17.2).

use iced_x86::{Code, Mnemonic};

use crate::cpu::{CodeMode, Cpu, seg};
use crate::decode::Decoding;
use crate::descriptor::{access, system};
use crate::op::{Handler, Op};
use crate::paging::{PDPTE_RESERVED, Scheme};
use crate::phys::PHYSICAL_BITS;
use crate::segments::Access;
use crate::stop::{Exception, Stop, StopReason, vector};
use crate::width::Int;

pub use engine::bits::{cr0, cr4, efer};

/// DR7.GD: accesses to debug registers raise #DB.
const GD: u64 = 1 << 13;

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    let handler: Handler = match d.ins.code() {
        Code::Mov_r32_cr | Code::Mov_r64_cr => {
            d.op.dst = d.reg(0);
            d.op.src = d.reg(1);
            return Some(mov_r_cr);
        }
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => {
            d.op.dst = d.reg(0);
            d.op.src = d.reg(1);
            mov_cr_r
        }
        Code::Mov_r32_dr | Code::Mov_r64_dr => {
            d.op.dst = d.reg(0);
            d.op.src = d.reg(1);
            return Some(mov_r_dr);
        }
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => {
            d.op.dst = d.reg(0);
            d.op.src = d.reg(1);
            mov_dr_r
        }
        _ => match d.ins.mnemonic() {
            Mnemonic::Clts => clts,
            Mnemonic::Lmsw => {
                d.op.src = d.reg(0);
                if d.is_memory(0) { lmsw_m } else { lmsw_r }
            }
            Mnemonic::Smsw => {
                d.op.dst = d.reg(0);
                return Some(if d.is_memory(0) { smsw_m } else { smsw_r });
            }
            _ => return None,
        },
    };
    d.ends = true;
    Some(handler)
}

/// Register operands of MOV to and from control registers have 64 bits in 64-bit mode, else 32.
fn set_word(cpu: &mut Cpu, register: u8, v: u64) {
    if cpu.code_mode == CodeMode::Bits64 {
        u64::set(&mut cpu.gpr, register, v);
    } else {
        u32::set(&mut cpu.gpr, register, v as u32);
    }
}

fn word(cpu: &Cpu, register: u8) -> u64 {
    let v = cpu.gpr[usize::from(register)];
    if cpu.code_mode == CodeMode::Bits64 {
        v
    } else {
        v & 0xffff_ffff
    }
}

fn mov_r_cr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = match op.src {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.cr8,
        _ => return Err(cpu.raise_ud()),
    };
    cpu.require_supervisor()?;
    set_word(cpu, op.dst, v);
    Ok(())
}

fn mov_cr_r(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    if !matches!(op.dst, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.raise_ud());
    }
    cpu.require_supervisor()?;
    let v = word(cpu, op.src);
    match op.dst {
        0 => cpu.write_cr0(v)?,
        2 => cpu.cr2 = v,
        3 => cpu.write_cr3(v)?,
        4 => cpu.write_cr4(v)?,
        _ => {
            if v & !15 != 0 {
                return Err(cpu.raise_gp(0));
            }
            cpu.cr8 = v;
        }
    }
    cpu.advance(op);
    Ok(())
}

impl Cpu {
    fn write_cr0(&mut self, v: u64) -> Result<(), Stop> {
        let v = v & (0xffff_ffff_0000_0000 | cr0::ALL) | cr0::ET;
        let paging = v & cr0::PG != 0;
        let starts = paging && self.cr0 & cr0::PG == 0;
        let stops = !paging && self.cr0 & cr0::PG != 0;
        let long = self.msrs.efer & efer::LME != 0;
        let cs = self.seg[usize::from(seg::CS)].access;
        let narrow_tss = self.tr.access & 15 == system::TSS16_BUSY;
        let bad = v >> 32 != 0
            || paging && v & cr0::PE == 0
            || v & cr0::NW != 0 && v & cr0::CD == 0
            || starts && long && (self.cr4 & cr4::PAE == 0 || cs & access::L != 0 || narrow_tss)
            || stops && self.code_mode == CodeMode::Bits64;
        if bad {
            return Err(self.raise_gp(0));
        }
        if starts && !long && self.cr4 & cr4::PAE != 0 {
            self.check_pdptes(self.cr3)?;
        }
        let left_protected = self.cr0 & cr0::PE != 0 && v & cr0::PE == 0;
        self.cr0 = v;
        if starts && long {
            self.msrs.efer |= efer::LMA;
        }
        if stops {
            self.msrs.efer &= !efer::LMA;
        }
        if left_protected {
            self.cpl = 0;
        }
        self.translation_changed();
        Ok(())
    }

    fn write_cr3(&mut self, v: u64) -> Result<(), Stop> {
        if self.long_mode() && v >> PHYSICAL_BITS != 0 {
            return Err(self.raise_gp(0));
        }
        if self.mmu.paging.scheme == Scheme::Pae {
            self.check_pdptes(v)?;
        }
        self.cr3 = v;
        self.translation_changed();
        Ok(())
    }

    fn write_cr4(&mut self, v: u64) -> Result<(), Stop> {
        let pae = v & cr4::PAE != 0;
        if v & !cr4::ALL != 0 || self.long_mode() && !pae {
            return Err(self.raise_gp(0));
        }
        if self.cr0 & cr0::PG != 0 && !self.long_mode() && pae && self.cr4 & cr4::PAE == 0 {
            self.check_pdptes(self.cr3)?;
        }
        self.cr4 = v;
        self.translation_changed();
        Ok(())
    }

    /// #GP(0) if a present PDPTE of PAE paging has a reserved bit set.
    fn check_pdptes(&mut self, cr3: u64) -> Result<(), Stop> {
        for i in 0..4 {
            let at = (cr3 & 0xffff_ffe0) + 8 * i;
            let pdpte = self.phys.read::<u64>(at).unwrap_or(0);
            if pdpte & 1 != 0 && pdpte & PDPTE_RESERVED != 0 {
                return Err(self.raise_gp(0));
            }
        }
        Ok(())
    }

    /// A control register that addresses or rights depend on has changed.
    pub(crate) fn translation_changed(&mut self) {
        self.update_mode();
        self.update_translation();
    }
}

fn clts(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    cpu.cr0 &= !cr0::TS;
    cpu.advance(op);
    Ok(())
}

fn lmsw_r(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = cpu.gpr[usize::from(op.src)];
    lmsw(cpu, op, v)
}

fn lmsw_m(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let v = crate::system::operand::<u16>(cpu, op)?;
    lmsw(cpu, op, u64::from(v))
}

/// Loads PE, MP, EM and TS; PE cannot be cleared.
fn lmsw(cpu: &mut Cpu, op: &Op, v: u64) -> Result<(), Stop> {
    cpu.require_supervisor()?;
    let v = cpu.cr0 & !0xe | v & 0xf;
    cpu.write_cr0(v)?;
    cpu.advance(op);
    Ok(())
}

fn smsw_r(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    match op.operand_size() {
        2 => u16::set(&mut cpu.gpr, op.dst, cpu.cr0 as u16),
        4 => u32::set(&mut cpu.gpr, op.dst, cpu.cr0 as u32),
        _ => u64::set(&mut cpu.gpr, op.dst, cpu.cr0),
    }
    Ok(())
}

fn smsw_m(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let at = cpu.operand(op, 2, Access::Write)?;
    cpu.store::<u16>(at, cpu.cr0 as u16)
}

/// The index in `Cpu::dr` of a debug register; 4 and 5 are 6 and 7 unless CR4.DE is set.
fn debug_register(cpu: &mut Cpu, number: u8) -> Result<usize, Stop> {
    let index = match number {
        0..=3 => usize::from(number),
        4 | 5 if cpu.cr4 & cr4::DE == 0 => usize::from(number),
        6 | 7 => usize::from(number) - 2,
        _ => return Err(cpu.raise_ud()),
    };
    cpu.require_supervisor()?;
    if cpu.dr[5] & GD != 0 {
        cpu.dr[4] |= 1 << 13;
        cpu.dr[5] &= !GD;
        return Err(cpu.stop_for(StopReason::Exception(Exception {
            vector: vector::DB,
            error: None,
            cr2: 0,
        })));
    }
    Ok(index)
}

fn mov_r_dr(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let index = debug_register(cpu, op.src)?;
    set_word(cpu, op.dst, cpu.dr[index]);
    Ok(())
}

fn mov_dr_r(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let index = debug_register(cpu, op.dst)?;
    let v = word(cpu, op.src);
    if index >= 4 && v >> 32 != 0 {
        return Err(cpu.raise_gp(0));
    }
    cpu.dr[index] = match index {
        4 => v & 0xe00f | 0xffff_0ff0,
        5 => v & 0xffff_2bff | 0x400,
        _ => v,
    };
    cpu.update_breakpoints();
    cpu.advance(op);
    Ok(())
}
