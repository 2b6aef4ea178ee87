//! The states in which boot protocols enter a kernel.

use engine::{CpuState, DescriptorTable, Segment};

/// Selectors of the boot GDT, as the Linux boot protocol wants them.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// LME and LMA.
const EFER_LONG: u64 = 1 << 8 | 1 << 10;

/// Access rights (see [`Segment::access`]): present, accessed, 4 KiB granularity.
const CODE32: u32 = 0xc09b;
const CODE64: u32 = 0xa09b;
const DATA32: u32 = 0xc093;
/// Busy 32-bit TSS.
const TASK32: u32 = 0x008b;

/// Bytes of the boot GDT.
pub(super) const GDT_LEN: u64 = 5 * 8;

/// 32-bit protected mode with flat segments, paging and interrupts off. `gdt` is where
/// [`gdt32`] lies.
pub(super) fn protected(gdt: u64, entry: u32) -> CpuState {
    flat(gdt, CODE32, u64::from(entry), CR0_PE | CR0_ET)
}

/// 64-bit mode with flat segments on the page tables at `cr3`, interrupts off. `gdt` is where
/// [`gdt64`] lies.
pub(super) fn long(gdt: u64, cr3: u64, entry: u64) -> CpuState {
    let mut cpu = flat(gdt, CODE64, entry, CR0_PE | CR0_ET | CR0_PG);
    cpu.cr3 = cr3;
    cpu.cr4 = CR4_PAE;
    cpu.msrs.efer = EFER_LONG;
    cpu
}

/// Real mode at 0000:`ip` with the stack below it, interrupts off.
pub(super) fn real(ip: u16) -> CpuState {
    let mut cpu = CpuState::at_reset();
    cpu.cr0 = CR0_ET;
    cpu.segments[1].selector = 0;
    cpu.segments[1].base = 0;
    cpu.gpr = [0; 16];
    cpu.gpr[4] = u64::from(ip);
    cpu.rip = u64::from(ip);
    cpu
}

/// The GDT for [`protected`].
pub(super) fn gdt32() -> Vec<u8> {
    gdt(CODE32)
}

/// The GDT for [`long`].
pub(super) fn gdt64() -> Vec<u8> {
    gdt(CODE64)
}

fn flat(gdt: u64, code: u32, entry: u64, cr0: u64) -> CpuState {
    let mut cpu = CpuState::at_reset();
    let segment = |selector, access| Segment {
        selector,
        access,
        base: 0,
        limit: u32::MAX,
    };
    cpu.segments = [segment(DATA, DATA32); 6];
    cpu.segments[1] = segment(CODE, code);
    cpu.tr = Segment {
        limit: 0x67,
        ..segment(TASK, TASK32)
    };
    cpu.gdtr = DescriptorTable {
        base: gdt,
        limit: GDT_LEN as u16 - 1,
    };
    cpu.idtr = DescriptorTable::default();
    cpu.gpr = [0; 16];
    cpu.rip = entry;
    cpu.cr0 = cr0;
    cpu
}

fn gdt(code: u32) -> Vec<u8> {
    // SDM vol. 3, 3.4.5: limit 15:0, base 23:0, access, limit 19:16 with flags, base 31:24.
    let flat = |access: u32| u64::from(access | 0xf00) << 40 | 0xffff;
    let task = u64::from(TASK32) << 40 | 0x67;
    [0, 0, flat(code), flat(DATA32), task]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect()
}
