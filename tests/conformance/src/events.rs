//! External interrupts, windows, shadows, HLT.

use iced_x86::code_asm::*;

use engine::{Boundary, Exit};

use crate::rig::{Rig, Seen, at, sel};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("events: an interrupt's frame", frame),
    ("events: HLT and wake", wake),
    ("events: window", window),
    ("events: STI shadow", sti_shadow),
    ("events: MOV SS shadow", ss_shadow),
    ("events: interrupts between REP iterations", rep),
    ("events: from user mode", from_user),
    ("events: in real mode", real),
];

const IF: u64 = 0x200;

/// A handler that counts in R15 and returns.
fn counting(rig: &mut Rig, vector: u64) -> Result<(), String> {
    let body = assemble!(64, at::DATA, |a| {
        a.inc(r15)?;
        a.iretq()?;
    });
    rig.write(at::DATA, &body);
    rig.set_gate(vector, at::DATA, sel::CODE64, 0x8e00);
    Ok(())
}

fn frame(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.nop()?;
        a.nop()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| s.rflags |= IF)?;
    rig.run_to(Some(1))?;
    same!(rig.engine.can_interrupt(), true, "can be interrupted");
    rig.engine.inject(0x21).map_err(|e| e.to_string())?;
    same!(rig.engine.position().count, 1, "delivery does not count");
    same!(
        rig.engine.can_interrupt(),
        false,
        "IF is off in the handler"
    );
    let fault = rig.fault()?;
    same!((fault.vector, fault.error), (0x21, None), "vector");
    same!(fault.rip, at::CODE + 1, "RIP");
    same!(fault.rflags, IF | 2, "RFLAGS");
    Ok(())
}

fn wake(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.sti()?;
        a.hlt()?;
        a.inc(rax)?;
        a.cli()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    counting(&mut rig, 0x20)?;
    let halt = |on| {
        Exit::Boundary(Boundary::Halt {
            interrupts_enabled: on,
        })
    };
    same!(rig.next_exit()?, halt(true), "HLT");
    same!(rig.engine.position().count, 2, "HLT has retired");
    same!(rig.engine.position().rip, at::CODE + 2, "RIP is behind HLT");
    same!(rig.engine.halted(), true, "halted");
    same!(rig.next_exit()?, halt(true), "stays halted");
    same!(rig.engine.can_interrupt(), true, "can be interrupted");
    rig.engine.inject(0x20).map_err(|e| e.to_string())?;
    same!(rig.engine.halted(), false, "woken");
    same!(rig.next_exit()?, halt(false), "HLT with interrupts off");
    let s = rig.engine.state();
    same!((s.gpr[15], s.gpr[0]), (1, 1), "handler, then on");
    same!(s.count, 7, "count");
    Ok(())
}

fn window(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.nop()?;
        a.sti()?;
        a.inc(rax)?;
        a.inc(rax)?;
        a.cli()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.engine.request_window(true);
    same!(rig.next_exit()?, Exit::Boundary(Boundary::Window), "window");
    let s = rig.engine.state();
    same!((s.count, s.gpr[0]), (3, 1), "behind the shadow of STI");
    rig.engine.request_window(false);
    let s = rig.finish()?;
    same!(s.gpr[0], 2, "goes on");
    same!(
        rig.seen.contains(&Seen::Window),
        false,
        "no window when off"
    );
    Ok(())
}

fn sti_shadow(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.sti()?;
        a.nop()?;
        // The second STI in a row finds IF set and shadows nothing.
        a.sti()?;
        a.cli()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    let mut can = Vec::new();
    let mut shadow = Vec::new();
    for at in 0..=4 {
        rig.run_to(Some(at))?;
        can.push(rig.engine.can_interrupt());
        shadow.push(rig.engine.state().interrupt_shadow);
    }
    same!(can, [false, false, true, true, false], "can be interrupted");
    same!(shadow, [false, true, false, false, false], "shadow");
    // The shadow survives save and restore.
    let mut rig = Rig::new(make, 0, &body)?;
    rig.run_to(Some(1))?;
    let mut copy = rig.copy()?;
    same!(copy.engine.can_interrupt(), false, "shadow restored");
    copy.run_to(Some(2))?;
    same!(copy.engine.can_interrupt(), true, "and used up");
    Ok(())
}

