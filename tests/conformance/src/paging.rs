//! Paging in long mode: sizes, rights and error codes, accessed and dirty bits, edits.

use iced_x86::code_asm::*;

use crate::rig::{A, D, NX, P, PS, Rig, U, W, at};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("paging: page sizes", sizes),
    ("paging: rights and error codes", rights),
    ("paging: reserved bits", reserved),
    ("paging: accessed and dirty bits", accessed_dirty),
    ("paging: edits are seen at once", edits),
    ("paging: edits of upper levels", upper_edits),
    ("paging: address spaces", spaces),
    ("paging: straddling accesses", straddling),
    ("paging: canonical addresses", canonical),
    ("paging: changes by devices", devices),
];

const CR2_TEST: u64 = at::TEST + 0x123;

fn sizes(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(0x80_0123u64))?;
        a.mov(rbx, qword_ptr(0x4000_0000u64 + at::DATA))?;
        a.mov(rsi, qword_ptr(at::TEST + 0xff8))?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write_u64(at::PD + 8 * 4, P | W | PS);
    rig.write_u64(at::PDPT + 8, P | W | PS);
    rig.map(0, at::DATA | P);
    rig.write_u64(0x123, 0x1111);
    rig.write_u64(at::DATA, 0x2222);
    rig.write_u64(at::DATA + 0xff8, 0x3333);
    // The 2 MiB page maps physical 0; its byte 123h is among low memory.
    let s = rig.finish()?;
    same!(s.gpr[0], 0x1111, "2 MiB page");
    same!(s.gpr[3], 0x2222, "1 GiB page");
    same!(s.gpr[6], 0x3333, "4 KiB page");
    same!(
        rig.read_u64(at::PD + 32) & (A | D),
        A,
        "A and D of 2 MiB page"
    );
    same!(
        rig.read_u64(at::PDPT + 8) & (A | D),
        A,
        "A and D of 1 GiB page"
    );
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Access {
    Read,
    Write,
    Fetch,
}

/// Tries one access at TEST + 123h; the error code of its page fault.
fn attempt(
    make: Maker,
    cpl: u8,
    access: Access,
    pte: u64,
    tweak: impl Fn(&mut engine::CpuState),
) -> Result<Option<u64>, String> {
    let start = if cpl == 3 { at::USER_CODE } else { at::CODE };
    let body = assemble!(64, start, |a| {
        match access {
            Access::Read => a.mov(al, byte_ptr(CR2_TEST))?,
            Access::Write => a.mov(byte_ptr(CR2_TEST), al)?,
            Access::Fetch => {
                a.mov(rax, CR2_TEST)?;
                a.jmp(rax)?;
            }
        }
        a.int(0x80)?;
    });
    let mut rig = Rig::new(make, cpl, &body)?;
    rig.set_gate(0x80, at::HANDLERS + 0x400, 8, 0xee00);
    rig.map(0, pte);
    // INT 80h.
    rig.write(at::DATA + 0x123, &[0xcd, 0x80]);
    rig.change(&tweak)?;
    let fault = rig.fault()?;
    if fault.vector == 0x80 {
        return Ok(None);
    }
    same!(fault.vector, 14, "vector of {access:?} {pte:#x}");
    same!(fault.cr2, CR2_TEST, "CR2 of {access:?} {pte:#x}");
    same!(
        rig.read_u64(at::PT_TEST) & D,
        0,
        "D after a fault, {access:?} {pte:#x}"
    );
    Ok(fault.error)
}

/// Every combination of page bits, level, access and control bits, against the rules of SDM vol. 3,
/// 4.6.1 and 4.7 written down once more here.
fn rights(make: Maker) -> Result<(), String> {
    for bits in 0..16u64 {
        let pte = at::DATA
            | if bits & 1 != 0 { P } else { 0 }
            | if bits & 2 != 0 { W } else { 0 }
            | if bits & 4 != 0 { U } else { 0 }
            | if bits & 8 != 0 { NX } else { 0 };
        for access in [Access::Read, Access::Write, Access::Fetch] {
            attempt_all(make, pte, access)?;
        }
    }
    Ok(())
}

