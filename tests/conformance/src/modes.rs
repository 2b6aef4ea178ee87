//! From reset through real and protected mode to long mode, and what a switch may not do.

use iced_x86::code_asm::*;

use crate::rig::{P, PS, Rig, W, at, protected_state, real_state, sel};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("modes: real, protected, long", climb),
    ("modes: long mode and back", descend),
    ("modes: real mode addressing", real),
    ("modes: control register rules", rules),
];

const LOW: u64 = 0x9000;

/// 16-bit code at 9000h, 32-bit code at CODE, 64-bit code at DATA.
fn climb(make: Maker) -> Result<(), String> {
    let low = assemble!(16, LOW, |a| {
        a.cli()?;
        a.lgdt(fword_ptr(0x7000))?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        a.db(&[0x66, 0xea])?;
        a.db(&(at::CODE as u32).to_le_bytes())?;
        a.db(&sel::CODE32.to_le_bytes())?;
    });
    let middle = assemble!(32, at::CODE, |a| {
        a.mov(eax, u32::from(sel::DATA))?;
        a.mov(ds, eax)?;
        a.mov(ss, eax)?;
        a.mov(esp, at::STACK as u32)?;
        a.mov(eax, at::SPARE as u32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32 as i32)?;
        a.mov(cr0, eax)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        // Now in compatibility mode.
        a.db(&[0xea])?;
        a.db(&(at::DATA as u32).to_le_bytes())?;
        a.db(&sel::CODE64.to_le_bytes())?;
    });
    let high = assemble!(64, at::DATA, |a| {
        a.mov(rcx, 0x1234_5678_9abc_def0u64)?;
        a.push(rcx)?;
        a.pop(r8)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &middle)?;
    rig.write(LOW, &low);
    rig.write(at::DATA, &high);
    let mut pointer = 0x7fu16.to_le_bytes().to_vec();
    pointer.extend((at::GDT as u32).to_le_bytes());
    rig.write(0x7000, &pointer);
    rig.write_u64(at::SPARE, (at::SPARE + 0x1000) | P | W);
    rig.write_u64(at::SPARE + 0x1000, (at::SPARE + 0x2000) | P | W);
    rig.write_u64(at::SPARE + 0x2000, P | W | PS);
    let mut state = engine::CpuState::at_reset();
    state.segments[1].base = 0;
    state.segments[1].selector = 0;
    state.rip = LOW;
    rig.set(&state)?;
    let s = rig.finish()?;
    same!(s.gpr[3] & 0xffff_ffff, 0x500, "EFER with LMA");
    same!(s.gpr[8], 0x1234_5678_9abc_def0, "64-bit code ran");
    same!(s.segments[1].selector, sel::CODE64, "CS");
    same!(s.count, 6 + 18 + 4, "count");
    Ok(())
}

/// Long mode to compatibility mode, paging off, and protected mode off.
fn descend(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.jmp(fword_ptr(rbx))?;
    });
    let middle = assemble!(32, at::DATA, |a| {
        a.mov(eax, cr0)?;
        a.and(eax, 0x7fff_ffff)?;
        a.mov(cr0, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        a.db(&[0xea])?;
        a.db(&(LOW as u32).to_le_bytes())?;
        a.db(&sel::CODE16.to_le_bytes())?;
    });
    let low = assemble!(16, LOW, |a| {
        a.mov(ax, sel::DATA16 as i32)?;
        a.mov(ds, ax)?;
        a.mov(eax, cr0)?;
        a.and(al, 0xfeu32 as i32)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea, 0, 0])?;
        a.db(&((at::CODE + 0x100) as u16 >> 4).to_le_bytes())?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    // 0x2010:0000 is CODE + 100h.
    let mut low = low;
    let n = low.len();
    low[n - 2..].copy_from_slice(&(((at::CODE + 0x100) >> 4) as u16).to_le_bytes());
    rig.write(LOW, &low);
    rig.write(at::DATA, &middle);
    let last = assemble!(16, 0, |a| {
        a.mov(cx, 0x1111)?;
        a.mov(ds, cx)?;
        a.mov(dx, word_ptr(0x20))?;
        a.hlt()?;
    });
    rig.write(at::CODE + 0x100, &last);
    rig.write_u64(0x1_1130, 0x5678);
    let mut pointer = (at::DATA as u32).to_le_bytes().to_vec();
    pointer.extend(sel::CODE32.to_le_bytes());
    rig.write(at::DATA + 0x100, &pointer);
    rig.change(|s| s.gpr[3] = at::DATA + 0x100)?;
    let s = rig.finish()?;
    same!(s.gpr[3] & 0x400, 0, "LMA is off");
    same!(s.cr0 & 0x8000_0001, 0, "CR0");
    same!(s.segments[3].base, 0x1_1110, "DS base");
    same!(s.gpr[2] & 0xffff, 0x5678, "real mode load");
    Ok(())
}

