//! Conditions: SETcc and CMOVcc; Jcc uses them in `branch`.

use iced_x86::{ConditionCode, Mnemonic};

use super::pick::{addressed, sized_word};
use crate::chain::{Link, chained};
use crate::cpu::Cpu;
use crate::decode::Decoding;
use crate::ea::Address;
use crate::flags::{CF, OF, PF, SF, ZF};
use crate::op::Op;
use crate::segments::Access;
use crate::stop::Stop;
use crate::width::Int;

/// Whether condition `CC`, 0 to 15 as encoded (SDM vol. 1, appendix B), holds.
#[inline(always)]
pub fn holds<const CC: u8>(status: u64) -> bool {
    let less = (status ^ status >> 4) & SF != 0; // OF is 4 bits above SF
    let base = match CC >> 1 {
        0 => status & OF != 0,
        1 => status & CF != 0,
        2 => status & ZF != 0,
        3 => status & (CF | ZF) != 0,
        4 => status & SF != 0,
        5 => status & PF != 0,
        6 => less,
        _ => less || status & ZF != 0,
    };
    base != (CC & 1 != 0)
}

/// The encoding of the instruction's condition.
pub fn code(d: &Decoding) -> u8 {
    match d.ins.condition_code() {
        ConditionCode::o | ConditionCode::None => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
    }
}

/// `by_condition!(cc, C => expr)`: `expr` with the constant `C`.
macro_rules! by_condition {
    ($cc:expr, $c:ident => $e:expr) => {
        by_condition!(@ $cc, $c => $e; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $cc:expr, $c:ident => $e:expr; $($n:literal)*) => {
        match $cc {
            $($n => { const $c: u8 = $n; $e })*
            _ => { const $c: u8 = 15; $e }
        }
    };
}
pub(crate) use by_condition;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    use Mnemonic as M;
    let cc = code(d);
    Some(match d.ins.mnemonic() {
        M::Seto
        | M::Setno
        | M::Setb
        | M::Setae
        | M::Sete
        | M::Setne
        | M::Setbe
        | M::Seta
        | M::Sets
        | M::Setns
        | M::Setp
        | M::Setnp
        | M::Setl
        | M::Setge
        | M::Setle
        | M::Setg => {
            if d.is_register(0) {
                d.op.dst = d.reg(0);
                return Some(by_condition!(cc, C => chained(set_r::<C>)));
            }
            by_condition!(cc, C => addressed!(d, A => chained(set_m::<C, A>)))
        }
        M::Cmovo
        | M::Cmovno
        | M::Cmovb
        | M::Cmovae
        | M::Cmove
        | M::Cmovne
        | M::Cmovbe
        | M::Cmova
        | M::Cmovs
        | M::Cmovns
        | M::Cmovp
        | M::Cmovnp
        | M::Cmovl
        | M::Cmovge
        | M::Cmovle
        | M::Cmovg => {
            d.op.dst = d.reg(0);
            let width = d.width(0);
            if d.is_register(1) {
                d.op.src = d.reg(1);
                return Some(
                    by_condition!(cc, C => sized_word!(width, T => chained(cmov_r::<C, T>))),
                );
            }
            by_condition!(cc, C => sized_word!(width, T => addressed!(d, A => chained(cmov_m::<C, T, A>))))
        }
        _ => return None,
    })
}

fn set_r<const C: u8>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = u8::from(holds::<C>(cpu.status));
    u8::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}

fn set_m<const C: u8, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, 1, Access::Write)?;
    cpu.store(linear, u8::from(holds::<C>(cpu.status)))
}

// The destination is written even if the condition fails: 32 bits clear the upper half.
fn cmov_r<const C: u8, T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let from = if holds::<C>(cpu.status) {
        op.src
    } else {
        op.dst
    };
    let v = T::get(&cpu.gpr, from);
    T::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}

fn cmov_m<const C: u8, T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let mut v = cpu.load::<T>(linear)?;
    if !holds::<C>(cpu.status) {
        v = T::get(&cpu.gpr, op.dst);
    }
    T::set(&mut cpu.gpr, op.dst, v);
    Ok(())
}
