//! Positions of an engine that counts exits: it may be stopped at every one of them, saved, restored
//! elsewhere and gone on with, and nothing is different. The same must hold for an interrupt put in
//! there, and for a stretch that was closed by its state.
//!
//! Engines that count instructions pass as well: for them every instruction is such a position.

use std::time::Duration;

use engine::{Boundary, ClockBase, CpuState, Exit};
use iced_x86::code_asm::*;

use crate::rig::{End, Rig, at, sel};
use crate::{Cases, Maker, assemble, handlers, same};

pub const CASES: Cases = &[
    ("exits: stop at every one", everywhere),
    ("exits: save and restore at every one", restore),
    ("exits: an interrupt at every one", interrupted),
    ("exits: RDTSC and RDTSCP at CPL 0 and 3", rdtsc),
    ("exits: RDTSC in the shadow of STI", shadow),
    ("exits: CPUID, RDPMC and what is not there", instructions),
    ("exits: a stretch is closed by its state", stretch),
    ("exits: HLT, window, interrupt", halt),
    ("exits: a window behind STI and a branch", window),
    ("exits: debug registers survive", debug_registers),
    ("exits: breakpoints survive", breakpoints),
];

const IF: u64 = 0x200;

/// A guest with every kind of exit, and with code between them that has none.
fn mixed(make: Maker) -> Result<Rig, String> {
    let kernel = assemble!(64, at::CODE, |a| {
        let mut again = a.create_label();
        a.mov(edi, at::DATA as u32)?;
        a.mov(ecx, 300)?;
        a.set_label(&mut again)?;
        a.add(dword_ptr(rdi), ecx)?;
        a.movd(xmm1, ecx)?;
        a.paddd(xmm2, xmm1)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.in_(al, 0x60)?;
        a.rdtsc()?;
        a.mov(r8, rax)?;
        a.out(0x80, al)?;
        a.cpuid()?;
        a.mov(dx, 0x1f0)?;
        a.mov(edi, at::DATA as u32 + 0x100)?;
        a.mov(ecx, 5)?;
        a.rep().insw()?;
        a.mov(esi, at::DATA as u32 + 0x100)?;
        a.mov(ecx, 3)?;
        a.rep().outsb()?;
        a.mov(rbx, qword_ptr(at::MMIO + 8))?;
        a.add(dword_ptr(at::MMIO + 0x10), ebx)?;
        a.mov(ecx, 0xc000_0082u32)?;
        a.mov(eax, at::DATA as u32 + 0x4000)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.rdmsr()?;
        a.mov(r9, rax)?;
        a.mov(ecx, 0xc000_0102u32)?;
        a.mov(eax, 0x7700)?;
        a.wrmsr()?;
        a.swapgs()?;
        // A page that the handler puts in.
        a.add(qword_ptr(at::TEST + 0x18), rbx)?;
        a.mov(ecx, at::USER_CODE as u32)?;
        a.mov(r11d, 0x202)?;
        a.sysretq()?;
    });
    let user = assemble!(64, at::USER_CODE, |a| {
        a.rdtscp()?;
        a.mov(r10, rax)?;
        a.int(0x80)?;
        a.cpuid()?;
        a.movq(xmm3, rbx)?;
        a.fld1()?;
        a.rdtsc()?;
        a.syscall()?;
    });
    let mut rig = Rig::new(make, 0, &kernel)?;
    rig.write(at::USER_CODE, &user);
    handlers::serve(&mut rig)?;
    rig.change(|s| {
        s.msrs.star = 0x0033_0008 << 32;
        s.msrs.sfmask = IF;
        s.rflags |= IF;
    })?;
    set_clock(&mut rig);
    Ok(rig)
}

pub fn set_clock(rig: &mut Rig) {
    let ns_per_count = rig.engine.info().ns_per_count;
    rig.engine.set_clock(ClockBase {
        at_count: 0,
        ns: 0x7_0000_0000,
        ns_per_count,
    });
}

fn finish(rig: &mut Rig) -> Result<CpuState, String> {
    same!(rig.run_to(None)?, End::Halt, "end");
    let state = rig.engine.state();
    same!(state.rip, at::DATA + 0x4001, "ends in the system call");
    Ok(state)
}

fn everywhere(make: Maker) -> Result<(), String> {
    let mut whole = mixed(make)?;
    let end = finish(&mut whole)?;
    let mut stepped = mixed(make)?;
    for count in 1..end.count {
        same!(stepped.run_to(Some(count))?, End::Reached, "to {count}");
        let state = stepped.engine.state();
        same!(state.count, count, "position");
        let mut straight = mixed(make)?;
        straight.run_to(Some(count))?;
        same!(straight.engine.state(), state, "state at {count}");
        same!(
            straight.memory_hash(),
            stepped.memory_hash(),
            "memory at {count}"
        );
    }
    same!(finish(&mut stepped)?, end, "end, stepped");
    same!(stepped.memory_hash(), whole.memory_hash(), "memory");
    same!(stepped.seen, whole.seen, "traffic");
    Ok(())
}

