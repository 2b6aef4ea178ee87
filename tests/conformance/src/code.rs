//! Code that changes while it runs.

use iced_x86::code_asm::*;

use crate::rig::{P, PS, Rig, W, at};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("code: the next instruction is overwritten", next),
    ("code: overwritten through another mapping", alias),
    ("code: overwritten by REP MOVS", by_string),
    ("code: replaced by a device", device),
    ("code: the page is mapped to other code", remapped),
    ("code: instructions across two pages", across),
    ("code: data beside code", beside),
    ("code: outside RAM", outside),
    ("code: a loop that rewrites itself", rewriting),
];

fn next(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        let mut patched = a.create_label();
        a.lea(rbx, ptr(patched))?;
        a.mov(byte_ptr(rbx + 1), 2)?;
        a.set_label(&mut patched)?;
        a.mov(al, 1)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    same!(rig.finish()?.gpr[0], 2, "the new instruction");
    Ok(())
}

/// The alias lies in a 2 MiB page.
fn alias(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        let mut patched = a.create_label();
        let mut again = a.create_label();
        a.mov(ecx, 3)?;
        a.lea(rbx, ptr(patched))?;
        a.add(rbx, 0x80_0000)?;
        a.set_label(&mut again)?;
        a.inc(byte_ptr(rbx + 2))?;
        a.set_label(&mut patched)?;
        a.add(edx, 1)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write_u64(at::PD + 32, P | W | PS);
    same!(rig.finish()?.gpr[2], 2 + 3 + 4, "sum");
    Ok(())
}

fn by_string(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        let mut patched = a.create_label();
        a.lea(rdi, ptr(patched))?;
        a.mov(rsi, at::DATA)?;
        a.mov(ecx, 2)?;
        a.rep().movsb()?;
        a.set_label(&mut patched)?;
        a.mov(al, 1)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write(at::DATA, &[0xb0, 9]);
    same!(rig.finish()?.gpr[0], 9, "the new instruction");
    Ok(())
}

fn device(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(al, 1)?;
        a.out(0x80, al)?;
        a.jmp(again)?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.run_to(Some(9))?;
    rig.write(at::CODE, &[0xb0, 7, 0xf4]);
    same!(rig.finish()?.gpr[0], 7, "the new code");
    Ok(())
}

fn remapped(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rbx, at::TEST)?;
        a.call(rbx)?;
        a.mov(rcx, rax)?;
        a.mov(rdx, (at::DATA + 0x1000) | P | W)?;
        a.mov(qword_ptr(at::PT_TEST), rdx)?;
        a.call(rbx)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.map(0, at::DATA | P | W);
    rig.write(at::DATA, &[0xb8, 1, 0, 0, 0, 0xc3]);
    rig.write(at::DATA + 0x1000, &[0xb8, 2, 0, 0, 0, 0xc3]);
    let s = rig.finish()?;
    same!((s.gpr[1], s.gpr[0]), (1, 2), "old and new code");
    Ok(())
}

/// An instruction whose two halves lie in pages that are far apart in memory; then the second page
/// is taken away.
fn across(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rbx, at::TEST + 0xffd)?;
        a.call(rbx)?;
        a.mov(rcx, rax)?;
        a.mov(byte_ptr(at::DATA + 0x2000), 0x22)?;
        a.call(rbx)?;
        a.mov(rsi, rax)?;
        a.mov(qword_ptr(at::PT_TEST + 8), 0)?;
        a.call(rbx)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.map(0, at::DATA | P | W);
    rig.map(1, (at::DATA + 0x2000) | P | W);
    // MOV EAX, imm32; RET: the immediate's third byte is the first of the second page.
    rig.write(at::DATA + 0xffd, &[0xb8, 0x44, 0x33]);
    rig.write(at::DATA + 0x2000, &[0x11, 0x00, 0xc3]);
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!(s.gpr[1], 0x11_3344, "first");
    same!(s.gpr[6], 0x22_3344, "changed in the second page");
    same!(
        (fault.vector, fault.error, fault.cr2, fault.rip),
        (14, Some(16), at::TEST + 0x1000, at::TEST + 0xffd),
        "second page gone"
    );
    Ok(())
}

/// Stores to data in a page with code are seen and do no harm.
fn beside(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.inc(qword_ptr(at::CODE + 0x800))?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.finish()?;
    same!(rig.read_u64(at::CODE + 0x800), 1000, "counter");
    Ok(())
}

/// Memory outside RAM holds no instructions.
fn outside(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rbx, at::MMIO)?;
        a.jmp(rbx)?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    let fault = rig.fault()?;
    same!((fault.vector, fault.rip), (6, at::MMIO), "#UD");
    Ok(())
}

fn rewriting(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 200)?;
        a.lea(rbx, ptr(again))?;
        a.set_label(&mut again)?;
        a.add(rdx, 0x0100)?;
        // The immediate grows by one each time.
        a.inc(byte_ptr(rbx + 3))?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    let want: u64 = (0..200u64).map(|i| 0x100 + i).sum();
    same!(rig.finish()?.gpr[2], want, "sum");
    Ok(())
}
