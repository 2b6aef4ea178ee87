//! Segment loads, limits, far transfers, call gates, privilege changes, task switches.

use engine::CpuState;
use iced_x86::code_asm::*;

use crate::rig::{Rig, at, protected_state, sel};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("segments: loads in long mode", loads),
    ("segments: limits in protected mode", limits),
    ("segments: far jumps and calls in long mode", far),
    ("segments: IRET to other modes and levels", iret),
    ("segments: RETF outwards", retf),
    ("segments: call gate with parameters", call_gate),
    ("segments: interrupt with a stack switch", inner_interrupt),
    ("segments: 64-bit call gate", long_gate),
    ("segments: inspection", inspect),
    ("segments: LTR and LLDT", system_segments),
    ("segments: task switch", task),
];

/// Descriptors that cases add, from `sel::FREE` on.
fn add(rig: &mut Rig, index: u16, raw: u64) -> u16 {
    let selector = sel::FREE + 8 * index;
    rig.write_u64(at::GDT + u64::from(selector), raw);
    selector
}

fn loads(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(ds, ebx)?;
        a.hlt()?;
    });
    let cases: &[(&str, u64, u16, u8)] = &[
        ("data", 0x00cf_9200_0000_ffff, 0, 0),
        ("data, RPL 3", 0x00cf_9200_0000_ffff, 3, 13),
        ("data of DPL 3", 0x00cf_f200_0000_ffff, 3, 0),
        ("readable code", 0x00cf_9a00_0000_ffff, 0, 0),
        ("execute-only code", 0x00cf_9800_0000_ffff, 0, 13),
        ("conforming code, RPL 3", 0x00cf_9e00_0000_ffff, 3, 0),
        ("not present", 0x00cf_1200_0000_ffff, 0, 11),
        ("system", 0x0000_8900_0000_ffff, 0, 13),
    ];
    for (what, raw, rpl, vector) in cases {
        let mut rig = Rig::new(make, 0, &body)?;
        let selector = add(&mut rig, 0, *raw);
        rig.change(|s| s.gpr[3] = u64::from(selector | rpl))?;
        if *vector == 0 {
            let s = rig.finish()?;
            same!(s.segments[3].selector, selector | rpl, "{what}: selector");
            same!(
                rig.read_u64(at::GDT + u64::from(selector)) >> 40 & 1,
                1,
                "{what}: accessed bit"
            );
        } else {
            let fault = rig.fault()?;
            same!(
                (fault.vector, fault.error),
                (*vector, Some(u64::from(selector))),
                "{what}"
            );
            same!(
                rig.engine.state().segments[3].selector,
                sel::DATA,
                "{what}: old DS"
            );
        }
    }
    for (what, selector, error) in [
        ("behind the limit", 0x1000u64, 0x1000u64),
        ("without an LDT", 0x0f, 0x0c),
    ] {
        let mut rig = Rig::new(make, 0, &body)?;
        rig.change(|s| s.gpr[3] = selector)?;
        let fault = rig.fault()?;
        same!((fault.vector, fault.error), (13, Some(error)), "{what}");
    }
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| s.gpr[3] = 3)?;
    same!(rig.finish()?.segments[3].selector, 3, "null");
    let stack = assemble!(64, at::CODE, |a| {
        a.mov(ss, ebx)?;
        a.hlt()?;
    });
    for (what, selector, error) in [
        ("SS with RPL 3", sel::USER_DATA, sel::USER_DATA & !3),
        ("SS null with RPL 3", 3, 0),
        ("SS code", sel::CODE64, sel::CODE64),
    ] {
        let mut rig = Rig::new(make, 0, &stack)?;
        rig.change(|s| s.gpr[3] = u64::from(selector))?;
        let fault = rig.fault()?;
        same!(
            (fault.vector, fault.error),
            (13, Some(u64::from(error))),
            "{what}"
        );
    }
    Ok(())
}

