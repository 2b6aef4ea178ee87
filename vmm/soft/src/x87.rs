//! x87.
//!
//! Instructions that compute are executed by the host on the guest's own image
//! ([`crate::native::X87Stub`]); those that read and write control, status and whole environments
//! ([`environment`]) are done here, since they must show the guest's values and never wait.
//!
//! FIP is set by every instruction that is not a control instruction, FDP and FOP only by those that
//! raise an unmasked exception (CPUID.7.EBX[6] FDP_EXCPTN_ONLY); FCS and FDS read as zero
//! (CPUID.7.EBX[13]).
#![allow(unsafe_code)]

mod environment;

use iced_x86::{CpuidFeature, Instruction, Mnemonic};

use crate::cpu::Cpu;
use crate::decode::Decoding;
use crate::fpstate::{FSW_B, FSW_ES, FSW_IE, X87_EXCEPTIONS};
use crate::native::{NativeError, X87Stub, clobbers_flags};
use crate::op::{Handler, Op};
use crate::segments::Access;
use crate::sse::{CR0_EM, CR0_MP, CR0_TS};
use crate::stop::{Stop, vector};

/// `Op::extra`: sets RFLAGS.
const FLAGS: u8 = 1;
/// FSW bits that keep a memory destination from being written if they are unmasked: invalid,
/// overflow, underflow.
const NO_STORE: u16 = FSW_IE | 1 << 3 | 1 << 4;

/// The handler of one of these instructions, or None if it is not one.
pub fn decode(d: &mut Decoding) -> Option<Handler> {
    let ours = |f: &CpuidFeature| {
        matches!(
            f,
            CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387
        )
    };
    // By iced's lists these are of SSE3 and of the 8086.
    let other = matches!(d.ins.mnemonic(), Mnemonic::Fisttp | Mnemonic::Wait);
    if !other && !d.ins.cpuid_features().iter().any(ours) {
        return None;
    }
    environment::decode(d).or_else(|| native(d))
}

fn native(d: &mut Decoding) -> Option<Handler> {
    let stub = match d.native.x87(d.ins) {
        Ok(stub) => stub,
        Err(NativeError::Encode(_)) => return None,
        // The number of stubs is bounded by the ISA and they all fit.
        Err(error) => panic!("native code: {error}"),
    };
    d.op.imm = stub.to_bits();
    d.op.extra = if clobbers_flags(d.ins) { FLAGS } else { 0 };
    let (opcode, modrm) = opcode_bytes(d)?;
    d.op.dst = opcode & 7;
    d.op.src = modrm;
    if d.ins.op_count() == 0 || !d.is_memory(0) {
        return Some(registers);
    }
    let stores = is_store(d.ins);
    Some(match (d.ins.memory_size().size(), stores) {
        (2, false) => from_memory::<2>,
        (4, false) => from_memory::<4>,
        (8, false) => from_memory::<8>,
        (10, false) => from_memory::<10>,
        (2, true) => to_memory::<2>,
        (4, true) => to_memory::<4>,
        (8, true) => to_memory::<8>,
        (10, true) => to_memory::<10>,
        _ => return None,
    })
}

/// The last byte of the op code (D8 to DF) and the ModRM byte.
fn opcode_bytes(d: &Decoding) -> Option<(u8, u8)> {
    let at = d.bytes.iter().position(|b| (0xd8..=0xdf).contains(b))?;
    Some((d.bytes[at], *d.bytes.get(at + 1)?))
}

fn is_store(ins: &Instruction) -> bool {
    matches!(
        ins.mnemonic(),
        Mnemonic::Fst
            | Mnemonic::Fstp
            | Mnemonic::Fist
            | Mnemonic::Fistp
            | Mnemonic::Fisttp
            | Mnemonic::Fbstp
    )
}

impl Cpu {
    /// #NM unless x87 instructions can run (SDM vol. 3, table 2-2).
    pub fn check_x87(&mut self) -> Result<(), Stop> {
        if self.cr0 & (CR0_EM | CR0_TS) != 0 {
            return Err(self.raise(vector::NM, None));
        }
        Ok(())
    }

