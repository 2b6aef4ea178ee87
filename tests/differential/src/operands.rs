//! Random operands for an op code.

use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind as K, OpKind, Register};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::case::{CODE, DATA, DATA_SIZE, DATA_WRITABLE, GS_BASE, Mode, PAGE, STACK};
use crate::values;

/// What operands may be built on.
pub struct Known<'a> {
    /// Registers at the start of the case.
    pub gpr: &'a [u64; 16],
    /// Bit n: register n has been written since.
    pub clobbered: u32,
    pub mode: Mode,
}

/// An instruction of the given op code; `None` if this one cannot be made or the choice was
/// unlucky. Branches have no target yet.
pub fn fill(rng: &mut ChaCha8Rng, code: Code, known: &Known) -> Option<Instruction> {
    let op = code.op_code();
    let mut ins = Instruction::default();
    ins.set_code(code);
    let prefixed = rng.random_range(0..100);
    if op.can_use_rep_prefix() && prefixed < 50 {
        ins.set_has_rep_prefix(true);
    } else if op.can_use_repne_prefix() && prefixed < 75 {
        ins.set_has_repne_prefix(true);
    }
    let mut immediates = 0;
    for i in 0..op.op_count() {
        let kind = op.op_kind(i);
        if let Some(register) = register(rng, kind, known.mode) {
            let memory = matches!(
                kind,
                K::r8_or_mem
                    | K::r16_or_mem
                    | K::r32_or_mem
                    | K::r64_or_mem
                    | K::mm_or_mem
                    | K::xmm_or_mem
            ) && rng.random();
            if !memory {
                ins.set_op_kind(i, OpKind::Register);
                ins.set_op_register(i, register);
                continue;
            }
        }
        match kind {
            K::mem
            | K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem => {
                ins.set_op_kind(i, OpKind::Memory);
                if i == 0 && op.can_use_lock_prefix() && rng.random_range(0..3) == 0 {
                    ins.set_has_lock_prefix(true);
                }
                memory(rng, &mut ins, known);
            }
            K::mem_offs => {
                ins.set_op_kind(i, OpKind::Memory);
                let address = target(rng, ins.memory_size().size() as u64, 1);
                absolute(&mut ins, known.mode, address);
            }
            K::imm8
            | K::imm8_const_1
            | K::imm8sex16
            | K::imm8sex32
            | K::imm8sex64
            | K::imm16
            | K::imm32
            | K::imm32sex64
            | K::imm64 => {
                immediate(rng, &mut ins, i, kind, immediates);
                immediates += 1;
            }
            K::seg_rSI | K::es_rDI | K::seg_rDI => {
                // Both operands of one instruction must agree.
                let narrow = (0..i).any(|j| is_narrow(ins.op_kind(j), known.mode))
                    || i == 0 && rng.random_range(0..12) == 0;
                ins.set_op_kind(i, string_operand(kind, known.mode, narrow));
            }
            K::seg_rBX_al => {
                ins.set_op_kind(i, OpKind::Memory);
                ins.set_memory_base(match known.mode {
                    Mode::Bits64 => Register::RBX,
                    Mode::Bits32 => Register::EBX,
                });
                ins.set_memory_index(Register::AL);
            }
            K::br64_1 | K::br64_4 => ins.set_op_kind(i, OpKind::NearBranch64),
            K::br32_1 | K::br32_4 => ins.set_op_kind(i, OpKind::NearBranch32),
            _ => return None,
        }
    }
    Some(ins)
}

/// The operand of a string instruction, with the mode's address size or the next smaller one.
fn string_operand(kind: K, mode: Mode, narrow: bool) -> OpKind {
    let kinds = match kind {
        K::seg_rSI => [
            OpKind::MemorySegRSI,
            OpKind::MemorySegESI,
            OpKind::MemorySegSI,
        ],
        K::es_rDI => [OpKind::MemoryESRDI, OpKind::MemoryESEDI, OpKind::MemoryESDI],
        _ => [
            OpKind::MemorySegRDI,
            OpKind::MemorySegEDI,
            OpKind::MemorySegDI,
        ],
    };
    kinds[usize::from(mode == Mode::Bits32) + usize::from(narrow)]
}