/// Sets a 32-bit IDT whose handlers are the HLT stubs.
pub fn protected_idt(rig: &mut Rig) {
    for v in 0..64u64 {
        let stub = at::HANDLERS + 8 * v;
        let raw = stub & 0xffff | u64::from(sel::CODE32) << 16 | 0x8e00 << 32 | (stub >> 16) << 48;
        rig.write_u64(at::IDT + 8 * v, raw);
    }
}

/// Runs 32-bit code until HLT: the vector if that is in a handler, and the error code and EIP that
/// its frame holds.
pub fn protected_fault(rig: &mut Rig, error: bool) -> Result<(u64, u32, u32), String> {
    rig.run_to(None)?;
    let s = rig.engine.state();
    let vector = s.rip.wrapping_sub(at::HANDLERS + 1) / 8;
    if vector > 255 {
        return Err(format!("no exception: halted at {:#x}", s.rip));
    }
    let word = |i: u64| rig.read_u64(s.gpr[4] + 4 * i) as u32;
    Ok(if error {
        (vector, word(0), word(1))
    } else {
        (vector, 0, word(0))
    })
}

fn limits(make: Maker) -> Result<(), String> {
    let body = assemble!(32, at::CODE, |a| {
        a.mov(eax, dword_ptr(ebx).fs())?;
        a.hlt()?;
    });
    // FS: 64 KiB up to 0ffffh; expand-down from 1000h on.
    let cases: &[(&str, u64, u32, bool)] = &[
        ("last doubleword", 0x0040_9200_0000_ffff, 0xfffc, true),
        ("past the limit", 0x0040_9200_0000_ffff, 0xfffd, false),
        ("far past the limit", 0x0040_9200_0000_ffff, 0x1_0000, false),
        ("4 KiB granularity", 0x00c0_9200_0000_0001, 0x1ffc, true),
        (
            "past 4 KiB granularity",
            0x00c0_9200_0000_0001,
            0x1ffd,
            false,
        ),
        ("expand-down", 0x0040_9600_0000_0fff, 0x1000, true),
        ("below expand-down", 0x0040_9600_0000_0fff, 0xfff, false),
        ("16-bit expand-down", 0x0000_9600_0000_0fff, 0xfffc, true),
        (
            "past 16-bit expand-down",
            0x0000_9600_0000_0fff,
            0xfffd,
            false,
        ),
    ];
    for (what, raw, offset, fine) in cases {
        let mut rig = Rig::new(make, 0, &body)?;
        protected_idt(&mut rig);
        let selector = add(&mut rig, 0, *raw);
        let load = assemble!(32, at::CODE - 16, |a| {
            a.mov(eax, u32::from(selector))?;
            a.mov(fs, eax)?;
            a.nops_with_size(9)?;
        });
        rig.write(at::CODE - 16, &load);
        let mut state = protected_state();
        state.rip = at::CODE - 16;
        state.gpr[3] = u64::from(*offset);
        rig.set(&state)?;
        if *fine {
            rig.finish().map_err(|e| format!("{what}: {e}"))?;
        } else {
            same!(
                protected_fault(&mut rig, true)?,
                (13, 0, at::CODE as u32),
                "{what}"
            );
        }
    }
    // Write to read-only and to code, read of execute-only code, null.
    let write = assemble!(32, at::CODE, |a| {
        a.mov(ds, eax)?;
        a.mov(byte_ptr(0x100u32), al)?;
        a.hlt()?;
    });
    for (what, raw) in [
        ("write to read-only data", 0x00cf_9000_0000_ffffu64),
        ("write to code", 0x00cf_9a00_0000_ffff),
        ("write through null", 0),
    ] {
        let mut rig = Rig::new(make, 0, &write)?;
        protected_idt(&mut rig);
        let selector = add(&mut rig, 0, raw);
        let mut state = protected_state();
        state.gpr[0] = if raw == 0 { 0 } else { u64::from(selector) };
        rig.set(&state)?;
        same!(protected_fault(&mut rig, true)?.0, 13, "{what}");
    }
    Ok(())
}