fn restore(make: Maker) -> Result<(), String> {
    let mut whole = mixed(make)?;
    let end = finish(&mut whole)?;
    let mut rig = mixed(make)?;
    for count in 0..end.count {
        rig.run_to(Some(count))?;
        let state = rig.engine.state();
        let mut copy = rig.copy()?;
        set_clock(&mut copy);
        same!(copy.engine.state(), state, "state, restored at {count}");
        // Set in its own place as well: the state is what it was.
        rig.set(&state)?;
        same!(rig.engine.state(), state, "state, set again at {count}");
        let seen = rig.seen.len();
        same!(finish(&mut copy)?, end, "end, restored at {count}");
        same!(copy.memory_hash(), whole.memory_hash(), "memory at {count}");
        same!(copy.seen.as_slice(), &whole.seen[seen..], "traffic");
    }
    Ok(())
}

/// Runs on with an interrupt at `count`, if it can be taken there.
fn with_interrupt(rig: &mut Rig, count: u64, again: bool) -> Result<Option<CpuState>, String> {
    rig.run_to(Some(count))?;
    if again {
        // Out of wherever the vCPU stands, and in as a restored one.
        let state = rig.engine.state();
        rig.set(&state)?;
    }
    if !rig.engine.can_interrupt() {
        return Ok(None);
    }
    rig.engine.inject(0x20).map_err(|e| e.to_string())?;
    finish(rig).map(Some)
}

fn interrupted(make: Maker) -> Result<(), String> {
    let end = finish(&mut mixed(make)?)?;
    let mut taken = 0;
    for count in 1..end.count {
        let mut one = mixed(make)?;
        let mut other = mixed(make)?;
        let state = with_interrupt(&mut one, count, false)?;
        let again = with_interrupt(&mut other, count, true)?;
        same!(again, state, "interrupt at {count}, after a restore");
        same!(other.memory_hash(), one.memory_hash(), "memory, {count}");
        if let Some(state) = state {
            taken += 1;
            same!(state.gpr[15], end.gpr[15] + 1, "handlers run, {count}");
            same!(one.seen, other.seen, "traffic, {count}");
        }
    }
    same!(taken > 5, true, "interrupts taken: {taken}");
    Ok(())
}

fn rdtsc(make: Maker) -> Result<(), String> {
    for cpl in [0, 3] {
        let start = if cpl == 3 { at::USER_CODE } else { at::CODE };
        let body = assemble!(64, start, |a| {
            a.rdtsc()?;
            a.mov(rsi, rax)?;
            a.mov(rdi, rdx)?;
            a.db(&[0x66, 0x48, 0x0f, 0x31])?;
            a.mov(rbx, rax)?;
            a.rdtscp()?;
            a.int3()?;
        });
        let mut rig = Rig::new(make, cpl, &body)?;
        rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
        rig.change(|s| {
            s.msrs.tsc_aux = 0x55;
            s.gpr[0] = !0;
            s.gpr[2] = !0;
            s.gpr[1] = !0;
        })?;
        set_clock(&mut rig);
        let clock =
            |count| 0x7_0000_0000u64 + rig.engine.info().ns_per_count * u64::from(u32::from(count));
        let (first, second, third) = if rig.engine.info().ns_per_count == 1 {
            (clock(0u16), clock(3), clock(5))
        } else {
            (clock(0), clock(1), clock(2))
        };
        let fault = rig.fault()?;
        same!((fault.vector, fault.rip), (3, start + 19), "at the end");
        let g = rig.engine.state().gpr;
        same!(g[6] | g[7] << 32, first, "first, CPL {cpl}");
        same!(g[3], second & 0xffff_ffff, "second, CPL {cpl}");
        same!(g[0] | g[2] << 32, third, "RDTSCP, CPL {cpl}");
        same!(g[1], 0x55, "its ECX");
    }
    Ok(())
}