fn is_narrow(kind: OpKind, mode: Mode) -> bool {
    [K::seg_rSI, K::es_rDI, K::seg_rDI]
        .into_iter()
        .any(|k| string_operand(k, mode, true) == kind)
}

fn register(rng: &mut ChaCha8Rng, kind: K, mode: Mode) -> Option<Register> {
    let (all, bytes) = match mode {
        Mode::Bits64 => (16, 20),
        Mode::Bits32 => (8, 8),
    };
    let n = rng.random_range(0..all);
    // RSP less often: nothing works without it.
    let n = if n == 4 && rng.random_range(0..4) > 0 {
        0
    } else {
        n
    };
    Some(match kind {
        K::r8_or_mem | K::r8_reg | K::r8_opcode => Register::AL + rng.random_range(0..bytes),
        K::r16_or_mem | K::r16_reg | K::r16_rm | K::r16_opcode => Register::AX + n,
        K::r32_or_mem | K::r32_reg | K::r32_rm | K::r32_opcode => Register::EAX + n,
        K::r64_or_mem | K::r64_reg | K::r64_rm | K::r64_opcode => Register::RAX + n,
        K::mm_or_mem | K::mm_reg | K::mm_rm => Register::MM0 + (n & 7),
        K::xmm_or_mem | K::xmm_reg | K::xmm_rm => Register::XMM0 + n,
        K::seg_reg => Register::ES + n % 6,
        K::cr_reg => Register::CR0 + [0, 2, 3, 4, 8][n as usize % 5],
        K::dr_reg => Register::DR0 + [0, 1, 2, 3, 6, 7][n as usize % 6],
        K::es => Register::ES,
        K::cs => Register::CS,
        K::ss => Register::SS,
        K::ds => Register::DS,
        K::fs => Register::FS,
        K::gs => Register::GS,
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::dx => Register::DX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        K::st0 => Register::ST0,
        K::sti_opcode => Register::ST0 + (n & 7),
        _ => return None,
    })
}

fn immediate(rng: &mut ChaCha8Rng, ins: &mut Instruction, i: u32, kind: K, before: u32) {
    let value = values::integer(rng);
    match kind {
        K::imm8 if before > 0 => {
            ins.set_op_kind(i, OpKind::Immediate8_2nd);
            // ENTER's nesting level.
            ins.set_immediate8_2nd(value as u8 & 7);
        }
        K::imm8_const_1 => {
            ins.set_op_kind(i, OpKind::Immediate8);
            ins.set_immediate8(1);
        }
        K::imm8 => {
            ins.set_op_kind(i, OpKind::Immediate8);
            ins.set_immediate8(if rng.random() {
                rng.random()
            } else {
                value as u8
            });
        }
        K::imm8sex16 => {
            ins.set_op_kind(i, OpKind::Immediate8to16);
            ins.set_immediate8to16(i16::from(value as i8));
        }
        K::imm8sex32 => {
            ins.set_op_kind(i, OpKind::Immediate8to32);
            ins.set_immediate8to32(i32::from(value as i8));
        }
        K::imm8sex64 => {
            ins.set_op_kind(i, OpKind::Immediate8to64);
            ins.set_immediate8to64(i64::from(value as i8));
        }
        K::imm16 => {
            ins.set_op_kind(i, OpKind::Immediate16);
            let small = matches!(ins.mnemonic(), Mnemonic::Enter | Mnemonic::Ret);
            ins.set_immediate16(value as u16 & if small { 0xff } else { 0xffff });
        }
        K::imm32 => {
            ins.set_op_kind(i, OpKind::Immediate32);
            ins.set_immediate32(value as u32);
        }
        K::imm32sex64 => {
            ins.set_op_kind(i, OpKind::Immediate32to64);
            ins.set_immediate32to64(i64::from(value as i32));
        }
        _ => {
            ins.set_op_kind(i, OpKind::Immediate64);
            ins.set_immediate64(value);
        }
    }
}