fn far(make: Maker) -> Result<(), String> {
    // To compatibility mode and back.
    let body = assemble!(64, at::CODE, |a| {
        a.call(fword_ptr(rbx))?;
        a.mov(rcx, rax)?;
        a.hlt()?;
    });
    let inner = assemble!(32, at::DATA, |a| {
        a.mov(eax, 0x1234_5678)?;
        // INC EAX, a REX prefix in 64-bit code.
        a.inc(eax)?;
        a.retf()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write(at::DATA, &inner);
    let mut pointer = (at::DATA as u32).to_le_bytes().to_vec();
    pointer.extend(sel::CODE32.to_le_bytes());
    rig.write(at::DATA + 0x100, &pointer);
    rig.change(|s| s.gpr[3] = at::DATA + 0x100)?;
    let s = rig.finish()?;
    same!(s.gpr[1], 0x1234_5679, "through 32-bit code");
    same!(s.gpr[4], at::STACK, "RSP");
    for (what, selector, error) in [
        ("null", 0u16, 0u64),
        ("data", sel::DATA, 0x10),
        ("user code", sel::USER64, 0x40),
        ("TSS", sel::TSS, 0x48),
    ] {
        let mut rig = Rig::new(make, 0, &body)?;
        let mut pointer = (at::DATA as u32).to_le_bytes().to_vec();
        pointer.extend(selector.to_le_bytes());
        rig.write(at::DATA + 0x100, &pointer);
        rig.change(|s| s.gpr[3] = at::DATA + 0x100)?;
        let fault = rig.fault()?;
        same!((fault.vector, fault.error), (13, Some(error)), "{what}");
        same!(fault.rsp, at::STACK, "{what}: RSP");
    }
    Ok(())
}

fn iret(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.iretq()?;
    });
    let user = assemble!(64, at::USER_CODE, |a| {
        a.mov(rbx, cs)?;
        a.int3()?;
    });
    let frame = |rig: &mut Rig, words: [u64; 5]| {
        for (i, w) in words.iter().enumerate() {
            rig.write_u64(at::STACK - 0x100 + 8 * i as u64, *w);
        }
        rig.change(|s| s.gpr[4] = at::STACK - 0x100)
    };
    for (what, code) in [("64-bit", sel::USER64), ("32-bit", sel::USER32)] {
        let mut rig = Rig::new(make, 0, &body)?;
        rig.write(
            at::USER_CODE,
            if code == sel::USER64 {
                &user
            } else {
                &user[1..]
            },
        );
        rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
        let words = [
            at::USER_CODE,
            u64::from(code),
            0x3202,
            at::USER_STACK,
            u64::from(sel::USER_DATA),
        ];
        frame(&mut rig, words)?;
        rig.change(|s| {
            // Of use to level 0 only, and of use to all.
            s.segments[3].selector = sel::DATA;
            s.segments[0] = s.segments[3];
            s.segments[0].selector = sel::USER_DATA;
            s.segments[0].access |= 0x60;
        })?;
        let fault = rig.fault()?;
        let s = rig.engine.state();
        same!(fault.vector, 3, "{what}: vector");
        same!(fault.cs, u64::from(code), "{what}: CS");
        same!(fault.rsp, at::USER_STACK, "{what}: RSP");
        same!(fault.rflags, 0x3202, "{what}: RFLAGS");
        same!(s.gpr[3], u64::from(code), "{what}: CS as the code sees it");
        same!(
            s.segments[3].selector,
            0,
            "{what}: DS of level 0 is cleared"
        );
        same!(s.segments[0].selector, sel::USER_DATA, "{what}: ES stays");
    }
    let user_cs = u64::from(sel::USER64);
    let user_ss = u64::from(sel::USER_DATA);
    for (what, words, vector, error) in [
        ("null CS", [0, 0, 2, 0, 0], 13, 0),
        ("RPL is not DPL", [0, 0x0b, 2, 0, user_ss], 13, 8),
        ("SS of level 0", [0, user_cs, 2, 0, 0x10], 13, 0x10),
        ("SS null at level 3", [0, user_cs, 2, 0, 3], 13, 0),
        (
            "RIP not canonical",
            [1 << 47, user_cs, 2, 0, user_ss],
            13,
            0,
        ),
        ("NT", [0, user_cs, 2, 0, user_ss], 13, 0),
    ] {
        let mut rig = Rig::new(make, 0, &body)?;
        frame(&mut rig, words)?;
        if what == "NT" {
            rig.change(|s| s.rflags |= 0x4000)?;
        }
        let fault = rig.fault()?;
        same!(
            (fault.vector, fault.error, fault.rip),
            (vector, Some(error), at::CODE),
            "{what}"
        );
    }
    // At the same level: SS:RSP are popped all the same, a null SS is fine.
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write(at::DATA, &[0xf4]);
    frame(&mut rig, [at::DATA, 8, 0x202, 0x7777, 0])?;
    let s = rig.finish()?;
    same!(
        (s.gpr[4], s.segments[2].selector),
        (0x7777, 0),
        "same level"
    );
    Ok(())
}

