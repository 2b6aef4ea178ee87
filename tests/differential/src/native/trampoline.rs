//! The code that goes from the harness into a case and back.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::case::{END, END_32, HARNESS, Mode, USER_SS};

/// The page of registers.
pub const STATE: u64 = HARNESS + 0x1000;
/// General registers to start with, then RFLAGS.
pub const GPR_IN: u64 = STATE;
pub const RFLAGS_IN: u64 = STATE + 0x80;
pub const RIP_IN: u64 = STATE + 0x88;
/// General registers and RFLAGS at the end.
pub const GPR_OUT: u64 = STATE + 0x100;
pub const RFLAGS_OUT: u64 = STATE + 0x180;
const HOST_RSP: u64 = STATE + 0x188;
const HOST_MXCSR: u64 = STATE + 0x190;
/// FXSAVE images.
pub const FX_IN: u64 = STATE + 0x200;
pub const FX_OUT: u64 = STATE + 0x400;
/// Where the signal handler goes on.
pub const RESUME: u64 = HARNESS + 0x400;

/// The harness's page of code: the entry at its start (a function without arguments), then at
/// `RESUME` and `END` the ways back.
pub fn assemble(mode: Mode) -> Result<Vec<u8>, IcedError> {
    let mut page = entry(mode)?;
    page.resize((RESUME - HARNESS) as usize, 0xcc);
    page.extend(resume()?);
    page.resize((END - HARNESS) as usize, 0xcc);
    page.extend(end()?);
    page.resize((END_32 - HARNESS) as usize, 0xcc);
    // In 32-bit code: a far jump to `END`.
    page.push(0xea);
    page.extend((END as u32).to_le_bytes());
    page.extend(Mode::Bits64.code_selector().to_le_bytes());
    Ok(page)
}

const REGISTERS: [AsmRegister64; 16] = [
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
];
const SAVED: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

fn entry(mode: Mode) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for r in SAVED {
        a.push(r)?;
    }
    a.mov(qword_ptr(HOST_RSP), rsp)?;
    a.stmxcsr(dword_ptr(HOST_MXCSR))?;
    a.fxrstor64(ptr(FX_IN))?;
    if mode == Mode::Bits32 {
        a.mov(eax, u32::from(USER_SS))?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
    }
    a.push(i32::from(USER_SS))?;
    a.push(qword_ptr(GPR_IN + 4 * 8))?;
    a.push(qword_ptr(RFLAGS_IN))?;
    a.push(i32::from(mode.code_selector()))?;
    a.push(qword_ptr(RIP_IN))?;
    for (i, r) in REGISTERS.into_iter().enumerate() {
        if r != rsp {
            a.mov(r, qword_ptr(GPR_IN + 8 * i as u64))?;
        }
    }
    // Serialising: the case's code was written through another mapping.
    a.iretq()?;
    a.assemble(HARNESS)
}

fn end() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for (i, r) in REGISTERS.into_iter().enumerate() {
        a.mov(qword_ptr(GPR_OUT + 8 * i as u64), r)?;
    }
    a.mov(rsp, qword_ptr(HOST_RSP))?;
    a.pushfq()?;
    a.pop(qword_ptr(RFLAGS_OUT))?;
    a.fxsave64(ptr(FX_OUT))?;
    a.jmp(RESUME)?;
    a.assemble(END)
}

fn resume() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(rsp, qword_ptr(HOST_RSP))?;
    a.push(2)?;
    a.popfq()?;
    a.fninit()?;
    a.ldmxcsr(dword_ptr(HOST_MXCSR))?;
    for r in SAVED.into_iter().rev() {
        a.pop(r)?;
    }
    a.ret()?;
    a.assemble(RESUME)
}
