//! Exceptions in long mode: frames, error codes, stacks, double and triple faults, single steps.

use iced_x86::code_asm::*;

use crate::rig::{End, P, Rig, W, at, sel};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("faults: frames", frames),
    ("faults: state is as before the instruction", exact),
    ("faults: from user mode", from_user),
    ("faults: interrupt stack table", ist),
    ("faults: software interrupts", software),
    ("faults: gates", gates),
    ("faults: double faults", double),
    ("faults: triple fault", triple),
    ("faults: single step", single_step),
    ("faults: undefined and too long instructions", undefined),
    ("faults: privileged instructions", privileged),
    ("faults: instruction breakpoints", breakpoints),
    ("faults: data breakpoints", watchpoints),
    ("faults: alignment check", alignment),
];

const RF: u64 = 1 << 16;

fn frames(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(ecx, 0)?;
        a.div(rcx)?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| {
        s.gpr[4] = at::STACK - 4;
        s.rflags |= 1;
    })?;
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!(fault.vector, 0, "vector");
    same!(fault.rip, at::CODE + 5, "RIP");
    same!(fault.cs, u64::from(sel::CODE64), "CS");
    same!(fault.ss, u64::from(sel::DATA), "SS");
    same!(fault.rsp, at::STACK - 4, "RSP");
    same!(fault.rflags, RF | 3, "RFLAGS");
    // Aligned down to 16 before the frame.
    same!(s.gpr[4], at::STACK - 16 - 40, "stack in the handler");
    same!(s.rflags & RF, 0, "RF in the handler");
    if rig.counts_instructions() {
        // The frame's MOV and the handler's HLT.
        same!(s.count, 2, "retired instructions");
    }
    Ok(())
}

/// Instructions that fault late must leave nothing behind.
fn exact(make: Maker) -> Result<(), String> {
    let bad = at::TEST;
    let bodies = [
        (
            "push [mem]",
            assemble!(64, at::CODE, |a| {
                a.push(qword_ptr(rbx))?;
            }),
        ),
        (
            "pop [mem]",
            assemble!(64, at::CODE, |a| {
                a.pop(qword_ptr(rbx))?;
            }),
        ),
        (
            "xchg",
            assemble!(64, at::CODE, |a| {
                a.xchg(qword_ptr(rbx), rax)?;
            }),
        ),
        (
            "xadd",
            assemble!(64, at::CODE, |a| {
                a.xadd(qword_ptr(rbx), rax)?;
            }),
        ),
        (
            "cmpxchg",
            assemble!(64, at::CODE, |a| {
                a.cmpxchg(qword_ptr(rbx), rcx)?;
            }),
        ),
        (
            "cmpxchg16b",
            assemble!(64, at::CODE, |a| {
                a.cmpxchg16b(xmmword_ptr(rbx))?;
            }),
        ),
        (
            "call [mem]",
            assemble!(64, at::CODE, |a| {
                a.call(qword_ptr(rbx))?;
            }),
        ),
        (
            "movsq",
            assemble!(64, at::CODE, |a| {
                a.movsq()?;
            }),
        ),
        (
            "lods",
            assemble!(64, at::CODE, |a| {
                a.lodsq()?;
            }),
        ),
        (
            "adc",
            assemble!(64, at::CODE, |a| {
                a.adc(qword_ptr(rbx), rax)?;
            }),
        ),
        (
            "shl",
            assemble!(64, at::CODE, |a| {
                a.shl(qword_ptr(rbx), 3)?;
            }),
        ),
        (
            "bts",
            assemble!(64, at::CODE, |a| {
                a.bts(qword_ptr(rbx), rcx)?;
            }),
        ),
        (
            "movaps",
            assemble!(64, at::CODE, |a| {
                a.movaps(xmm1, xmmword_ptr(rbx))?;
            }),
        ),
        (
            "fxsave",
            assemble!(64, at::CODE, |a| {
                a.fxsave64(ptr(rbx))?;
            }),
        ),
        (
            "enter",
            assemble!(64, at::CODE, |a| {
                a.mov(rsp, rbx)?;
                a.enter(16, 3)?;
            }),
        ),
    ];
    for (what, body) in bodies {
        let mut rig = Rig::new(make, 0, &body)?;
        rig.set_gate(14, at::HANDLERS + 8 * 14, sel::CODE64, 0x8e01);
        rig.change(|s| {
            s.gpr = std::array::from_fn(|i| 0x1010_1010_1010 * i as u64);
            s.gpr[3] = bad;
            s.gpr[4] = at::STACK;
            s.gpr[6] = bad;
            s.gpr[7] = at::DATA;
            s.rflags |= 0x8d5;
        })?;
        if what == "enter" {
            rig.run_to(Some(1))?;
        }
        let before = rig.engine.state();
        let fault = rig.fault()?;
        let after = rig.engine.state();
        same!(fault.vector, 14, "{what}: vector");
        let mut want = before.gpr;
        want[4] = after.gpr[4];
        same!(after.gpr, want, "{what}: registers");
        same!(fault.rsp, before.gpr[4], "{what}: RSP");
        same!(fault.rip, before.rip, "{what}: RIP");
        same!(fault.rflags, before.rflags | RF, "{what}: RFLAGS");
        same!(after.fxsave, before.fxsave, "{what}: vector registers");
        // One more: the handler's HLT.
        same!(after.count, before.count + 1, "{what}: count");
    }
    Ok(())
}