fn retf(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.push(u32::from(sel::USER_DATA) as i32)?;
        a.mov(rax, at::USER_STACK - 64)?;
        a.push(rax)?;
        // 16 bytes of parameters.
        a.push(1)?;
        a.push(2)?;
        a.push(u32::from(sel::USER64) as i32)?;
        a.mov(rax, at::USER_CODE)?;
        a.push(rax)?;
        a.db(&[0x48, 0xca, 16, 0])?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write(at::USER_CODE, &[0xcc]);
    rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
    let fault = rig.fault()?;
    same!(fault.cs, u64::from(sel::USER64), "CS");
    same!(
        fault.rsp,
        at::USER_STACK - 48,
        "parameters are released there too"
    );
    Ok(())
}

/// Level 3 in 32-bit protected mode, without paging.
fn protected_user() -> CpuState {
    let mut s = protected_state();
    s.cpl = 3;
    for (i, seg) in s.segments.iter_mut().enumerate() {
        seg.selector = if i == 1 { sel::USER32 } else { sel::USER_DATA };
        seg.access |= 0x60;
    }
    s.rip = at::USER_CODE;
    s.gpr[4] = at::USER_STACK;
    s.tr.limit = 0x67;
    s
}

/// A 32-bit TSS with a stack for level 0.
fn protected_tss(rig: &mut Rig) {
    rig.write_u64(at::TSS + 4, at::STACK0 | u64::from(sel::DATA) << 32);
}

fn call_gate(make: Maker) -> Result<(), String> {
    let mut rig = Rig::new(make, 0, &[])?;
    protected_tss(&mut rig);
    protected_idt(&mut rig);
    // 32-bit call gate of DPL 3 with two parameters.
    let gate = at::DATA & 0xffff
        | u64::from(sel::CODE32) << 16
        | 2 << 32
        | 0xec00 << 32
        | (at::DATA >> 16) << 48;
    let gate = add(&mut rig, 0, gate) | 3;
    let body = assemble!(32, at::USER_CODE, |a| {
        a.push(0x11)?;
        a.push(0x22)?;
        a.db(&[0x9a, 0, 0, 0, 0, gate as u8, (gate >> 8) as u8])?;
        a.mov(ecx, cs)?;
        // Ends with #GP: level 3 may not halt.
        a.hlt()?;
    });
    let inner = assemble!(32, at::DATA, |a| {
        a.mov(eax, dword_ptr(esp + 8))?;
        a.mov(ebx, dword_ptr(esp + 12))?;
        a.mov(edx, cs)?;
        a.mov(esi, esp)?;
        a.retf_1(8)?;
    });
    rig.write(at::USER_CODE, &body);
    rig.write(at::DATA, &inner);
    rig.set(&protected_user())?;
    let fault = protected_fault(&mut rig, true)?;
    let s = rig.engine.state();
    same!(fault.0, 13, "ends with #GP");
    same!((s.gpr[0], s.gpr[3]), (0x22, 0x11), "parameters");
    same!(s.gpr[2], u64::from(sel::CODE32), "CS inside");
    same!(s.gpr[6], at::STACK0 - 24, "stack inside");
    same!(s.gpr[1], u64::from(sel::USER32), "CS afterwards");
    let outer = rig.read_u64(s.gpr[4] + 16) as u32;
    same!(u64::from(outer), at::USER_STACK, "ESP afterwards");
    Ok(())
}