/// An interrupt waits behind the instruction that follows STI, also where that one is trapped.
fn shadow(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.sti()?;
        a.rdtsc()?;
        a.inc(rbx)?;
        a.cli()?;
        a.hlt()?;
    });
    let handler = assemble!(64, at::DATA, |a| {
        a.mov(r14, rbx)?;
        a.mov(r15, qword_ptr(rsp))?;
        a.iretq()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write(at::DATA, &handler);
    rig.set_gate(0x20, at::DATA, sel::CODE64, 0x8e00);
    rig.engine.request_window(true);
    same!(rig.next_exit()?, Exit::Boundary(Boundary::Window), "window");
    same!(rig.engine.state().rip, at::CODE + 3, "behind RDTSC");
    same!(
        rig.engine.state().interrupt_shadow,
        false,
        "the shadow is used up"
    );
    rig.engine.request_window(false);
    rig.engine.inject(0x20).map_err(|e| e.to_string())?;
    let s = rig.finish()?;
    same!((s.gpr[14], s.gpr[15]), (0, at::CODE + 3), "interrupted at");
    same!(s.gpr[3], 1, "gone on");
    Ok(())
}

fn instructions(make: Maker) -> Result<(), String> {
    let cases: &[(&str, u8, &[u8])] = &[
        ("RDPMC", 13, &[0x0f, 0x33]),
        ("VMMCALL", 6, &[0x0f, 0x01, 0xd9]),
        ("VMRUN", 6, &[0x0f, 0x01, 0xd8]),
        ("VMLOAD", 6, &[0x0f, 0x01, 0xda]),
        ("VMSAVE", 6, &[0x0f, 0x01, 0xdb]),
        ("STGI", 6, &[0x0f, 0x01, 0xdc]),
        ("CLGI", 6, &[0x0f, 0x01, 0xdd]),
        ("INVLPGA", 6, &[0x0f, 0x01, 0xdf]),
        ("VMCALL", 6, &[0x0f, 0x01, 0xc1]),
        ("MONITOR", 6, &[0x0f, 0x01, 0xc8]),
        ("MWAIT", 6, &[0x0f, 0x01, 0xc9]),
        ("XSETBV", 6, &[0x0f, 0x01, 0xd1]),
        ("XGETBV", 6, &[0x0f, 0x01, 0xd0]),
    ];
    for (what, vector, code) in cases {
        let mut rig = Rig::new(make, 0, code)?;
        let fault = rig.fault()?;
        same!((fault.vector, fault.rip), (*vector, at::CODE), "{what}");
        same!(
            rig.read(at::CODE, code.len()),
            code.to_vec(),
            "{what}: code"
        );
    }
    let body = assemble!(64, at::CODE, |a| {
        a.cpuid()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| s.gpr[0] = 0x8000_0001)?;
    // SVM is hidden.
    same!(rig.finish()?.gpr[1] & 4, 0, "SVM");
    let body = assemble!(64, at::CODE, |a| {
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.wrmsr()?;
        a.rdmsr()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    same!(rig.finish()?.gpr[0], 0xd01, "EFER, read, written and read");
    same!(rig.engine.state().msrs.efer, 0xd01, "EFER in the state");
    Ok(())
}

/// A guest that computes without exits is stopped somewhere, its state is made a position, and a
/// copy of it goes on to the same end.
fn stretch(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        let mut again = a.create_label();
        // With interrupts off Bochs does not look at its timer while the guest runs.
        a.sti()?;
        a.out(0x80, al)?;
        a.mov(rcx, 60_000_000u64)?;
        a.set_label(&mut again)?;
        a.add(qword_ptr(at::DATA), rcx)?;
        a.paddd(xmm0, xmm1)?;
        a.dec(rcx)?;
        a.jne(again)?;
        a.mov(rax, qword_ptr(at::DATA))?;
        a.rdtsc()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    if rig.engine.info().ns_per_count == 1 {
        // Counts instructions: is never adrift.
        return Ok(());
    }
    rig.run_to(Some(1))?;
    rig.engine
        .set_stretch_limit(Some(Duration::from_millis(20)));
    let mut closed = 0;
    let mut copy = None;
    let end = loop {
        match rig.next_exit()? {
            Exit::Adrift => {
                same!(rig.engine.position().count, 1 + closed, "count, adrift");
                let mut state = rig.engine.state();
                state.count += 1;
                closed += 1;
                rig.engine.take_dirty();
                rig.set(&state)?;
                same!(rig.engine.state(), state, "state, closed");
                if closed == 2 {
                    copy = Some(rig.copy()?);
                }
            }
            Exit::Boundary(Boundary::Halt { .. }) => break rig.engine.state(),
            other => return Err(format!("{other:?}")),
        }
    };
    let Some(mut copy) = copy else {
        return Err(format!("adrift {closed} times only"));
    };
    copy.engine.set_stretch_limit(Some(Duration::from_secs(20)));
    let mut copied = copy.finish()?;
    // Stretches closed after the copy was taken count; RDTSC sees that.
    (copied.count, copied.gpr[0]) = (end.count, end.gpr[0]);
    same!(copied, end, "state of the copy");
    same!(copy.memory_hash(), rig.memory_hash(), "memory of the copy");
    same!(copy.read_u64(at::DATA), 1_800_000_030_000_000u64, "sum");
    Ok(())
}

fn halt(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.sti()?;
        a.hlt()?;
        a.inc(rax)?;
        a.cli()?;
        a.out(0x80, al)?;
        a.sti()?;
        a.inc(rax)?;
        a.inc(rax)?;
        a.cli()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    let count = assemble!(64, at::DATA, |a| {
        a.inc(r15)?;
        a.mov(r14, rax)?;
        a.iretq()?;
    });
    rig.write(at::DATA, &count);
    rig.set_gate(0x20, at::DATA, sel::CODE64, 0x8e00);
    let run = |rig: &mut Rig, want: Boundary| -> Result<(), String> {
        same!(rig.next_exit()?, Exit::Boundary(want), "exit");
        Ok(())
    };
    let halted = |interrupts_enabled| Boundary::Halt { interrupts_enabled };
    run(&mut rig, halted(true))?;
    run(&mut rig, halted(true))?;
    same!(rig.engine.can_interrupt(), true, "in HLT");
    rig.engine.inject(0x20).map_err(|e| e.to_string())?;
    let write = Boundary::IoWrite {
        port: 0x80,
        size: 1,
        value: 1,
    };
    run(&mut rig, write)?;
    same!(rig.engine.can_interrupt(), false, "interrupts are off");
    rig.engine.request_window(true);
    run(&mut rig, Boundary::Window)?;
    same!(rig.gpr(0), 2, "behind the shadow of STI");
    rig.engine.inject(0x20).map_err(|e| e.to_string())?;
    rig.engine.request_window(false);
    run(&mut rig, halted(false))?;
    let s = rig.engine.state();
    same!((s.gpr[0], s.gpr[14], s.gpr[15]), (3, 2, 2), "handlers, sum");
    Ok(())
}

/// The window opens behind the one instruction that STI shadows, also if that is a branch, and also
/// if the host's timer stops the guest right in the shadow.
fn window(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        let mut again = a.create_label();
        let mut enable = a.create_label();
        a.set_label(&mut again)?;
        a.cli()?;
        a.out(0x80, al)?;
        a.call(enable)?;
        a.inc(rbx)?;
        a.inc(rbx)?;
        a.jmp(again)?;
        a.set_label(&mut enable)?;
        // Where an emulator looks for interrupts only between blocks, one that comes anywhere in
        // this block is seen at its end: behind STI.
        a.mov(ecx, 3)?;
        for _ in 0..200 {
            a.xor(edx, edx)?;
            a.div(rcx)?;
        }
        a.sti()?;
        a.ret()?;
    });
    const BEHIND_CALL: u64 = at::CODE + 8;
    let mut rig = Rig::new(make, 0, &body)?;
    rig.engine
        .set_stretch_limit(Some(Duration::from_micros(500)));
    let step = |rig: &mut Rig| loop {
        match rig.next_exit()? {
            Exit::Adrift => {}
            exit => return Ok::<_, String>(exit),
        }
    };
    for round in 0..300 {
        let exit = step(&mut rig)?;
        let is_write = matches!(exit, Exit::Boundary(Boundary::IoWrite { port: 0x80, .. }));
        same!((round, is_write), (round, true), "write");
        rig.engine.request_window(true);
        let exit = step(&mut rig)?;
        same!(exit, Exit::Boundary(Boundary::Window), "window");
        let opens = rig.engine.position().rip;
        same!((round, opens), (round, BEHIND_CALL), "window opens at");
        rig.engine.request_window(false);
    }
    Ok(())
}

/// DR0 and DR7 across a trapped instruction and a restore. The breakpoint is not enabled.
fn debug_registers(make: Maker) -> Result<(), String> {
    keeps_debug_registers(make, 0xd_0600)
}

/// The same with a breakpoint for writes that is enabled and does not strike.
fn breakpoints(make: Maker) -> Result<(), String> {
    keeps_debug_registers(make, 0xd_0601)
}

fn keeps_debug_registers(make: Maker, control: u32) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(eax, at::DATA as u32 + 8)?;
        a.mov(dr0, rax)?;
        a.mov(eax, control)?;
        a.mov(dr7, rax)?;
        a.rdtsc()?;
        a.mov(rbx, dr0)?;
        a.mov(rdx, dr7)?;
        a.out(0x80, al)?;
        a.mov(rsi, dr7)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    let s = rig.finish()?;
    let want = u64::from(control);
    same!(s.gpr[3], at::DATA + 8, "DR0");
    same!((s.gpr[2], s.gpr[6]), (want, want), "DR7, twice");
    same!((s.dr[0], s.dr[5]), (at::DATA + 8, want), "in the state");
    let copy = rig.copy()?;
    same!(copy.engine.state(), s, "restored");
    Ok(())
}
