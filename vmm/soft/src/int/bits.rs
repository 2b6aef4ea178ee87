//! BT, BTS, BTR, BTC, BSF, BSR, POPCNT, CRC32.

use iced_x86::{Mnemonic, OpKind};

use super::pick::{addressed, sized, sized_word};
use crate::alu::Arith;
use crate::chain::{Link, chained};
use crate::cpu::Cpu;
use crate::decode::Decoding;
use crate::ea::{Address, truncate};
use crate::flags::{CF, STATUS, ZF};
use crate::op::Op;
use crate::segments::Access;
use crate::stop::Stop;
use crate::width::Int;

pub fn decode(d: &mut Decoding) -> Option<Link> {
    Some(match d.ins.mnemonic() {
        Mnemonic::Bt => test::<Bt>(d),
        Mnemonic::Bts => test::<Bts>(d),
        Mnemonic::Btr => test::<Btr>(d),
        Mnemonic::Btc => test::<Btc>(d),
        // TZCNT and LZCNT are not offered; their bytes act as BSF and BSR.
        Mnemonic::Bsf | Mnemonic::Tzcnt => scan::<Bsf>(d),
        Mnemonic::Bsr | Mnemonic::Lzcnt => scan::<Bsr>(d),
        Mnemonic::Popcnt => scan::<Popcnt>(d),
        Mnemonic::Crc32 => crc32(d),
        _ => return None,
    })
}

/// What a bit test does to the bit.
trait BitOp: 'static {
    const WRITES: bool;
    fn run(v: u64, bit: u64) -> u64;
}

struct Bt;
impl BitOp for Bt {
    const WRITES: bool = false;
    fn run(v: u64, _bit: u64) -> u64 {
        v
    }
}

struct Bts;
impl BitOp for Bts {
    const WRITES: bool = true;
    fn run(v: u64, bit: u64) -> u64 {
        v | bit
    }
}

struct Btr;
impl BitOp for Btr {
    const WRITES: bool = true;
    fn run(v: u64, bit: u64) -> u64 {
        v & !bit
    }
}

struct Btc;
impl BitOp for Btc {
    const WRITES: bool = true;
    fn run(v: u64, bit: u64) -> u64 {
        v ^ bit
    }
}

fn test<O: BitOp>(d: &mut Decoding) -> Link {
    let width = d.width(0);
    let by_register = d.ins.op_kind(1) == OpKind::Register;
    if by_register {
        d.op.src = d.reg(1);
    } else {
        d.op.imm = d.immediate(1);
    }
    if d.is_register(0) {
        d.op.dst = d.reg(0);
        return match by_register {
            true => sized_word!(width, T => chained(test_r_r::<T, O>)),
            false => sized_word!(width, T => chained(test_r_i::<T, O>)),
        };
    }
    match by_register {
        true => sized_word!(width, T => chained(test_m_r::<T, O>)),
        false => sized_word!(width, T => addressed!(d, A => chained(test_m_i::<T, A, O>))),
    }
}

/// CF is the bit; the other flags (ZF unchanged, the rest undefined) are kept.
#[inline(always)]
fn set_carry(cpu: &mut Cpu, carry: bool) {
    cpu.status = cpu.status & !CF | u64::from(carry);
}

fn test_r_r<T: Int, O: BitOp>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let n = u64::get(&cpu.gpr, op.src);
    test_register::<T, O>(cpu, op, n);
    Ok(())
}

fn test_r_i<T: Int, O: BitOp>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    test_register::<T, O>(cpu, op, op.imm);
    Ok(())
}

#[inline(always)]
fn test_register<T: Int, O: BitOp>(cpu: &mut Cpu, op: &Op, n: u64) {
    let bit = 1 << (n & u64::from(T::BITS - 1));
    let v = T::get(&cpu.gpr, op.dst).to_u64();
    set_carry(cpu, v & bit != 0);
    if O::WRITES {
        T::set(&mut cpu.gpr, op.dst, T::from_u64(O::run(v, bit)));
    }
}

fn test_m_i<T: Int, A: Address, O: BitOp>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let access = if O::WRITES {
        Access::Write
    } else {
        Access::Read
    };
    let linear = A::linear(cpu, op, T::BYTES as u64, access)?;
    test_memory::<T, O>(cpu, linear, op.imm)
}

/// The register is a signed bit offset from the operand: it selects the word too.
fn test_m_r<T: Int, O: BitOp>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let n = T::get(&cpu.gpr, op.src).to_i64();
    let words = n >> T::BITS.trailing_zeros();
    let offset = cpu
        .offset(op)
        .wrapping_add((words * T::BYTES as i64) as u64);
    let offset = truncate(offset, op.address_size());
    let access = if O::WRITES {
        Access::Write
    } else {
        Access::Read
    };
    let linear = cpu.linear(op.seg, offset, T::BYTES as u64, access)?;
    test_memory::<T, O>(cpu, linear, n as u64)
}