fn inner_interrupt(make: Maker) -> Result<(), String> {
    let mut rig = Rig::new(make, 0, &[])?;
    protected_tss(&mut rig);
    protected_idt(&mut rig);
    rig.write(at::USER_CODE, &[0x0f, 0x0b]);
    rig.set(&protected_user())?;
    let (vector, _, eip) = protected_fault(&mut rig, false)?;
    let s = rig.engine.state();
    same!((vector, u64::from(eip)), (6, at::USER_CODE), "#UD");
    same!(s.gpr[4], at::STACK0 - 20, "stack of the TSS");
    same!(s.segments[2].selector, sel::DATA, "SS of the TSS");
    let stack = rig.read_u64(s.gpr[4] + 16) as u32;
    same!(stack, u32::from(sel::USER_DATA), "SS in the frame");
    Ok(())
}

fn long_gate(make: Maker) -> Result<(), String> {
    let mut rig = Rig::new(make, 3, &[])?;
    let low = at::DATA & 0xffff
        | u64::from(sel::CODE64) << 16
        | 0xec00 << 32
        | (at::DATA >> 16 & 0xffff) << 48;
    let gate = add(&mut rig, 0, low) | 3;
    add(&mut rig, 1, 0);
    let body = assemble!(64, at::USER_CODE, |a| {
        a.call(fword_ptr(rbx))?;
        a.mov(rcx, cs)?;
        a.int3()?;
    });
    let inner = assemble!(64, at::DATA, |a| {
        a.mov(rax, cs)?;
        a.mov(rdx, ss)?;
        a.mov(rsi, rsp)?;
        a.db(&[0x48, 0xcb])?;
    });
    rig.write(at::USER_CODE, &body);
    rig.write(at::DATA, &inner);
    let mut pointer = vec![0; 4];
    pointer.extend(gate.to_le_bytes());
    rig.write(at::USER_DATA, &pointer);
    rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
    rig.change(|s| s.gpr[3] = at::USER_DATA)?;
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!(fault.vector, 3, "returned");
    same!(s.gpr[0], u64::from(sel::CODE64), "CS inside");
    same!(s.gpr[2], 0, "SS inside is null");
    same!(s.gpr[6], at::STACK0 - 32, "stack inside");
    same!(s.gpr[1], u64::from(sel::USER64), "CS afterwards");
    Ok(())
}

fn inspect(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.lar(eax, ebx)?;
        a.setz(cl)?;
        a.lsl(edx, ebx)?;
        a.setz(ch)?;
        a.verr(bx)?;
        a.setz(r8b)?;
        a.verw(bx)?;
        a.setz(r9b)?;
        a.hlt()?;
    });
    for (what, selector, access, limit, bits) in [
        (
            "code",
            u64::from(sel::CODE64),
            0x00a0_9b00,
            0xffff_ffffu64,
            0b0111u64,
        ),
        (
            "data",
            u64::from(sel::DATA),
            0x00c0_9300,
            0xffff_ffff,
            0b1111,
        ),
        ("TSS", u64::from(sel::TSS), 0x0000_8900, 0xfff, 0b0011),
        ("null", 0, 0, 0, 0),
        ("behind the limit", 0x2000, 0, 0, 0),
    ] {
        let mut rig = Rig::new(make, 0, &body)?;
        rig.write_u64(at::GDT + 8, 0x00af_9b00_0000_ffff);
        rig.change(|s| s.gpr[3] = selector)?;
        let s = rig.finish()?;
        let got = s.gpr[1] & 1 | s.gpr[1] >> 7 & 2 | s.gpr[8] << 2 | s.gpr[9] << 3;
        same!(got, bits, "{what}: LAR, LSL, VERR, VERW");
        // Bits 16 to 19 of what LAR loads are not defined.
        same!(s.gpr[0] & 0xf0_ff00, access, "{what}: rights");
        same!(s.gpr[2], limit, "{what}: limit");
    }
    Ok(())
}

