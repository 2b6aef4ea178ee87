//! Paging outside of long mode: 32-bit with 4 MiB pages, and PAE.

use iced_x86::code_asm::*;

use crate::rig::{A, D, NX, P, PS, Rig, U, W, at, protected_state};
use crate::segments::{protected_fault, protected_idt};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("legacy: 32-bit paging", legacy),
    ("legacy: PAE paging", pae),
    ("legacy: linear addresses wrap", wrap),
];

const DIRECTORY: u64 = at::SPARE;
const TABLE: u64 = at::SPARE + 0x1000;

fn put(rig: &mut Rig, gpa: u64, v: u64) {
    rig.write(gpa, &(v as u32).to_le_bytes());
}

fn legacy(make: Maker) -> Result<(), String> {
    let body = assemble!(32, at::CODE, |a| {
        a.mov(eax, dword_ptr(0x80_0000u32))?;
        a.mov(ebx, dword_ptr(0xc00_0000u32 + at::DATA as u32 + 0x1000))?;
        a.mov(dword_ptr(0x80_0004u32), eax)?;
        // The entry is edited through the identity map.
        a.mov(dword_ptr(TABLE as u32), (at::DATA + 0x1000 + P) as u32)?;
        a.mov(ecx, dword_ptr(0x80_0000u32))?;
        a.mov(dword_ptr(0x80_0000u32), eax)?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    protected_idt(&mut rig);
    put(&mut rig, DIRECTORY, P | W | PS);
    put(&mut rig, DIRECTORY + 8, TABLE | P | W);
    put(&mut rig, DIRECTORY + 4 * 48, P | W | PS);
    put(&mut rig, TABLE, at::DATA | P | W);
    rig.write_u64(at::DATA, 0xaaaa);
    rig.write_u64(at::DATA + 0x1000, 0xbbbb);
    let mut state = protected_state();
    state.cr0 |= 1 << 31 | 1 << 16;
    state.cr3 = DIRECTORY;
    state.cr4 = 1 << 4;
    rig.set(&state)?;
    let fault = protected_fault(&mut rig, true)?;
    let s = rig.engine.state();
    same!(s.gpr[0], 0xaaaa, "4 KiB page");
    same!(s.gpr[3], 0xbbbb, "4 MiB page");
    same!(s.gpr[1], 0xbbbb, "after the edit");
    same!((fault.0, fault.1), (14, 3), "read-only");
    same!(s.cr2, 0x80_0000, "CR2");
    let entry = rig.read_u64(TABLE) as u32;
    same!(u64::from(entry) & (A | D), A, "A and D");
    let large = rig.read_u64(DIRECTORY + 4 * 48) as u32;
    same!(u64::from(large) & (A | D), A, "A and D of the 4 MiB page");
    // Without CR4.PSE the PS bit means nothing.
    let mut rig = Rig::new(
        make,
        0,
        &assemble!(32, at::CODE, |a| {
            a.mov(eax, dword_ptr(0x80_0000u32))?;
            a.hlt()?;
        }),
    )?;
    protected_idt(&mut rig);
    put(&mut rig, DIRECTORY, (TABLE + 0x1000) | P | W);
    for i in 0..512 {
        put(&mut rig, TABLE + 0x1000 + 4 * i, i << 12 | P | W);
    }
    put(&mut rig, DIRECTORY + 8, TABLE | P | W | PS);
    put(&mut rig, TABLE, at::DATA | P | W);
    rig.write_u64(at::DATA, 0xaaaa);
    state.cr4 = 0;
    rig.set(&state)?;
    same!(rig.finish()?.gpr[0], 0xaaaa, "PS without PSE");
    Ok(())
}

fn pae(make: Maker) -> Result<(), String> {
    let body = assemble!(32, at::CODE, |a| {
        a.mov(eax, dword_ptr(0x80_0000u32))?;
        a.mov(ebx, dword_ptr(0x4000_0000u32 + at::DATA as u32))?;
        a.mov(ecx, 0x80_0000u32)?;
        a.jmp(ecx)?;
    });
    let (pdpt, pd) = (at::SPARE + 0x20, at::SPARE + 0x1000);
    let table = at::SPARE + 0x2000;
    let mut rig = Rig::new(make, 0, &body)?;
    protected_idt(&mut rig);
    rig.write_u64(pdpt, pd | P);
    rig.write_u64(pdpt + 8, pd | P);
    rig.write_u64(pd, P | W | PS);
    rig.write_u64(pd + 32, table | P | W | U);
    rig.write_u64(table, at::DATA | P | W | NX);
    rig.write_u64(at::DATA, 0xaaaa);
    let mut state = protected_state();
    state.cr0 |= 1 << 31 | 1 << 16;
    state.cr3 = pdpt;
    state.cr4 = 1 << 5;
    state.msrs.efer = 0x800;
    rig.set(&state)?;
    let fault = protected_fault(&mut rig, true)?;
    let s = rig.engine.state();
    same!((s.gpr[0], s.gpr[3]), (0xaaaa, 0xaaaa), "pages");
    same!((fault.0, fault.1), (14, 0x11), "NX");
    same!(rig.read_u64(pdpt), pd | P, "PDPTEs have no A bit");
    // A PDPTE with reserved bits is refused when CR3 is loaded.
    let body = assemble!(32, at::CODE, |a| {
        a.mov(eax, pdpt as u32)?;
        a.mov(cr3, eax)?;
    });
    rig.write(at::CODE, &body);
    rig.write_u64(pdpt + 16, P | W);
    rig.set(&state)?;
    let fault = protected_fault(&mut rig, true)?;
    same!((fault.0, fault.1), (13, 0), "reserved bits of a PDPTE");
    Ok(())
}

fn wrap(make: Maker) -> Result<(), String> {
    let body = assemble!(32, at::CODE, |a| {
        a.mov(eax, dword_ptr(esi + 0x7fff_ffff))?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write_u64(at::DATA, 0x1234);
    let mut state = protected_state();
    state.segments[3].base = 0x8000_0001;
    state.gpr[6] = at::DATA;
    rig.set(&state)?;
    same!(rig.finish()?.gpr[0], 0x1234, "base plus offset wraps");
    Ok(())
}