fn attempt_all(make: Maker, pte: u64, access: Access) -> Result<(), String> {
    for cpl in [0, 3] {
        for controls in 0..16u64 {
            let (wp, smep, smap, ac) = (
                controls & 1 != 0,
                controls & 2 != 0,
                controls & 4 != 0,
                controls & 8 != 0,
            );
            // SMEP and SMAP bear on supervisors only, and AC only with SMAP.
            if cpl == 3 && controls > 1 || ac && !smap {
                continue;
            }
            let got = attempt(make, cpl, access, pte, |s| {
                s.cr0 = s.cr0 & !0x1_0000 | u64::from(wp) << 16;
                s.cr4 |= u64::from(smep) << 20 | u64::from(smap) << 21;
                s.rflags |= u64::from(ac) << 18;
            })?;
            let want = expected(pte, access, cpl == 3, wp, smep, smap && !ac);
            same!(
                got,
                want,
                "{access:?} {pte:#x} cpl {cpl} wp {wp} smep {smep} smap {smap} ac {ac}"
            );
        }
    }
    Ok(())
}

fn expected(pte: u64, access: Access, user: bool, wp: bool, smep: bool, smap: bool) -> Option<u64> {
    let mut error = u64::from(user) << 2;
    error |= match access {
        Access::Read => 0,
        Access::Write => 2,
        Access::Fetch => 16,
    };
    if pte & P == 0 {
        return Some(error);
    }
    let user_page = pte & U != 0;
    let allowed = match access {
        Access::Read => user_page || !user,
        Access::Write => (user_page || !user) && (pte & W != 0 || !user && !wp),
        Access::Fetch => (user_page || !user) && pte & NX == 0,
    };
    let held_back = !user
        && user_page
        && match access {
            Access::Fetch => smep,
            _ => smap,
        };
    (!allowed || held_back).then_some(error | 1)
}

fn reserved(make: Maker) -> Result<(), String> {
    let none = |_: &mut engine::CpuState| {};
    let got = attempt(make, 0, Access::Read, at::DATA | P | 1 << 51, none)?;
    same!(got, Some(9), "address bit 51");
    let got = attempt(make, 3, Access::Write, at::DATA | P | W | U | 1 << 45, none)?;
    same!(got, Some(0xf), "address bit 45, user write");
    let without_nx = |s: &mut engine::CpuState| s.msrs.efer &= !0x800;
    let got = attempt(make, 0, Access::Read, at::DATA | P | NX, without_nx)?;
    same!(got, Some(9), "NX without EFER.NXE");
    let got = attempt(make, 0, Access::Fetch, at::DATA | P | U | NX, without_nx)?;
    same!(got, Some(9), "fetch does not set I without NXE and SMEP");
    // Large pages: address bits below the page size.
    let body = assemble!(64, at::CODE, |a| {
        a.mov(al, byte_ptr(0x80_0000u64))?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write_u64(at::PD + 32, P | PS | 1 << 13);
    same!(rig.fault()?.error, Some(9), "2 MiB page, bit 13");
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write_u64(at::PD + 32, P | PS | 1 << 12);
    rig.finish()?;
    Ok(())
}

fn accessed_dirty(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(at::TEST))?;
        a.mov(rcx, qword_ptr(at::PT_TEST))?;
        a.mov(qword_ptr(at::TEST + 8), rax)?;
        a.mov(rdx, qword_ptr(at::PT_TEST))?;
        // Cleared in memory, set again by the next accesses.
        a.mov(rbx, at::DATA | P | W)?;
        a.mov(qword_ptr(at::PT_TEST), rbx)?;
        a.mov(rax, qword_ptr(at::TEST))?;
        a.mov(rsi, qword_ptr(at::PT_TEST))?;
        a.mov(qword_ptr(at::TEST + 8), rax)?;
        a.mov(rdi, qword_ptr(at::PT_TEST))?;
        // A read-modify-write that does not change the value is a write.
        a.mov(qword_ptr(at::PT_TEST), rbx)?;
        a.add(dword_ptr(at::TEST), 0)?;
        a.mov(r8, qword_ptr(at::PT_TEST))?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.map(0, at::DATA | P | W);
    rig.map(1, at::DATA | P | W);
    let s = rig.finish()?;
    let page = at::DATA | P | W;
    same!(s.gpr[1], page | A, "after a read");
    same!(s.gpr[2], page | A | D, "after a write");
    same!(s.gpr[6], page | A, "after clearing and a read");
    same!(s.gpr[7], page | A | D, "after clearing and a write");
    same!(s.gpr[8], page | A | D, "after a read-modify-write");
    same!(rig.read_u64(at::PT_TEST + 8), page, "page not touched");
    for table in [at::PML4, at::PDPT, at::PD + 16] {
        same!(
            rig.read_u64(table) & (A | D),
            A,
            "table entry at {table:#x}"
        );
    }
    same!(
        rig.read_u64(at::PT0 + 8 * (at::DATA >> 12)) & A,
        0,
        "identity page not touched"
    );
    Ok(())
}

fn edits(make: Maker) -> Result<(), String> {
    let other = at::DATA + 0x1000;
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(at::TEST))?;
        a.mov(rdx, other | P | W)?;
        a.mov(qword_ptr(at::PT_TEST), rdx)?;
        a.mov(rbx, qword_ptr(at::TEST))?;
        // Through another mapping of the table, one byte of the entry only.
        a.mov(byte_ptr(at::TEST + 0x1000 + 1), 0)?;
        a.invlpg(byte_ptr(at::TEST))?;
        a.mov(rcx, qword_ptr(at::TEST))?;
        // With XCHG, to read-only.
        a.mov(rdx, other | P)?;
        a.xchg(qword_ptr(at::PT_TEST), rdx)?;
        a.mov(rsi, qword_ptr(at::TEST))?;
        a.mov(qword_ptr(at::TEST), rsi)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.map(0, at::DATA | P | W);
    rig.map(1, at::PT_TEST | P | W);
    rig.write_u64(at::DATA, 0xaaaa);
    rig.write_u64(other, 0xbbbb);
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!(s.gpr[0], 0xaaaa, "first page");
    same!(s.gpr[3], 0xbbbb, "after the edit");
    same!(s.gpr[1], 0xaaaa, "after the edit through another mapping");
    same!(s.gpr[6], 0xbbbb, "after XCHG");
    same!((fault.vector, fault.error), (14, Some(3)), "now read-only");
    Ok(())
}

