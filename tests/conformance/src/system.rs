//! CPUID, clock, MSRs, and the architectural state as a whole.

use engine::{ClockBase, CpuState, Segment};
use iced_x86::code_asm::*;

use crate::rig::{Rig, at, long_state, sel};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("system: CPUID", cpuid),
    ("system: the clock is a function of the position", clock),
    ("system: MSRs keep what is written", msrs),
    ("system: state round trip", round_trip),
    ("system: bad states are refused", bad_states),
    (
        "system: control registers read as they are",
        control_registers,
    ),
    ("system: SMSW, LMSW, CLTS, SGDT, SIDT", small),
];

fn cpuid(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.cpuid()?;
        a.hlt()?;
    });
    let leaf = |number: u64, index: u64| -> Result<[u64; 4], String> {
        let mut rig = Rig::new(make, 0, &body)?;
        rig.change(|s| {
            s.gpr = [!0; 16];
            (s.gpr[0], s.gpr[1]) = (number, index);
        })?;
        let g = rig.finish()?.gpr;
        Ok([g[0], g[3], g[1], g[2]])
    };
    let [max, b, c, d] = leaf(0, 0)?;
    same!(max >= 0x16, true, "highest leaf {max:#x}");
    let vendor: Vec<u8> = [b, d, c]
        .iter()
        .flat_map(|w| (*w as u32).to_le_bytes())
        .collect();
    same!(vendor, b"GenuineIntel", "vendor");
    let [_, _, c, d] = leaf(1, 0)?;
    // What Linux needs: FPU, MSR, PAE, CX8, CMOV, FXSR, SSE, SSE2.
    let need = 1 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26;
    same!(d & need, need, "features of leaf 1");
    // APIC, machine check, MTRRs; x2APIC, XSAVE, RDRAND, hypervisor.
    same!(
        d & (1 << 9 | 1 << 7 | 1 << 12 | 1 << 14),
        0,
        "hidden in EDX"
    );
    same!(
        c & (1 << 21 | 1 << 26 | 1 << 27 | 1 << 30 | 1 << 31),
        0,
        "hidden in ECX"
    );
    let [a, b, c, _] = leaf(0x15, 0)?;
    same!(c * b / a, ClockBase::TSC_HZ, "frequency of the TSC");
    same!(leaf(0x8000_0007, 0)?[3] & 0x100, 0x100, "invariant TSC");
    Ok(())
}