fn real(make: Maker) -> Result<(), String> {
    let body = assemble!(16, 0, |a| {
        a.mov(ax, 0x6000)?;
        a.mov(es, ax)?;
        a.mov(bx, 0xfff0)?;
        a.mov(si, 0x20)?;
        // The offset wraps at 64 KiB.
        a.mov(dl, byte_ptr(bx + si).es())?;
        a.mov(ecx, 0x1_0000)?;
        // A 32-bit offset past the limit: #GP, vector 13.
        a.mov(dh, byte_ptr(ecx).es())?;
        a.hlt()?;
    });
    let handler = assemble!(16, 0, |a| {
        a.mov(bp, sp)?;
        a.mov(di, word_ptr(bp))?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write(at::DATA + 0x10, &[0x77]);
    rig.write(0x9000, &handler);
    rig.write(13 * 4, &0x0900_0000u32.to_le_bytes());
    rig.set(&real_state())?;
    let s = rig.finish()?;
    same!(s.gpr[2] & 0xffff, 0x77, "wrapped load");
    same!(s.gpr[7] & 0xffff, 20, "IP in the frame, no error code");
    same!(s.gpr[4], at::STACK - 6, "SP");
    Ok(())
}

fn rules(make: Maker) -> Result<(), String> {
    type Tweak = fn(&mut engine::CpuState);
    let cases: &[(&str, &[u8], Tweak)] = &[
        ("CR0: PG without PE", &[0x0f, 0x22, 0xc0], |s| {
            s.gpr[0] = 0x8000_0010;
        }),
        ("CR0: NW without CD", &[0x0f, 0x22, 0xc0], |s| {
            s.gpr[0] = s.cr0 | 1 << 29;
        }),
        ("CR0: upper half", &[0x0f, 0x22, 0xc0], |s| {
            s.gpr[0] = s.cr0 | 1 << 40;
        }),
        ("CR0: PG off in 64-bit code", &[0x0f, 0x22, 0xc0], |s| {
            s.gpr[0] = s.cr0 & !(1 << 31);
        }),
        ("CR3: beyond physical addresses", &[0x0f, 0x22, 0xd8], |s| {
            s.gpr[0] = 1 << 52;
        }),
        ("CR4: PAE off in long mode", &[0x0f, 0x22, 0xe0], |s| {
            s.gpr[0] = s.cr4 & !0x20;
        }),
        ("CR4: VMX", &[0x0f, 0x22, 0xe0], |s| {
            s.gpr[0] = s.cr4 | 1 << 13;
        }),
        ("CR8: above 15", &[0x44, 0x0f, 0x22, 0xc0], |s| {
            s.gpr[0] = 16;
        }),
        ("DR7: upper half", &[0x0f, 0x23, 0xf8], |s| {
            s.gpr[0] = 1 << 32;
        }),
        ("EFER: LME off with paging", &[0x0f, 0x30], |s| {
            s.gpr[1] = 0xc000_0080;
            s.gpr[0] = 1;
        }),
        ("EFER: unknown bit", &[0x0f, 0x30], |s| {
            s.gpr[1] = 0xc000_0080;
            s.gpr[0] = 0xd01 | 1 << 15;
        }),
        ("LSTAR: not canonical", &[0x0f, 0x30], |s| {
            s.gpr[1] = 0xc000_0082;
            s.gpr[2] = 0x8000;
        }),
        ("unknown MSR: read", &[0x0f, 0x32], |s| s.gpr[1] = 0x1234),
        ("unknown MSR: write", &[0x0f, 0x30], |s| s.gpr[1] = 0x1234),
        ("MSR of AMD: read", &[0x0f, 0x32], |s| {
            s.gpr[1] = 0xc001_1029
        }),
        ("far MSR: write", &[0x0f, 0x30], |s| s.gpr[1] = 0x4000_0000),
    ];
    for (what, bytes, tweak) in cases {
        let mut rig = Rig::new(make, 0, bytes)?;
        rig.change(*tweak)?;
        let before = rig.engine.state();
        let fault = rig.fault()?;
        same!((fault.vector, fault.error), (13, Some(0)), "{what}");
        let after = rig.engine.state();
        same!(
            (after.cr0, after.cr3, after.cr4, after.cr8, after.msrs),
            (before.cr0, before.cr3, before.cr4, before.cr8, before.msrs),
            "{what}: registers"
        );
    }
    // Long mode without PAE.
    let body = assemble!(32, at::CODE, |a| {
        a.mov(cr0, eax)?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    crate::segments::protected_idt(&mut rig);
    let mut state = protected_state();
    state.msrs.efer = 0x100;
    state.gpr[0] = 0x8000_0011;
    rig.set(&state)?;
    let fault = crate::segments::protected_fault(&mut rig, true)?;
    same!(fault.0, 13, "PG with LME without PAE");
    Ok(())
}