/// A linear address for an operand of `size` bytes that wants `align`.
fn target(rng: &mut ChaCha8Rng, size: u64, align: u64) -> u64 {
    let page = PAGE as u64;
    let size = size.max(1);
    let (writable, all) = (DATA_WRITABLE as u64, DATA_SIZE as u64);
    let address = match rng.random_range(0..100) {
        0..12 => DATA + page - rng.random_range(0..=size),
        12..16 => DATA + writable - rng.random_range(0..=size),
        16..22 => DATA + writable + rng.random_range(0..page - size),
        22..25 => DATA + all - rng.random_range(0..=size),
        25..27 => DATA - rng.random_range(0..=size),
        27..30 => STACK + rng.random_range(0..page - size),
        30..32 => CODE + rng.random_range(0..0x100u64),
        32..34 => 0x0500_0000 + rng.random_range(0..page),
        _ => DATA + rng.random_range(0..writable - size),
    };
    address & !(align - 1)
}

fn memory(rng: &mut ChaCha8Rng, ins: &mut Instruction, known: &Known) {
    let size = ins.memory_size().size() as u64;
    // A locked operand across cache lines is slow on the host and may be forbidden.
    let atomic = ins.has_lock_prefix() || ins.mnemonic() == Mnemonic::Xchg;
    let align = if atomic && size > 0 {
        size.next_power_of_two()
    } else if size >= 16 && rng.random_range(0..100) < 70 {
        16
    } else {
        1
    };
    let mut address = if size == 512 && rng.random() {
        DATA + values::FXSAVE_AT as u64
    } else {
        target(rng, size, align)
    };
    if known.mode == Mode::Bits32 && rng.random_range(0..50) == 0 {
        ins.set_segment_prefix(Register::ES + rng.random_range(0..6u32));
    } else if known.mode == Mode::Bits64 && rng.random_range(0..25) == 0 {
        ins.set_segment_prefix(Register::GS);
        address = address.wrapping_sub(GS_BASE);
    } else if rng.random_range(0..40) == 0 {
        ins.set_segment_prefix(Register::ES + rng.random_range(0..4u32));
    }
    match rng.random_range(0..100) {
        0..40 => absolute(ins, known.mode, address),
        40..55 if known.mode == Mode::Bits64 => {
            ins.set_memory_base(Register::RIP);
            ins.set_memory_displ_size(8);
            ins.set_memory_displacement64(address);
        }
        _ => {
            if !based(rng, ins, known, address) {
                absolute(ins, known.mode, address);
            }
        }
    }
}

fn absolute(ins: &mut Instruction, mode: Mode, address: u64) {
    ins.set_memory_displ_size(mode.bits() / 8);
    ins.set_memory_displacement64(address);
}

/// Base and maybe index, of registers whose values are known. False if the displacement does not
/// fit.
fn based(rng: &mut ChaCha8Rng, ins: &mut Instruction, known: &Known, address: u64) -> bool {
    let pick = |rng: &mut ChaCha8Rng, index: bool| {
        (0..8).find_map(|_| {
            let all = if known.mode == Mode::Bits64 { 16 } else { 8 };
            let n = rng.random_range(0..all);
            let good = known.clobbered >> n & 1 == 0 && !(index && n == 4);
            good.then_some(n)
        })
    };
    let Some(base) = pick(rng, false) else {
        return false;
    };
    let index = if rng.random_range(0..3) == 0 {
        pick(rng, true)
    } else {
        None
    };
    let shift = rng.random_range(0..4);
    let mut sum = known.gpr[base as usize];
    if let Some(i) = index {
        sum = sum.wrapping_add(known.gpr[i as usize] << shift);
    }
    let displacement = address.wrapping_sub(sum);
    let a32 = known.mode == Mode::Bits32 || rng.random_range(0..8) == 0;
    if a32 {
        if ins.segment_prefix() == Register::GS && address >> 32 != 0 {
            return false;
        }
        ins.set_memory_base(Register::EAX + base);
        ins.set_memory_displ_size(4);
        ins.set_memory_displacement64(displacement & 0xffff_ffff);
    } else {
        if displacement as i64 != i64::from(displacement as i32) {
            return false;
        }
        ins.set_memory_base(Register::RAX + base);
        ins.set_memory_displ_size(if displacement as i64 == i64::from(displacement as i8) {
            1
        } else {
            8
        });
        ins.set_memory_displacement64(displacement);
    }
    if let Some(i) = index {
        let first = if a32 { Register::EAX } else { Register::RAX };
        ins.set_memory_index(first + i);
        ins.set_memory_index_scale(1 << shift);
    }
    true
}