fn clock(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.nop()?;
        a.nop()?;
        a.rdtsc()?;
        a.mov(rbx, rax)?;
        a.nop()?;
        a.rdtsc()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| {
        s.count = 1000;
        s.gpr[2] = !0;
    })?;
    let base = ClockBase {
        at_count: 900,
        ns: 0x5_0000_0000,
        ns_per_count: rig.engine.info().ns_per_count,
    };
    rig.engine.set_clock(base);
    let s = rig.finish()?;
    same!(
        s.gpr[3] | s.gpr[2] << 32,
        base.at(1002),
        "after two instructions"
    );
    same!(s.gpr[0] | s.gpr[2] << 32, base.at(1005), "after five");
    // A written TSC goes on from there.
    let body = assemble!(64, at::CODE, |a| {
        a.mov(ecx, 0x10)?;
        a.mov(eax, 5)?;
        a.mov(edx, 0)?;
        a.wrmsr()?;
        a.rdtscp()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| s.msrs.tsc_aux = 0x77)?;
    let s = rig.finish()?;
    same!(
        (s.gpr[0], s.gpr[1]),
        (6, 0x77),
        "TSC after WRMSR, RDTSCP's RCX"
    );
    // TSC_ADJUST moves the TSC, and follows writes to it.
    let body = assemble!(64, at::CODE, |a| {
        a.mov(ecx, 0x3b)?;
        a.mov(eax, 1000)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.rdtsc()?;
        a.mov(rbx, rax)?;
        a.mov(ecx, 0x10)?;
        a.wrmsr()?;
        a.mov(ecx, 0x3b)?;
        a.rdmsr()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    let s = rig.finish()?;
    same!(s.gpr[3], 1004, "TSC after a write to TSC_ADJUST");
    same!(s.gpr[0], 1004 - 7, "TSC_ADJUST after a write to the TSC");
    // CR4.TSD.
    let body = assemble!(64, at::USER_CODE, |a| {
        a.rdtsc()?;
    });
    let mut rig = Rig::new(make, 3, &body)?;
    rig.change(|s| s.cr4 |= 4)?;
    same!(rig.fault()?.error, Some(0), "RDTSC with CR4.TSD");
    Ok(())
}

/// KVM keeps bits and page tables of its own in the processor's registers; the guest must not see
/// them, neither in 64-bit code nor in 32-bit code.
fn control_registers(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(r8, cr0)?;
        a.mov(r9, cr3)?;
        a.mov(r10, cr4)?;
        a.mov(rax, r10)?;
        a.mov(cr4, rax)?;
        a.mov(r11, cr4)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    let s = rig.finish()?;
    same!(
        [s.gpr[8], s.gpr[9], s.gpr[10], s.gpr[11]],
        [s.cr0, s.cr3, 0x6a0, 0x6a0],
        "CR0, CR3, CR4, CR4 written back"
    );
    same!(s.cr4, 0x6a0, "CR4");
    let body = assemble!(32, at::CODE, |a| {
        a.mov(eax, cr0)?;
        a.mov(ecx, cr3)?;
        a.mov(edx, cr4)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| {
        s.segments[1].selector = sel::CODE32;
        s.segments[1].access = 0xc09b;
    })?;
    let s = rig.finish()?;
    let got = [s.gpr[0], s.gpr[1], s.gpr[2]];
    same!(
        got,
        [s.cr0, s.cr3, 0x6a0],
        "CR0, CR3, CR4 in compatibility mode"
    );
    Ok(())
}

fn msrs(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.wrmsr()?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.rdmsr()?;
        a.hlt()?;
    });
    for (msr, v) in [
        (0x174u32, 0x10u64),
        (0x175, 0xffff_8000_1234_5678),
        (0x176, 0x7fff_0000_0000),
        (0x277, 0x0007_0106_0007_0406),
        (0xc000_0080, 0xd01),
        (0xc000_0081, 0x0023_0010_1234_5678),
        (0xc000_0082, 0xffff_ffff_8100_0000),
        (0xc000_0083, 0x1000),
        (0xc000_0084, 0x4_7700),
        (0xc000_0100, 0x7f12_3456_7000),
        (0xc000_0101, 0xffff_8880_0000_0000),
        (0xc000_0102, 0x1234),
        (0xc000_0103, 0x5),
    ] {
        let mut rig = Rig::new(make, 0, &body)?;
        rig.change(|s| {
            s.gpr[0] = v & 0xffff_ffff;
            s.gpr[2] = v >> 32;
            s.gpr[1] = u64::from(msr);
        })?;
        let s = rig.finish()?;
        same!(s.gpr[0] | s.gpr[2] << 32, v, "MSR {msr:#x}");
    }
    Ok(())
}

/// A state in which every field has a value of its own.
fn odd_state() -> CpuState {
    let mut s = long_state(3);
    s.count = 0x1234_5678_9abc;
    s.gpr = std::array::from_fn(|i| 0x0101_0101_0101_0101 * (i as u64 + 1));
    s.rflags = 0x24_0ed7;
    for (i, seg) in s.segments.iter_mut().enumerate() {
        if i != 1 && i != 2 {
            *seg = Segment {
                selector: 0x100 + 8 * i as u16,
                access: 0x4093 + 0x1000 * (i as u32 & 1),
                base: 0x1000 * i as u64,
                limit: 0xfff + i as u32,
            };
        }
    }
    s.cr2 = 0xdead_beef_0000;
    s.cr8 = 7;
    s.dr = [1, 2, 3, 4, 0xffff_4ff1, 0x400];
    s.msrs.star = 0x0023_0010_0000_0000;
    s.msrs.lstar = 0xffff_ffff_8100_0000;
    s.msrs.cstar = 0x11;
    s.msrs.sfmask = 0x22;
    s.msrs.kernel_gs_base = 0x33;
    s.msrs.sysenter_cs = 0x44;
    s.msrs.sysenter_esp = 0x55;
    s.msrs.sysenter_eip = 0x66;
    s.msrs.tsc_aux = 0x77;
    s.msrs.tsc_offset = 0x88;
    s.interrupt_shadow = true;
    // FXSAVE: FCW, FSW with TOP 3, FTW, FOP, FIP, FDP, MXCSR, ST and XMM registers.
    let image = &mut s.fxsave;
    image[0..8].copy_from_slice(&[0x7f, 3, 0, 0x18, 0xf8, 0, 0x34, 2]);
    image[8..24].copy_from_slice(&[9; 16]);
    image[24..28].copy_from_slice(&0x3fa1u32.to_le_bytes());
    for i in 0..8 {
        image[32 + 16 * i..42 + 16 * i].fill(0x40 + i as u8);
    }
    for i in 0..16 {
        image[160 + 16 * i..176 + 16 * i].fill(0x80 + i as u8);
    }
    s
}

fn round_trip(make: Maker) -> Result<(), String> {
    let mut rig = Rig::new(make, 0, &[])?;
    for (what, state) in [
        ("odd", odd_state()),
        ("reset", CpuState::at_reset()),
        ("halted", {
            let mut s = long_state(0);
            s.halted = true;
            s
        }),
        ("shut down", {
            let mut s = long_state(0);
            s.shutdown = true;
            s
        }),
    ] {
        rig.set(&state)?;
        let back = rig.engine.state();
        same!(back, state, "{what}");
        same!(back.hash(), state.hash(), "{what}: hash");
        same!(rig.engine.position().count, state.count, "{what}: position");
        same!(rig.engine.halted(), state.halted, "{what}: halted");
    }
    Ok(())
}

fn bad_states(make: Maker) -> Result<(), String> {
    type Tweak = fn(&mut CpuState);
    let cases: &[(&str, Tweak)] = &[
        ("CR0", |s| s.cr0 |= 1 << 40),
        ("CR4", |s| s.cr4 |= 1 << 13),
        ("EFER", |s| s.msrs.efer &= !0x400),
        ("RFLAGS", |s| s.rflags |= 1 << 40),
        ("RFLAGS bit 1", |s| s.rflags = 0),
        ("CPL", |s| s.cpl = 4),
        ("segment rights", |s| s.segments[3].access = 0xf00),
        ("LSTAR", |s| s.msrs.lstar = 1 << 50),
        ("FXSAVE length", |s| s.fxsave.truncate(500)),
        ("MXCSR", |s| s.fxsave[27] = 1),
        ("XCR0", |s| s.xcr0 = 7),
    ];
    for (what, tweak) in cases {
        let mut rig = Rig::new(make, 0, &[])?;
        let before = rig.engine.state();
        let mut bad = before.clone();
        tweak(&mut bad);
        same!(rig.engine.set_state(&bad).is_err(), true, "{what}: refused");
        same!(rig.engine.state(), before, "{what}: nothing changed");
    }
    Ok(())
}

fn small(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.smsw(rax)?;
        a.mov(ebx, 0x8)?;
        // LMSW sets TS and cannot clear PE.
        a.lmsw(bx)?;
        a.smsw(ecx)?;
        a.clts()?;
        a.smsw(dx)?;
        a.sgdt(fword_ptr(at::DATA))?;
        a.sidt(fword_ptr(at::DATA + 0x10))?;
        a.mov(esi, 0x1_0000)?;
        a.mov(cr2, rsi)?;
        a.mov(rdi, cr2)?;
        a.mov(r8, cr8)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| s.cr8 = 5)?;
    let s = rig.finish()?;
    same!(s.gpr[0], 0x8001_0033, "SMSW");
    same!(s.gpr[1], 0x8001_0039, "LMSW");
    same!(s.gpr[2] & 0xffff, 0x31, "CLTS");
    same!(rig.read_u64(at::DATA), 0x1000_0fff, "SGDT");
    same!(rig.read_u64(at::DATA + 0x10), 0x2000_0fff, "SIDT");
    same!((s.gpr[7], s.gpr[8]), (0x1_0000, 5), "CR2, CR8");
    Ok(())
}