fn upper_edits(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(at::TEST))?;
        // The PD entry now leads to another table.
        a.mov(rdx, at::SPARE | P | W)?;
        a.mov(qword_ptr(at::PD + 16), rdx)?;
        a.mov(rbx, qword_ptr(at::TEST))?;
        // A 2 MiB page in its place.
        a.mov(rdx, P | W | PS)?;
        a.mov(qword_ptr(at::PD + 16), rdx)?;
        a.mov(rcx, qword_ptr(at::TEST + at::DATA))?;
        // The PDPT entry of 1 GiB on, used through a shared table.
        a.mov(rsi, qword_ptr(0x4000_0000u64 + at::DATA))?;
        a.mov(edx, 0)?;
        a.mov(qword_ptr(at::PDPT + 8), rdx)?;
        a.mov(rdi, qword_ptr(0x4000_0000u64 + at::DATA))?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.map(0, at::DATA | P | W);
    rig.write_u64(at::SPARE, (at::DATA + 0x1000) | P | W);
    rig.write_u64(at::PDPT + 8, at::PD | P | W);
    rig.write_u64(at::DATA, 0xaaaa);
    rig.write_u64(at::DATA + 0x1000, 0xbbbb);
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!(s.gpr[0], 0xaaaa, "first table");
    same!(s.gpr[3], 0xbbbb, "second table");
    same!(s.gpr[1], 0xaaaa, "2 MiB page");
    same!(s.gpr[6], 0xaaaa, "through the second PDPT entry");
    same!(
        (fault.vector, fault.error, fault.cr2),
        (14, Some(0), 0x4000_0000 + at::DATA),
        "PDPT entry cleared"
    );
    Ok(())
}