fn system_segments(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.ltr(eax)?;
        a.str(ebx)?;
        a.lldt(ecx)?;
        a.sldt(edx)?;
        a.ltr(eax)?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    // A 16-byte LDT descriptor.
    let ldt = add(&mut rig, 0, 0x0000_8200_0000_0fff | at::DATA << 16);
    add(&mut rig, 1, 0);
    rig.change(|s| {
        s.gpr[0] = u64::from(sel::TSS);
        s.gpr[1] = u64::from(ldt);
        s.tr.selector = 0;
    })?;
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!((s.gpr[3], s.gpr[2]), (0x48, u64::from(ldt)), "STR, SLDT");
    same!(s.tr.base, at::TSS, "TR base");
    same!(s.ldtr.base, at::DATA, "LDTR base");
    same!(
        rig.read_u64(at::GDT + 0x48) >> 40 & 0xf,
        0xb,
        "the TSS is busy"
    );
    same!(
        (fault.vector, fault.error),
        (13, Some(0x48)),
        "a busy TSS is refused"
    );
    Ok(())
}

/// A call to a TSS and the return through its link, in protected mode.
fn task(make: Maker) -> Result<(), String> {
    let mut rig = Rig::new(make, 0, &[])?;
    protected_idt(&mut rig);
    let second = at::SPARE;
    let tss = add(&mut rig, 0, 0x0000_8900_0000_0067 | second << 16);
    let body = assemble!(32, at::CODE, |a| {
        a.mov(ecx, 5)?;
        a.db(&[0x9a, 0, 0, 0, 0, tss as u8, (tss >> 8) as u8])?;
        a.inc(ecx)?;
        a.hlt()?;
    });
    let other = assemble!(32, at::DATA, |a| {
        a.mov(dword_ptr(at::DATA as u32 + 0x800), ecx)?;
        a.pushfd()?;
        a.pop(edx)?;
        a.mov(dword_ptr(at::DATA as u32 + 0x804), edx)?;
        a.iretd()?;
    });
    rig.write(at::CODE, &body);
    rig.write(at::DATA, &other);
    let put = |rig: &mut Rig, offset: u64, v: u32| rig.write(second + offset, &v.to_le_bytes());
    put(&mut rig, 0x20, at::DATA as u32);
    put(&mut rig, 0x24, 2);
    put(&mut rig, 0x2c, 77);
    put(&mut rig, 0x38, at::STACK0 as u32);
    for i in 0..6 {
        put(&mut rig, 0x48 + 4 * i, u32::from(sel::DATA));
    }
    put(&mut rig, 0x4c, u32::from(sel::CODE32));
    rig.set(&protected_state())?;
    rig.change(|s| s.tr.limit = 0x67)?;
    rig.write_u64(at::GDT + 0x48, 0x0000_8b00_3000_0067);
    let s = rig.finish()?;
    same!(s.gpr[1], 6, "ECX of the first task");
    same!(s.tr.selector, sel::TSS, "TR");
    same!(s.cr0 & 8, 8, "CR0.TS");
    let seen = rig.read_u64(at::DATA + 0x800);
    same!(seen as u32, 77, "ECX of the second task");
    same!(seen >> 32 & 0x4000, 0x4000, "NT in the second task");
    same!(s.rflags & 0x4000, 0, "NT in the first task");
    same!(
        rig.read_u64(at::GDT + u64::from(tss)) >> 40 & 2,
        0,
        "the second task is not busy"
    );
    Ok(())
}