fn from_user(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::USER_CODE, |a| {
        a.mov(al, byte_ptr(at::DATA))?;
    });
    let mut rig = Rig::new(make, 3, &body)?;
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!((fault.vector, fault.error), (14, Some(5)), "page fault");
    same!(fault.cs, u64::from(sel::USER64), "CS");
    same!(fault.ss, u64::from(sel::USER_DATA), "SS");
    same!(fault.rsp, at::USER_STACK, "RSP");
    same!(s.cpl, 0, "CPL in the handler");
    same!(s.segments[2].selector, 0, "SS in the handler is null");
    same!(s.segments[1].selector, sel::CODE64, "CS in the handler");
    same!(s.gpr[4], at::STACK0 - 48, "stack from the TSS");
    Ok(())
}

fn ist(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.ud2()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.set_gate(6, at::HANDLERS + 48, sel::CODE64, 0x8e01);
    let fault = rig.fault()?;
    same!(fault.vector, 6, "vector");
    same!(rig.gpr(4), at::IST1 - 40, "stack from the IST");
    same!(
        rig.engine.state().segments[2].selector,
        sel::DATA,
        "SS stays without a change of level"
    );
    Ok(())
}

fn software(make: Maker) -> Result<(), String> {
    let int = assemble!(64, at::USER_CODE, |a| {
        a.int(0x30)?;
    });
    let mut rig = Rig::new(make, 3, &int)?;
    rig.set_gate(0x30, at::HANDLERS + 8 * 0x30, sel::CODE64, 0xee00);
    let fault = rig.fault()?;
    same!(fault.vector, 0x30, "INT n with DPL 3");
    same!(fault.rip, at::USER_CODE + 2, "RIP is behind INT");
    same!(fault.rflags & RF, 0, "no RF for INT");
    same!(rig.engine.state().count, 2, "INT retires");
    let mut rig = Rig::new(make, 3, &int)?;
    let fault = rig.fault()?;
    same!(
        (fault.vector, fault.error, fault.rip),
        (13, Some(0x30 * 8 + 2), at::USER_CODE),
        "INT n with DPL 0"
    );
    same!(
        rig.engine.state().count,
        1,
        "INT that faults does not retire"
    );
    let int3 = assemble!(64, at::USER_CODE, |a| {
        a.int3()?;
    });
    let mut rig = Rig::new(make, 3, &int3)?;
    same!(rig.fault()?.error, Some(3 * 8 + 2), "INT3 with DPL 0");
    let mut rig = Rig::new(make, 3, &int3)?;
    rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
    let fault = rig.fault()?;
    same!((fault.vector, fault.rip), (3, at::USER_CODE + 1), "INT3");
    // A trap gate leaves IF alone.
    for (flags, want) in [(0xef00, 0x200), (0xee00, 0)] {
        let mut rig = Rig::new(make, 3, &int3)?;
        rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, flags);
        rig.change(|s| s.rflags |= 0x200)?;
        let fault = rig.fault()?;
        same!(fault.rflags & 0x200, 0x200, "IF in the frame");
        same!(rig.engine.state().rflags & 0x200, want, "IF in the handler");
    }
    Ok(())
}

