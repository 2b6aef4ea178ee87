//! IRET, PUSHF, POPF: what may become of RFLAGS (SDM vol. 2, IRET, POPF).
//!
//! Virtual-8086 mode is not offered: an IRET that would enter it raises #GP(0).

use iced_x86::Mnemonic;

use crate::cpu::{CodeMode, Cpu, attention, seg};
use crate::decode::Decoding;
use crate::flags::{self, AC, ALL, DF, ID, IF, IOPL, NT, RF, STATUS, TF, VIF, VIP, VM};
use crate::op::{Handler, Op};
use crate::stop::Stop;

const CS: usize = seg::CS as usize;

pub fn decode(d: &mut Decoding) -> Option<Handler> {
    let (handler, size): (Handler, u8) = match d.ins.mnemonic() {
        Mnemonic::Iret => (iret, 2),
        Mnemonic::Iretd => (iret, 4),
        Mnemonic::Iretq => (iret, 8),
        Mnemonic::Pushf => (pushf, 2),
        Mnemonic::Pushfd => (pushf, 4),
        Mnemonic::Pushfq => (pushf, 8),
        Mnemonic::Popf => (popf, 2),
        Mnemonic::Popfd => (popf, 4),
        Mnemonic::Popfq => (popf, 8),
        _ => return None,
    };
    d.op.extra = size;
    d.op.seg = seg::SS;
    d.ends = handler as usize != pushf as *const () as usize;
    Some(handler)
}

fn pushf(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let image = cpu.rflags() & !(VM | RF);
    cpu.push(op.extra, image)
}

fn popf(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let image = cpu.peek_at(0, op.extra)?;
    cpu.drop_stack(u64::from(op.extra));
    let mut allowed = STATUS | TF | DF | NT;
    if op.extra > 2 {
        // RF is always cleared, VIF and VIP are where they could be changed.
        allowed |= AC | ID | RF | VIF | VIP;
    }
    let cleared = image & !(RF | VIF | VIP);
    cpu.change_flags(cleared, allowed | cpu.privileged_flags());
    cpu.advance(op);
    Ok(())
}

fn iret(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let size = op.extra;
    let word = u64::from(size);
    if cpu.protected() && cpu.control_flag(NT) {
        if cpu.long_mode() {
            return Err(cpu.raise_gp(0));
        }
        return cpu.return_from_task(op);
    }
    let ip = cpu.peek_at(0, size)?;
    let selector = cpu.peek_at(word, size)? as u16;
    let image = cpu.peek_at(2 * word, size)?;
    let mut allowed = STATUS | TF | DF | NT;
    if size > 2 {
        allowed |= RF | AC | ID;
        if cpu.cpl == 0 {
            allowed |= VIF | VIP;
        }
    }
    allowed |= cpu.privileged_flags();
    if !cpu.protected() {
        if ip > u64::from(cpu.seg[CS].limit) {
            return Err(cpu.raise_gp(0));
        }
        cpu.drop_stack(3 * word);
        cpu.set_real_code(selector);
        cpu.rip = ip;
        cpu.change_flags(image, allowed);
        return Ok(());
    }
    if image & VM != 0 && cpu.cpl == 0 && size == 4 && !cpu.long_mode() {
        return Err(cpu.raise_gp(0));
    }
    let mut code = cpu.return_code(selector)?;
    let long = cpu.code_mode == CodeMode::Bits64;
    if code.rpl() == cpu.cpl && !long {
        cpu.check_target(&code, ip)?;
        cpu.set_accessed(&mut code)?;
        cpu.drop_stack(3 * word);
        cpu.set_code(&code, cpu.cpl);
        cpu.rip = ip;
        cpu.change_flags(image, allowed);
        return Ok(());
    }
    let sp = cpu.peek_at(3 * word, size)?;
    let ss = cpu.peek_at(4 * word, size)? as u16;
    cpu.return_outwards(&mut code, ip, ss, sp, 0)?;
    cpu.change_flags(image, allowed);
    Ok(())
}

impl Cpu {
    /// IOPL and IF, if the current privilege level may change them.
    pub(crate) fn privileged_flags(&self) -> u64 {
        let mut allowed = 0;
        if self.cpl == 0 {
            allowed |= IOPL;
        }
        if self.cpl <= self.iopl() {
            allowed |= IF;
        }
        allowed
    }

    /// Replaces the flags in `allowed`. RF only means something, and is only kept, while an
    /// instruction breakpoint is set.
    pub(crate) fn change_flags(&mut self, image: u64, allowed: u64) {
        let mut new = self.rflags() & !allowed | image & allowed & ALL;
        if self.attention & attention::BREAKPOINTS == 0 {
            new &= !RF;
        }
        self.set_rflags(new & !flags::VM);
    }
}