    /// #AC, while that is checked, for operands whose size is not that of a number: ten bytes want
    /// to be at a multiple of 8, environments of their elements' size (SDM vol. 3, table 6-7).
    pub fn check_alignment_of(&mut self, linear: u64, align: u64) -> Result<(), Stop> {
        if self.mmu.align && !linear.is_multiple_of(align) {
            return Err(self.misaligned(linear));
        }
        Ok(())
    }

    /// As `check_x87`, and #MF: for instructions that wait.
    fn check_x87_waiting(&mut self) -> Result<(), Stop> {
        self.check_x87()?;
        self.check_pending()
    }

    /// FWAIT: #NM only if CR0.MP and CR0.TS are both set.
    fn check_wait(&mut self) -> Result<(), Stop> {
        if self.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
            return Err(self.raise(vector::NM, None));
        }
        self.check_pending()
    }
}

fn registers(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_x87_waiting()?;
    execute(cpu, op, std::ptr::null_mut(), None);
    Ok(())
}

fn from_memory<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_x87_waiting()?;
    let linear = cpu.operand(op, N as u64, Access::Read)?;
    let mut value = [0u8; 16];
    match N {
        2 => value[..2].copy_from_slice(&cpu.load::<u16>(linear)?.to_le_bytes()),
        4 => value[..4].copy_from_slice(&cpu.load::<u32>(linear)?.to_le_bytes()),
        8 => value[..8].copy_from_slice(&cpu.load::<u64>(linear)?.to_le_bytes()),
        _ => {
            cpu.check_alignment_of(linear, 8)?;
            cpu.load_bytes(linear, &mut value[..N])?;
        }
    }
    let offset = cpu.offset(op);
    execute(cpu, op, value.as_mut_ptr(), Some(offset));
    Ok(())
}

fn to_memory<const N: usize>(cpu: &mut Cpu, op: &Op) -> Result<(), Stop> {
    cpu.check_x87_waiting()?;
    let offset = cpu.offset(op);
    let before = cpu.fp.clone();
    let mut value = [0u8; 16];
    execute(cpu, op, value.as_mut_ptr(), Some(offset));
    if cpu.fp.fsw & !before.fsw & !cpu.fp.fcw & NO_STORE != 0 {
        // The memory operand is not even looked at.
        return Ok(());
    }
    let word = u128::from_le_bytes(value);
    let stored = cpu
        .operand(op, N as u64, Access::Write)
        .and_then(|linear| match N {
            2 => cpu.store(linear, word as u16),
            4 => cpu.store(linear, word as u32),
            8 => cpu.store(linear, word as u64),
            _ => cpu
                .check_alignment_of(linear, 8)
                .and_then(|()| cpu.store_bytes(linear, &value[..N])),
        });
    if stored.is_err() {
        cpu.fp = before;
    }
    stored
}

/// Runs the stub on the guest's image and puts the guest's own values where the host left its
/// pointers.
fn execute(cpu: &mut Cpu, op: &Op, memory: *mut u8, offset: Option<u64>) {
    // SAFETY: `decode` put a stub there, and the code outlives the op.
    let stub = unsafe { X87Stub::from_bits(op.imm) };
    let (fdp, fop) = (cpu.fp.fdp, cpu.fp.fop);
    let ignored = cpu.fp.pending();
    let (fcw, fsw) = (cpu.fp.fcw, cpu.fp.fsw);
    if ignored {
        // CR0.NE is clear and the exception goes nowhere; the host must not see it.
        cpu.fp.fcw |= X87_EXCEPTIONS;
        cpu.fp.fsw &= !(FSW_ES | FSW_B);
    }
    let flags = cpu.status & crate::flags::STATUS;
    // SAFETY: nothing unmasked is pending; `memory` has 16 bytes if the op has a memory operand.
    let flags = unsafe { stub.call(memory, &mut cpu.fp, flags) };
    if op.extra & FLAGS != 0 {
        cpu.status = flags;
    }
    if ignored {
        cpu.fp.fcw = fcw;
        cpu.fp.update_summary();
    }
    let raised = cpu.fp.fsw & !fsw & FSW_ES != 0;
    cpu.fp.fip = cpu.ip(op);
    (cpu.fp.fdp, cpu.fp.fop) = (fdp, fop);
    if raised {
        cpu.fp.fop = u16::from(op.dst) << 8 | u16::from(op.src);
        if let Some(offset) = offset {
            cpu.fp.fdp = offset;
        }
    }
}
