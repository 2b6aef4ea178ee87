//! Handlers that the guests of several cases have: each does what a kernel would, and goes on.

use iced_x86::code_asm::*;

use crate::assemble;
use crate::rig::{P, Rig, U, W, at, sel};

/// Vector 20h and INT 80h count in R15; a page fault maps the page of CR2 onto DATA + 1000h; a system
/// call whose LSTAR is DATA + 4000h halts. Code at DATA + 2000h to DATA + 4001h.
pub fn serve(rig: &mut Rig) -> Result<(), String> {
    // Page fault: maps the page of CR2 onto DATA, and returns.
    let repair = assemble!(64, at::DATA + 0x2000, |a| {
        a.push(rax)?;
        a.push(rbx)?;
        a.mov(rax, cr2)?;
        a.mov(ebx, eax)?;
        a.shr(ebx, 9)?;
        a.and(ebx, 0xff8)?;
        a.mov(rax, (at::DATA + 0x1000) | P | W)?;
        a.mov(qword_ptr(rbx + at::PT_TEST as i32), rax)?;
        a.pop(rbx)?;
        a.pop(rax)?;
        a.add(rsp, 8)?;
        a.iretq()?;
    });
    rig.write(at::DATA + 0x2000, &repair);
    rig.set_gate(14, at::DATA + 0x2000, sel::CODE64, 0x8e01);
    // INT 80h and interrupts: count and return.
    let count = assemble!(64, at::DATA + 0x3000, |a| {
        a.inc(r15)?;
        a.iretq()?;
    });
    rig.write(at::DATA + 0x3000, &count);
    for vector in [0x20, 0x80] {
        rig.set_gate(vector, at::DATA + 0x3000, sel::CODE64, 0xee00);
    }
    // The system call ends it.
    rig.write(at::DATA + 0x4000, &[0xf4]);
    rig.map(3, (at::DATA + 0x1000) | P | W | U);
    Ok(())
}
