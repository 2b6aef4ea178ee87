//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS, FSGSBASE.

use iced_x86::code_asm::*;

use crate::rig::{Rig, at, sel};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("calls: SYSCALL and SYSRET", syscall),
    ("calls: SYSRET to 32-bit code", sysret32),
    ("calls: SYSENTER and SYSEXIT", sysenter),
    ("calls: SWAPGS and segment bases", bases),
];

fn syscall(make: Maker) -> Result<(), String> {
    let user = assemble!(64, at::USER_CODE, |a| {
        a.syscall()?;
        a.mov(r15, rcx)?;
        a.int3()?;
    });
    let kernel = assemble!(64, at::CODE, |a| {
        a.mov(r8, cs)?;
        a.mov(r9, ss)?;
        a.pushfq()?;
        a.pop(r10)?;
        a.mov(r12, rcx)?;
        a.mov(r13, r11)?;
        a.or(r11, 0x10000)?;
        a.sysretq()?;
    });
    let mut rig = Rig::new(make, 3, &user)?;
    rig.write(at::CODE, &kernel);
    rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
    let mut state = rig.engine.state();
    // The kernel's stack is whatever RSP is: a user page will do.
    state.msrs.lstar = at::CODE;
    state.msrs.star = 0x0033_0008 << 32;
    state.msrs.sfmask = 0x4_0601;
    state.rflags = 0x246 | 1;
    rig.set(&state)?;
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!((s.gpr[8], s.gpr[9]), (0x08, 0x10), "CS and SS inside");
    same!(s.gpr[10], 0x46, "RFLAGS inside, masked");
    same!(s.gpr[12], at::USER_CODE + 2, "RCX");
    same!(s.gpr[13], 0x247, "R11");
    same!(fault.cs, u64::from(sel::USER64), "CS afterwards");
    same!(fault.ss, u64::from(sel::USER_DATA), "SS afterwards");
    same!(fault.rflags, 0x247, "RFLAGS afterwards, RF cleared");
    // Without EFER.SCE.
    let mut rig = Rig::new(make, 3, &user)?;
    rig.change(|s| s.msrs.efer &= !1)?;
    same!(rig.fault()?.vector, 6, "without EFER.SCE");
    // SYSRET to an address that is not canonical.
    let kernel = assemble!(64, at::CODE, |a| {
        a.mov(rcx, 0x8000_0000_0000u64)?;
        a.sysretq()?;
    });
    let mut rig = Rig::new(make, 0, &kernel)?;
    let fault = rig.fault()?;
    same!(
        (fault.vector, fault.error, fault.cs),
        (13, Some(0), u64::from(sel::CODE64)),
        "SYSRET to a bad address faults at level 0"
    );
    Ok(())
}

fn sysret32(make: Maker) -> Result<(), String> {
    let kernel = assemble!(64, at::CODE, |a| {
        a.mov(ecx, at::USER_CODE as u32)?;
        a.mov(r11d, 2)?;
        a.sysret()?;
    });
    let user = assemble!(32, at::USER_CODE, |a| {
        a.mov(eax, 0x7f)?;
        a.inc(eax)?;
        a.syscall()?;
    });
    let mut rig = Rig::new(make, 0, &kernel)?;
    rig.write(at::USER_CODE, &user);
    rig.change(|s| s.msrs.star = 0x0033_0008 << 32)?;
    let fault = rig.fault()?;
    same!(rig.gpr(0), 0x80, "32-bit code ran");
    same!(fault.cs, u64::from(sel::USER32), "CS");
    same!(fault.vector, 6, "SYSCALL is for 64-bit code only");
    Ok(())
}

fn sysenter(make: Maker) -> Result<(), String> {
    let user = assemble!(64, at::USER_CODE, |a| {
        a.sysenter()?;
    });
    let kernel = assemble!(64, at::CODE, |a| {
        a.mov(r8, cs)?;
        a.mov(r9, rsp)?;
        a.mov(rdx, at::USER_CODE + 0x100)?;
        a.mov(rcx, at::USER_STACK - 8)?;
        a.sysexitq()?;
    });
    let mut rig = Rig::new(make, 3, &user)?;
    rig.write(at::CODE, &kernel);
    rig.write(at::USER_CODE + 0x100, &[0xcc]);
    rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
    rig.change(|s| {
        s.msrs.sysenter_cs = u64::from(sel::CODE64);
        s.msrs.sysenter_eip = at::CODE;
        s.msrs.sysenter_esp = at::STACK;
        s.rflags |= 0x200;
    })?;
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!((s.gpr[8], s.gpr[9]), (0x08, at::STACK), "CS and RSP inside");
    same!(
        (fault.cs, fault.ss),
        (0x08 + 32 + 3, 0x08 + 40 + 3),
        "CS and SS afterwards"
    );
    same!(fault.rsp, at::USER_STACK - 8, "RSP afterwards");
    same!(fault.rflags & 0x200, 0, "IF stays off");
    let mut rig = Rig::new(make, 3, &user)?;
    same!(rig.fault()?.error, Some(0), "SYSENTER_CS of 0");
    Ok(())
}

fn bases(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.swapgs()?;
        a.mov(rax, qword_ptr(8).gs())?;
        a.swapgs()?;
        a.mov(rbx, qword_ptr(8).gs())?;
        a.mov(rcx, at::DATA + 0x200)?;
        a.wrfsbase(rcx)?;
        a.mov(rcx, qword_ptr(8).fs())?;
        a.rdfsbase(rdx)?;
        a.rdgsbase(esi)?;
        // A 32-bit address is formed before the base is added.
        a.mov(edi, -8i32)?;
        a.mov(rdi, qword_ptr(edi + 16).gs())?;
        a.mov(r8, 0x8000_0000_0000u64)?;
        a.wrgsbase(r8)?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write_u64(at::DATA + 8, 0x11);
    rig.write_u64(at::DATA + 0x108, 0x22);
    rig.write_u64(at::DATA + 0x208, 0x33);
    rig.change(|s| {
        s.cr4 |= 1 << 16;
        s.segments[5].base = at::DATA;
        s.msrs.kernel_gs_base = at::DATA + 0x100;
    })?;
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!((s.gpr[0], s.gpr[3]), (0x22, 0x11), "SWAPGS");
    same!((s.gpr[1], s.gpr[2]), (0x33, at::DATA + 0x200), "FS base");
    same!(s.gpr[6], at::DATA, "RDGSBASE");
    same!(s.gpr[7], 0x11, "wrapped offset");
    same!((fault.vector, fault.error), (13, Some(0)), "bad base");
    let mut rig = Rig::new(make, 0, &[0xf3, 0x0f, 0xae, 0xc0])?;
    same!(rig.fault()?.vector, 6, "RDFSBASE without CR4.FSGSBASE");
    Ok(())
}