fn ss_shadow(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(eax, u32::from(sel::DATA))?;
        a.mov(ss, eax)?;
        a.nop()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| s.rflags |= IF)?;
    let mut can = Vec::new();
    for at in 0..=3 {
        rig.run_to(Some(at))?;
        can.push(rig.engine.can_interrupt());
    }
    same!(can, [true, true, false, true], "can be interrupted");
    Ok(())
}

fn rep(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.rep().movsb()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    counting(&mut rig, 0x20)?;
    let text: Vec<u8> = (0..100).collect();
    rig.write(at::DATA + 0x1000, &text);
    rig.change(|s| {
        s.rflags |= IF;
        s.gpr[1] = 100;
        s.gpr[6] = at::DATA + 0x1000;
        s.gpr[7] = at::DATA + 0x2000;
    })?;
    for i in 1..10 {
        // Each handler retires two instructions.
        rig.run_to(Some(12 * i - 2))?;
        let s = rig.engine.state();
        same!(s.rip, at::CODE, "RIP is at the string instruction");
        same!(s.gpr[1], 100 - 10 * i, "RCX");
        rig.engine.inject(0x20).map_err(|e| e.to_string())?;
    }
    let s = rig.finish()?;
    same!(s.gpr[15], 9, "handlers run");
    same!(s.count, 100 + 18 + 1, "each iteration counts");
    same!(rig.read(at::DATA + 0x2000, 100), text, "copied");
    Ok(())
}

fn from_user(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::USER_CODE, |a| {
        a.nop()?;
        a.inc(rax)?;
        a.int3()?;
    });
    let mut rig = Rig::new(make, 3, &body)?;
    counting(&mut rig, 0x20)?;
    rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
    rig.change(|s| {
        s.rflags |= IF;
        s.segments[4].base = 0x1234;
    })?;
    rig.run_to(Some(1))?;
    rig.engine.inject(0x20).map_err(|e| e.to_string())?;
    same!(rig.engine.state().cpl, 0, "handler at CPL 0");
    same!(rig.gpr(4), at::STACK0 - 40, "frame on the stack of the TSS");
    let fault = rig.fault()?;
    let s = rig.engine.state();
    same!((s.gpr[15], s.gpr[0]), (1, 1), "handler, then on");
    same!(fault.cs, u64::from(sel::USER64), "back at CPL 3");
    same!(fault.rsp, at::USER_STACK, "stack");
    same!(s.segments[4].base, 0x1234, "FS base survives");
    Ok(())
}

fn real(make: Maker) -> Result<(), String> {
    let body = assemble!(16, 0, |a| {
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.hlt()?;
    });
    let handler = assemble!(16, 0, |a| {
        a.inc(ax)?;
        a.iret()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write(at::DATA, &handler);
    // Vector 8 at DATA:0000.
    rig.write(8 * 4, &((at::DATA >> 4 << 16) as u32).to_le_bytes());
    rig.set(&crate::rig::real_state())?;
    rig.run_to(Some(2))?;
    rig.engine.inject(8).map_err(|e| e.to_string())?;
    let s = rig.engine.state();
    same!(s.rflags & IF, 0, "IF in the handler");
    same!(s.segments[1].base, at::DATA, "CS base");
    same!(s.gpr[4], at::STACK - 6, "stack");
    same!(
        rig.read(at::STACK - 6, 6),
        [2, 0, 0, 0x20, 2, 2],
        "IP, CS, FLAGS"
    );
    let s = rig.finish()?;
    same!((s.gpr[0], s.gpr[4]), (1, at::STACK), "returned");
    same!(s.segments[1].base, at::CODE, "CS base back");
    Ok(())
}