/// Two address spaces that differ in one page; a global page in both.
fn spaces(make: Maker) -> Result<(), String> {
    let (pml4, pdpt, pd, pt) = (
        at::SPARE,
        at::SPARE + 0x1000,
        at::SPARE + 0x2000,
        at::SPARE + 0x3000,
    );
    let body = assemble!(64, at::CODE, |a| {
        a.mov(r8d, 4)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(rax, pml4)?;
        a.mov(cr3, rax)?;
        a.add(r9, qword_ptr(at::TEST))?;
        a.add(qword_ptr(at::TEST), 1)?;
        a.mov(rax, at::PML4)?;
        a.mov(cr3, rax)?;
        a.add(r10, qword_ptr(at::TEST))?;
        a.add(qword_ptr(at::TEST), 1)?;
        a.dec(r8d)?;
        a.jne(again)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write_u64(pml4, pdpt | P | W);
    rig.write_u64(pdpt, pd | P | W);
    rig.write_u64(pd, at::PT0 | P | W);
    rig.write_u64(pd + 16, pt | P | W);
    rig.write_u64(pt, (at::DATA + 0x1000) | P | W);
    rig.map(0, at::DATA | P | W);
    rig.write_u64(at::DATA, 100);
    rig.write_u64(at::DATA + 0x1000, 1000);
    let s = rig.finish()?;
    same!(s.gpr[9], 4006, "sum in the second space");
    same!(s.gpr[10], 406, "sum in the first space");
    Ok(())
}

fn straddling(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(at::TEST + 0xffc))?;
        a.mov(rbx, 0x8877_6655_4433_2211u64)?;
        a.mov(qword_ptr(at::TEST + 0xffb), rbx)?;
        a.mov(qword_ptr(at::TEST + 0x1ffe), rbx)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    // Two pages in the opposite order in memory, then a read-only one.
    rig.map(0, (at::DATA + 0x1000) | P | W);
    rig.map(1, at::DATA | P | W);
    rig.map(2, (at::DATA + 0x2000) | P);
    rig.write_u64(at::DATA + 0x1ff8, 0x1111_1111_2222_2222);
    rig.write_u64(at::DATA, 0x3333_3333_4444_4444);
    rig.write_u64(at::DATA + 0xff8, 0x5555_5555_5555_5555);
    let fault = rig.fault()?;
    same!(
        rig.engine.state().gpr[0],
        0x4444_4444_1111_1111,
        "straddling load"
    );
    same!(
        rig.read_u64(at::DATA + 0x1ff8),
        0x5544_3322_1122_2222,
        "first part of a straddling store"
    );
    same!(
        rig.read_u64(at::DATA),
        0x3333_3333_4488_7766,
        "second part of a straddling store"
    );
    same!(
        (fault.vector, fault.error, fault.cr2),
        (14, Some(3), at::TEST + 0x2000),
        "the second page is read-only"
    );
    same!(
        rig.read_u64(at::DATA + 0xff8),
        0x5555_5555_5555_5555,
        "nothing is stored if the second page faults"
    );
    Ok(())
}

fn canonical(make: Maker) -> Result<(), String> {
    let bad = 0x8000_0000_0000u64;
    let load = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(rbx))?;
    });
    let on_stack = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(rbp))?;
    });
    let push = assemble!(64, at::CODE, |a| {
        a.push(rax)?;
    });
    let jump = assemble!(64, at::CODE, |a| {
        a.jmp(rbx)?;
    });
    let straddle = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(rbx - 4))?;
    });
    for (what, body, vector) in [
        ("load", load, 13),
        ("load through RBP", on_stack, 12),
        ("push", push, 12),
        ("jump", jump, 13),
        ("load across the end", straddle, 13),
    ] {
        let mut rig = Rig::new(make, 0, &body)?;
        // The page below the end of the lower half.
        rig.write_u64(at::PML4 + 8 * 255, at::SPARE | P | W);
        rig.write_u64(at::SPARE + 8 * 511, (at::SPARE + 0x1000) | P | W);
        rig.write_u64(at::SPARE + 0x1000 + 8 * 511, P | W | PS);
        rig.change(|s| {
            s.gpr[3] = bad;
            s.gpr[5] = bad;
            if what == "push" {
                s.gpr[4] = bad + 0x100;
            }
        })?;
        // Exceptions come on a good stack.
        rig.set_gate(vector, at::HANDLERS + 8 * vector, 8, 0x8e01);
        let fault = rig.fault()?;
        same!(
            (u64::from(fault.vector), fault.error),
            (vector, Some(0)),
            "{what}"
        );
        same!(fault.rip, at::CODE, "{what}: RIP");
    }
    Ok(())
}

/// Page tables written by a device, and dirty pages.
fn devices(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(at::TEST))?;
        a.out(0x80, al)?;
        a.mov(rbx, qword_ptr(at::TEST))?;
        a.mov(qword_ptr(at::TEST), rbx)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.map(0, at::DATA | P | W);
    rig.write_u64(at::DATA, 0xaaaa);
    rig.write_u64(at::DATA + 0x1000, 0xbbbb);
    rig.engine.take_dirty();
    rig.run_to(Some(2))?;
    let tables = [at::PML4, at::PDPT, at::PD, at::PT0, at::PT_TEST];
    let mut frames: Vec<u64> = tables.iter().map(|t| t >> 12).collect();
    same!(
        rig.engine.take_dirty(),
        frames.clone(),
        "dirty after a read"
    );
    rig.map(0, (at::DATA + 0x1000) | P | W);
    let s = rig.finish()?;
    same!(s.gpr[3], 0xbbbb, "page mapped by a device");
    frames = vec![at::PT_TEST >> 12, (at::DATA + 0x1000) >> 12];
    same!(rig.engine.take_dirty(), frames, "dirty after a write");
    same!(rig.engine.take_dirty().len(), 0, "dirty after nothing");
    Ok(())
}