fn gates(make: Maker) -> Result<(), String> {
    let ud = assemble!(64, at::CODE, |a| {
        a.ud2()?;
    });
    let gate = 6 * 8 + 2 + 1;
    let mut rig = Rig::new(make, 0, &ud)?;
    rig.set_gate(6, at::HANDLERS, sel::CODE64, 0x0e00);
    let fault = rig.fault()?;
    same!(
        (fault.vector, fault.error),
        (11, Some(gate)),
        "gate not present"
    );
    let mut rig = Rig::new(make, 0, &ud)?;
    rig.set_gate(6, at::HANDLERS, sel::CODE64, 0x8500);
    let fault = rig.fault()?;
    same!(
        (fault.vector, fault.error),
        (13, Some(gate)),
        "wrong gate type"
    );
    let mut rig = Rig::new(make, 0, &ud)?;
    rig.set_gate(6, at::HANDLERS, 0, 0x8e00);
    let fault = rig.fault()?;
    same!((fault.vector, fault.error), (13, Some(1)), "null selector");
    let mut rig = Rig::new(make, 0, &ud)?;
    rig.set_gate(6, at::HANDLERS, sel::CODE32, 0x8e00);
    let fault = rig.fault()?;
    same!(
        (fault.vector, fault.error),
        (13, Some(u64::from(sel::CODE32) + 1)),
        "32-bit code segment"
    );
    let mut rig = Rig::new(make, 0, &ud)?;
    rig.set_gate(6, at::HANDLERS, sel::DATA, 0x8e00);
    let fault = rig.fault()?;
    same!(
        (fault.vector, fault.error),
        (13, Some(u64::from(sel::DATA) + 1)),
        "data segment"
    );
    // Behind the limit of the IDT.
    let int = assemble!(64, at::CODE, |a| {
        a.int(0x80)?;
    });
    let mut rig = Rig::new(make, 0, &int)?;
    rig.change(|s| s.idtr.limit = 0x7ff)?;
    let fault = rig.fault()?;
    same!(
        (fault.vector, fault.error),
        (13, Some(0x402)),
        "behind the limit, no EXT bit for INT n"
    );
    Ok(())
}

