//! Makes the code of the stubs: which operands go where, and what is wrapped around them.
//!
//! | | SSE and MMX | x87 |
//! |---|---|---|
//! | RDI | first operand | memory operand |
//! | RSI | second operand | not used |
//! | RDX | the guest's FXSAVE image | the same |
//! | RCX | the guest's general registers | RFLAGS to begin with |
//!
//! Inside, a register operand number i is XMM(i+1), MM(i+1) or RAX; XMM0 is left for instructions
//! that imply it.

use iced_x86::code_asm::*;
use iced_x86::{
    IcedError, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
    RflagsBits,
};

use crate::fpstate::{MXCSR_DEFAULT, MXCSR_MASK};

/// Offsets in the FXSAVE image.
const MXCSR: i32 = 24;
const MASK: i32 = 28;
const XMM: i32 = 160;

/// The flags of RFLAGS; iced's bits hold those of x87's status word too.
const STATUS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// Whether the instruction rounds, or reports exceptions in MXCSR. Wrongly saying yes only costs
/// time.
pub fn needs_mxcsr(instruction: &Instruction) -> bool {
    const WITHOUT: [&str; 13] = [
        "P", "Mov", "And", "Or", "Xor", "Unpck", "Shuf", "Blend", "Insert", "Extract", "Lddqu",
        "Rcp", "Rsqrt",
    ];
    let name = format!("{:?}", instruction.mnemonic());
    !WITHOUT.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether the instruction sets RFLAGS (then it sets all of the arithmetic flags).
pub fn clobbers_flags(instruction: &Instruction) -> bool {
    instruction.rflags_modified() & STATUS != 0
}

/// Puts fixed registers and pointers in place of the operands.
pub fn rewrite(instruction: &Instruction) -> Instruction {
    let mut out = *instruction;
    out.set_segment_prefix(Register::None);
    // Prefixes without meaning would only multiply the stubs.
    out.set_has_rep_prefix(false);
    out.set_has_repne_prefix(false);
    out.set_has_lock_prefix(false);
    for i in 0..out.op_count() {
        match out.op_kind(i) {
            OpKind::Register => {
                let register = replacement(out.op_register(i), i);
                // Setting a register over a register changes nothing else; other kinds of operand
                // are not touched.
                let set = match i {
                    0 => Instruction::set_op0_register,
                    1 => Instruction::set_op1_register,
                    2 => Instruction::set_op2_register,
                    _ => Instruction::set_op3_register,
                };
                set(&mut out, register);
            }
            OpKind::Memory => {
                let base = if i == 0 { Register::RDI } else { Register::RSI };
                out.set_memory_base(base);
                out.set_memory_index(Register::None);
                out.set_memory_displacement64(0);
                out.set_memory_displ_size(0);
            }
            _ => {}
        }
    }
    out
}

fn replacement(register: Register, operand: u32) -> Register {
    if register.is_xmm() && !(operand == 2 && register == Register::XMM0) {
        Register::XMM1 + operand
    } else if register.is_mm() {
        Register::MM1 + operand
    } else if register.is_gpr64() {
        Register::RAX
    } else if register.is_gpr32() {
        Register::EAX
    } else {
        register
    }
}

/// Loads or stores register operand `i` from or to where its pointer points.
fn transfer(
    a: &mut CodeAssembler,
    register: Register,
    i: u32,
    store: bool,
) -> Result<(), IcedError> {
    let pointer = if i == 0 { rdi } else { rsi };
    let xmm = [xmm1, xmm2][i as usize & 1];
    let mm = [mm1, mm2][i as usize & 1];
    match (register, store) {
        (r, false) if r.is_xmm() => a.movaps(xmm, xmmword_ptr(pointer)),
        (r, true) if r.is_xmm() => a.movaps(xmmword_ptr(pointer), xmm),
        (r, false) if r.is_mm() => a.movq(mm, qword_ptr(pointer)),
        (r, true) if r.is_mm() => a.movq(qword_ptr(pointer), mm),
        (_, false) => a.mov(rax, qword_ptr(pointer)),
        (_, true) => a.mov(qword_ptr(pointer), rax),
    }
}

/// What an instruction uses beside its operands.
struct Implied {
    xmm0: bool,
    xmm0_written: bool,
    /// PCMPESTRI and PCMPESTRM: lengths in RAX and RDX.
    lengths: bool,
    /// PCMPESTRI and PCMPISTRI: index in RCX.
    index: bool,
    mmx: bool,
}

impl Implied {
    fn of(instruction: &Instruction) -> Self {
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(instruction);
        let used = |wanted: Register| {
            info.used_registers()
                .iter()
                .filter(move |u| u.register().full_register() == wanted)
        };
        let name = instruction.mnemonic();
        Self {
            // Compared by name: the registers XMM1 and up are operands here.
            xmm0: info
                .used_registers()
                .iter()
                .any(|u| u.register() == Register::XMM0),
            xmm0_written: info
                .used_registers()
                .iter()
                .any(|u| u.register() == Register::XMM0 && is_write(u.access())),
            lengths: matches!(
                name,
                Mnemonic::Pcmpestri
                    | Mnemonic::Pcmpestrm
                    | Mnemonic::Pcmpestri64
                    | Mnemonic::Pcmpestrm64
            ),
            index: used(Register::RCX).next().is_some(),
            mmx: (0..instruction.op_count()).any(|i| instruction.op_register(i).is_mm()),
        }
    }
}

fn is_write(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// Code of a rewritten SSE or MMX instruction, to be placed at `at`.
pub fn sse(instruction: &Instruction, at: u64) -> Result<Vec<u8>, IcedError> {
    let implied = Implied::of(instruction);
    let mxcsr = needs_mxcsr(instruction);
    let mut a = CodeAssembler::new(64)?;
    let mut host_mxcsr = a.create_label();
    if implied.lengths || implied.index || implied.xmm0_written {
        a.mov(r8, rcx)?;
        a.mov(r9, rdx)?;
    }
    for i in 0..instruction.op_count().min(2) {
        if instruction.op_kind(i) == OpKind::Register {
            transfer(&mut a, instruction.op_register(i), i, false)?;
        }
    }
    if implied.xmm0 {
        a.movaps(xmm0, xmmword_ptr(rdx + XMM))?;
    }
    if implied.lengths {
        a.mov(rax, qword_ptr(r8))?;
        a.mov(rdx, qword_ptr(r8 + 16))?;
    }
    if mxcsr {
        a.ldmxcsr(dword_ptr(rdx + MXCSR))?;
    }
    a.add_instruction(*instruction)?;
    if mxcsr {
        a.stmxcsr(dword_ptr(rdx + MXCSR))?;
        a.ldmxcsr(dword_ptr(host_mxcsr))?;
    }
    if instruction.op_count() > 0 && instruction.op_kind(0) == OpKind::Register {
        transfer(&mut a, instruction.op_register(0), 0, true)?;
    }
    if implied.index {
        a.mov(qword_ptr(r8 + 8), rcx)?;
    }
    if implied.xmm0_written {
        a.movaps(xmmword_ptr(r9 + XMM), xmm0)?;
    }
    if clobbers_flags(instruction) {
        a.pushfq()?;
        a.pop(rax)?;
    }
    if implied.mmx {
        a.emms()?;
    }
    finish(a, &mut host_mxcsr, at)
}

/// Code of a rewritten x87 instruction, to be placed at `at`.
///
/// An exception that the guest does not mask stays pending in the host's x87 from the instruction
/// until FNINIT; nothing in between checks for it.
pub fn x87(instruction: &Instruction, at: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut host_mxcsr = a.create_label();
    a.fxrstor64(ptr(rdx))?;
    if instruction.rflags_read() & STATUS != 0 {
        a.push(rcx)?;
        a.popfq()?;
    }
    a.add_instruction(*instruction)?;
    if clobbers_flags(instruction) {
        a.pushfq()?;
        a.pop(rax)?;
    }
    a.fxsave64(ptr(rdx))?;
    // The host's own, which says what its MXCSR has: bit 17 as well on AMD's.
    a.mov(dword_ptr(rdx + MASK), MXCSR_MASK)?;
    a.fninit()?;
    a.ldmxcsr(dword_ptr(host_mxcsr))?;
    finish(a, &mut host_mxcsr, at)
}

fn finish(mut a: CodeAssembler, host_mxcsr: &mut CodeLabel, at: u64) -> Result<Vec<u8>, IcedError> {
    a.ret()?;
    a.set_label(host_mxcsr)?;
    a.dd(&[MXCSR_DEFAULT])?;
    a.assemble(at)
}