#[inline(always)]
fn test_memory<T: Int, O: BitOp>(cpu: &mut Cpu, linear: u64, n: u64) -> Result<(), Stop> {
    let bit = 1 << (n & u64::from(T::BITS - 1));
    if !O::WRITES {
        let v = cpu.load::<T>(linear)?.to_u64();
        set_carry(cpu, v & bit != 0);
        return Ok(());
    }
    let v = cpu.load_rmw::<T>(linear)?.to_u64();
    cpu.store(linear, T::from_u64(O::run(v, bit)))?;
    set_carry(cpu, v & bit != 0);
    Ok(())
}

/// An operation from one operand to a register.
trait Scan: 'static {
    fn run<T: Arith>(cpu: &mut Cpu, op: &Op, v: T);
}

fn scan<O: Scan>(d: &mut Decoding) -> Link {
    let width = d.width(0);
    d.op.dst = d.reg(0);
    if d.is_register(1) {
        d.op.src = d.reg(1);
        return sized_word!(width, T => chained(scan_r::<T, O>));
    }
    sized_word!(width, T => addressed!(d, A => chained(scan_m::<T, A, O>)))
}

fn scan_r<T: Arith, O: Scan>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = T::get(&cpu.gpr, op.src);
    O::run(cpu, op, v);
    Ok(())
}

fn scan_m<T: Arith, A: Address, O: Scan>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let v = cpu.load::<T>(linear)?;
    O::run(cpu, op, v);
    Ok(())
}

/// Of 0 the destination stays as it is. Undefined flags: those of a TEST of the operand.
struct Bsf;
impl Scan for Bsf {
    #[inline(always)]
    fn run<T: Arith>(cpu: &mut Cpu, op: &Op, v: T) {
        cpu.status = v.logic_flags();
        if cpu.status & ZF == 0 {
            let n = v.to_u64().trailing_zeros();
            T::set(&mut cpu.gpr, op.dst, T::from_u64(u64::from(n)));
        }
    }
}

struct Bsr;
impl Scan for Bsr {
    #[inline(always)]
    fn run<T: Arith>(cpu: &mut Cpu, op: &Op, v: T) {
        cpu.status = v.logic_flags();
        if cpu.status & ZF == 0 {
            let n = 63 - v.to_u64().leading_zeros();
            T::set(&mut cpu.gpr, op.dst, T::from_u64(u64::from(n)));
        }
    }
}

struct Popcnt;
impl Scan for Popcnt {
    #[inline(always)]
    fn run<T: Arith>(cpu: &mut Cpu, op: &Op, v: T) {
        let n = v.to_u64().count_ones();
        cpu.status = cpu.status & !STATUS | if n == 0 { ZF } else { 0 };
        T::set(&mut cpu.gpr, op.dst, T::from_u64(u64::from(n)));
    }
}

/// CRC-32C of one source operand (SDM vol. 2, CRC32). `extra`: the destination has 8 bytes.
fn crc32(d: &mut Decoding) -> Link {
    d.op.dst = d.reg(0);
    d.op.extra = d.width(0) as u8;
    let width = d.width(1);
    if d.is_register(1) {
        d.op.src = d.reg(1);
        return sized!(width, T => chained(crc_r::<T>));
    }
    sized!(width, T => addressed!(d, A => chained(crc_m::<T, A>)))
}

fn crc_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let v = T::get(&cpu.gpr, op.src);
    crc_add(cpu, op, v);
    Ok(())
}

fn crc_m<T: Int, A: Address>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    let linear = A::linear(cpu, op, T::BYTES as u64, Access::Read)?;
    let v = cpu.load::<T>(linear)?;
    crc_add(cpu, op, v);
    Ok(())
}

/// The table of CRC-32C, polynomial 1EDC6F41h reflected.
const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut v = i as u32;
        let mut bit = 0;
        while bit < 8 {
            v = v >> 1 ^ if v & 1 != 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[i] = v;
        i += 1;
    }
    table
};

fn crc_add<T: Int>(cpu: &mut Cpu, op: &Op, v: T) {
    let mut crc = u32::get(&cpu.gpr, op.dst);
    let mut v = v.to_u64();
    for _ in 0..T::BYTES {
        crc = crc >> 8 ^ CRC_TABLE[usize::from((crc ^ v as u32) as u8)];
        v >>= 8;
    }
    u32::set(&mut cpu.gpr, op.dst, crc);
}