fn double(make: Maker) -> Result<(), String> {
    // #PF while #PF is delivered: its stack is not mapped.
    let body = assemble!(64, at::CODE, |a| {
        a.mov(al, byte_ptr(at::TEST))?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.set_gate(8, at::HANDLERS + 64, sel::CODE64, 0x8e01);
    rig.change(|s| s.gpr[4] = at::TEST + 0x2000)?;
    let fault = rig.fault()?;
    same!((fault.vector, fault.error), (8, Some(0)), "#PF in #PF");
    same!(fault.cr2, at::TEST + 0x1ff8, "CR2 is that of the second");
    same!(fault.rip, at::CODE, "RIP");
    // #NP while #GP is delivered.
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, -1i64)?;
        a.mov(cr0, rax)?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.set_gate(13, at::HANDLERS, sel::CODE64, 0x0e00);
    same!(rig.fault()?.vector, 8, "#NP in #GP");
    // #PF while #GP is delivered is serial: contributory, then page fault.
    let mut rig = Rig::new(make, 0, &body)?;
    rig.set_gate(14, at::HANDLERS + 8 * 14, sel::CODE64, 0x8e01);
    rig.change(|s| s.gpr[4] = at::TEST + 0x2000)?;
    let fault = rig.fault()?;
    same!(
        (fault.vector, fault.error, fault.cr2),
        (14, Some(2), at::TEST + 0x1ff8),
        "#PF in #GP"
    );
    // #GP while #UD is delivered is serial: benign first.
    let body = assemble!(64, at::CODE, |a| {
        a.ud2()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.set_gate(6, at::HANDLERS, 0, 0x8e00);
    same!(rig.fault()?.vector, 13, "#GP in #UD");
    Ok(())
}

fn triple(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.nop()?;
        a.mov(al, byte_ptr(at::TEST))?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| s.idtr.limit = 0)?;
    same!(rig.run_to(None)?, End::Shutdown, "no IDT");
    let s = rig.engine.state();
    same!(s.shutdown, true, "state says shutdown");
    same!((s.count, s.rip), (1, at::CODE + 1), "position");
    same!(rig.run_to(None)?, End::Shutdown, "stays down");
    let mut copy = rig.copy()?;
    same!(copy.run_to(None)?, End::Shutdown, "restored");
    Ok(())
}

fn single_step(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.pushfq()?;
        a.or(dword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.mov(eax, 7)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!(fault.vector, 1, "vector");
    same!(fault.rip, at::CODE + 14, "RIP is behind the stepped MOV");
    same!(s.gpr[0], 7, "the instruction behind POPF is done");
    same!(s.dr[4], 0xffff_4ff0, "DR6.BS");
    same!(fault.rflags & 0x100, 0x100, "TF in the frame");
    same!(s.rflags & 0x100, 0, "TF in the handler");
    same!(s.count, 5, "count");
    Ok(())
}

fn undefined(make: Maker) -> Result<(), String> {
    let cases: &[(&str, &[u8], u8)] = &[
        ("UD2", &[0x0f, 0x0b], 6),
        ("LOCK without memory", &[0xf0, 0x01, 0xc0], 6),
        ("LOCK MOV", &[0xf0, 0x89, 0x03], 6),
        ("PUSH ES in 64-bit code", &[0x06], 6),
        ("MOV CS", &[0x8e, 0xc8], 6),
        ("MOV CR1", &[0x0f, 0x22, 0xc8], 6),
        ("XGETBV", &[0x0f, 0x01, 0xd0], 6),
        ("RDRAND", &[0x0f, 0xc7, 0xf0], 6),
        ("VMCALL", &[0x0f, 0x01, 0xc1], 6),
        ("MONITOR", &[0x0f, 0x01, 0xc8], 6),
        ("VADDPS", &[0xc5, 0xf0, 0x58, 0xc2], 6),
        ("RDPMC", &[0x0f, 0x33], 13),
        (
            "16 bytes",
            &[
                0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
                0x66, 0x90,
            ],
            13,
        ),
    ];
    for (what, bytes, vector) in cases {
        let mut rig = Rig::new(make, 0, bytes)?;
        rig.change(|s| s.gpr[3] = at::DATA)?;
        let fault = rig.fault()?;
        same!(fault.vector, *vector, "{what}");
        same!(fault.rip, at::CODE, "{what}: RIP");
    }
    let body = assemble!(64, at::CODE, |a| {
        // ENDBR64, a long NOP, PREFETCHW's space and PAUSE are hints.
        a.endbr64()?;
        a.db(&[0x0f, 0x1f, 0x84, 0x00, 0, 0, 0, 0])?;
        a.db(&[0x0f, 0x0d, 0x08])?;
        a.pause()?;
        // TZCNT's bytes are BSF where BMI1 is not offered; either gives 3 here.
        a.mov(ecx, 8)?;
        a.db(&[0xf3, 0x0f, 0xbc, 0xc1])?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| s.gpr[0] = at::DATA)?;
    same!(rig.finish()?.gpr[0], 3, "hints and TZCNT");
    Ok(())
}

fn privileged(make: Maker) -> Result<(), String> {
    let cases: &[(&str, &[u8])] = &[
        ("HLT", &[0xf4]),
        ("CLI", &[0xfa]),
        ("STI", &[0xfb]),
        ("IN", &[0xe4, 0x80]),
        ("OUT", &[0xee]),
        ("MOV CR3", &[0x0f, 0x22, 0xd8]),
        ("MOV from CR0", &[0x0f, 0x20, 0xc0]),
        ("MOV DR7", &[0x0f, 0x23, 0xf8]),
        ("LGDT", &[0x0f, 0x01, 0x13]),
        ("LIDT", &[0x0f, 0x01, 0x1b]),
        ("LLDT", &[0x0f, 0x00, 0xd0]),
        ("LTR", &[0x0f, 0x00, 0xd8]),
        ("INVLPG", &[0x0f, 0x01, 0x3b]),
        ("WBINVD", &[0x0f, 0x09]),
        ("RDMSR", &[0x0f, 0x32]),
        ("WRMSR", &[0x0f, 0x30]),
        ("CLTS", &[0x0f, 0x06]),
        ("LMSW", &[0x0f, 0x01, 0xf0]),
        ("SWAPGS", &[0x0f, 0x01, 0xf8]),
        ("SYSRET", &[0x48, 0x0f, 0x07]),
        ("SYSEXIT", &[0x0f, 0x35]),
    ];
    for (what, bytes) in cases {
        let mut rig = Rig::new(make, 3, bytes)?;
        rig.change(|s| s.gpr[3] = at::USER_DATA)?;
        let fault = rig.fault()?;
        same!((fault.vector, fault.error), (13, Some(0)), "{what}");
        same!(fault.rip, at::USER_CODE, "{what}: RIP");
    }
    // POPF drops what user mode may not change, without a fault.
    let body = assemble!(64, at::USER_CODE, |a| {
        a.push(0x3202)?;
        a.popfq()?;
        a.pushfq()?;
        a.pop(rax)?;
        a.int3()?;
    });
    let mut rig = Rig::new(make, 3, &body)?;
    rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
    rig.fault()?;
    same!(rig.gpr(0), 2, "POPF at CPL 3");
    Ok(())
}

fn breakpoints(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(eax, 1)?;
        a.mov(eax, 2)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    // The handler returns: RF keeps the breakpoint from striking again.
    let handler = assemble!(64, at::DATA, |a| {
        a.inc(rbx)?;
        a.iretq()?;
    });
    rig.write(at::DATA, &handler);
    rig.set_gate(1, at::DATA, sel::CODE64, 0x8e00);
    rig.write_u64(at::PT0 + 8 * (at::DATA >> 12), at::DATA | P | W);
    rig.change(|s| {
        s.dr[0] = at::CODE + 5;
        s.dr[5] = 0x401;
    })?;
    let s = rig.finish()?;
    same!(s.gpr[3], 1, "breakpoints taken");
    same!(s.gpr[0], 2, "the instruction was done");
    same!(s.dr[4] & 0xf, 1, "DR6.B0");
    same!(s.rflags & (1 << 16), 0, "RF is used up");
    Ok(())
}

fn watchpoints(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(at::DATA + 0x18))?;
        a.mov(dword_ptr(at::DATA + 0xe), eax)?;
        a.mov(al, byte_ptr(at::DATA + 0x10))?;
        a.nop()?;
        a.mov(qword_ptr(at::DATA + 0x18), rax)?;
        a.hlt()?;
    });
    // Writes to four bytes, and any access to one byte elsewhere.
    let regs = [at::DATA + 0x10, at::DATA + 0x1d, 0, 0];
    for (start, count, hits) in [(0u64, 1, 2), (1, 2, 1), (2, 5, 2)] {
        let mut rig = Rig::new(make, 0, &body)?;
        rig.run_to(Some(start))?;
        rig.change(|s| {
            s.dr[..4].copy_from_slice(&regs);
            s.dr[5] = 0x40a | 0xd << 16 | 3 << 20;
        })?;
        let fault = rig.fault()?;
        let s = rig.engine.state();
        same!(fault.vector, 1, "vector");
        same!(s.count, count + 1, "trapped after the instruction");
        same!(s.dr[4] & 0xf, hits, "DR6");
        same!(fault.rflags & RF, 0, "no RF for a trap");
    }
    Ok(())
}

fn alignment(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::USER_CODE, |a| {
        a.mov(rax, qword_ptr(at::USER_DATA + 8))?;
        a.mov(al, byte_ptr(at::USER_DATA + 1))?;
        a.movups(xmm0, xmmword_ptr(at::USER_DATA + 1))?;
        a.mov(dword_ptr(at::USER_DATA + 0x12), eax)?;
        a.int3()?;
    });
    for (am, ac, vector) in [(1u64, 1u64, 17), (0, 1, 3), (1, 0, 3)] {
        let mut rig = Rig::new(make, 3, &body)?;
        rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
        rig.change(|s| {
            s.cr0 |= am << 18;
            s.rflags |= ac << 18;
        })?;
        let fault = rig.fault()?;
        same!(fault.vector, vector, "AM {am}, AC {ac}");
        if vector == 17 {
            same!(fault.error, Some(0), "error code");
            if rig.counts_instructions() {
                same!(rig.engine.state().count, 4, "the store faults");
            }
        }
    }
    // Not at CPL 0.
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(at::DATA + 1))?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| {
        s.cr0 |= 1 << 18;
        s.rflags |= 1 << 18;
    })?;
    rig.finish()?;
    Ok(())
}
