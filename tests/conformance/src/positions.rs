//! The position is exact: a run may be stopped after every instruction, saved, restored elsewhere and
//! gone on with, and nothing is different.

use iced_x86::code_asm::*;

use crate::rig::{End, Rig, at};
use crate::{Cases, Maker, assemble, handlers, same};

pub const CASES: Cases = &[
    ("positions: stop everywhere", everywhere),
    ("positions: stop everywhere in real mode", everywhere_real),
    ("positions: save and restore everywhere", restore),
    ("positions: not into the past", past),
];

/// A guest with a bit of everything: loops, strings, calls, stack, SSE, x87, ports, memory outside
/// RAM, page faults that the handler repairs, system calls, code that changes itself.
fn busy(make: Maker) -> Result<Rig, String> {
    let kernel = assemble!(64, at::CODE, |a| {
        let mut again = a.create_label();
        let mut patched = a.create_label();
        let mut user = a.create_label();
        a.mov(ecx, 5)?;
        a.lea(rbx, ptr(patched))?;
        a.set_label(&mut again)?;
        a.inc(byte_ptr(rbx + 1))?;
        a.set_label(&mut patched)?;
        a.add(al, 1)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.cld()?;
        a.mov(edi, at::DATA as u32)?;
        a.mov(ecx, 40)?;
        a.rep().stosb()?;
        a.mov(esi, at::DATA as u32)?;
        a.mov(edi, at::DATA as u32 + 0xff0)?;
        a.mov(ecx, 5)?;
        a.rep().movsq()?;
        a.mov(rsi, at::MMIO)?;
        a.mov(ecx, 3)?;
        a.rep().movsd()?;
        a.mov(dx, 0x1f0)?;
        a.mov(ecx, 4)?;
        a.rep().insw()?;
        a.add(dword_ptr(at::MMIO + 8), eax)?;
        a.out(dx, al)?;
        // A page that the handler puts in.
        a.add(qword_ptr(at::TEST + 0xffc), rax)?;
        a.cvtsi2sd(xmm0, rax)?;
        a.mulsd(xmm0, xmm0)?;
        a.cvttsd2si(r9, xmm0)?;
        a.fninit()?;
        a.fild(dword_ptr(at::DATA))?;
        a.fsqrt()?;
        a.fstp(qword_ptr(at::DATA + 0x800))?;
        a.rdtsc()?;
        a.mov(r10, rax)?;
        // To user mode, and back by a system call.
        a.mov(ecx, at::USER_CODE as u32)?;
        a.mov(r11d, 0x202)?;
        a.set_label(&mut user)?;
        a.sysretq()?;
    });
    let user = assemble!(64, at::USER_CODE, |a| {
        let mut f = a.create_label();
        let mut go = a.create_label();
        let mut again = a.create_label();
        a.jmp(go)?;
        a.set_label(&mut f)?;
        a.add(rbx, 3)?;
        a.ret()?;
        a.set_label(&mut go)?;
        a.mov(rsp, at::USER_STACK)?;
        a.call(f)?;
        a.call(f)?;
        a.push(rbx)?;
        a.pop(rbp)?;
        a.mov(edx, 5)?;
        a.set_label(&mut again)?;
        a.dec(edx)?;
        a.jne(again)?;
        a.int(0x80)?;
        a.syscall()?;
    });
    let mut rig = Rig::new(make, 0, &kernel)?;
    rig.write(at::USER_CODE, &user);
    handlers::serve(&mut rig)?;
    rig.change(|s| {
        s.msrs.lstar = at::DATA + 0x4000;
        s.msrs.star = 0x0033_0008 << 32;
        s.msrs.sfmask = 0x200;
    })?;
    Ok(rig)
}

/// Runs to the end, with interrupts injected at these positions.
fn finish(rig: &mut Rig, interrupts: &[u64]) -> Result<(), String> {
    for &at in interrupts {
        if at >= rig.engine.position().count {
            same!(rig.run_to(Some(at))?, End::Reached, "interrupt's position");
            rig.engine.inject(0x20).map_err(|e| e.to_string())?;
        }
    }
    same!(rig.run_to(None)?, End::Halt, "end");
    Ok(())
}

/// Where interrupts can be taken in `rig`, a few of them; each is put in, since its handler moves
/// what comes behind it.
fn interrupt_points(mut rig: Rig) -> Result<Vec<u64>, String> {
    let mut points = Vec::new();
    while rig.run_to(Some(rig.engine.position().count + 1))? == End::Reached {
        if rig.engine.can_interrupt() && points.len() < 3 {
            points.push(rig.engine.position().count);
            rig.engine.inject(0x20).map_err(|e| e.to_string())?;
        }
    }
    Ok(points)
}

fn everywhere(make: Maker) -> Result<(), String> {
    let points = interrupt_points(busy(make)?)?;
    same!(points.len(), 3, "places for interrupts");
    let mut whole = busy(make)?;
    finish(&mut whole, &points)?;
    let end = whole.engine.state();
    same!(end.gpr[15], 4, "handlers run");
    // One that stops after every instruction, and looks.
    let mut stepped = busy(make)?;
    let mut states = Vec::new();
    for count in 0..end.count {
        same!(stepped.run_to(Some(count))?, End::Reached, "step {count}");
        same!(stepped.engine.position().count, count, "position");
        if points.contains(&count) {
            stepped.engine.inject(0x20).map_err(|e| e.to_string())?;
        }
        states.push((stepped.engine.state(), stepped.memory_hash()));
    }
    same!(stepped.run_to(None)?, End::Halt, "stepped end");
    same!(stepped.engine.state(), end, "state, stepped");
    same!(
        stepped.memory_hash(),
        whole.memory_hash(),
        "memory, stepped"
    );
    same!(stepped.seen, whole.seen, "traffic, stepped");
    // Straight to each position, then to the end.
    for (count, (state, memory)) in states.iter().enumerate() {
        let count = count as u64;
        let mut rig = busy(make)?;
        for &at in points.iter().filter(|at| **at <= count) {
            rig.run_to(Some(at))?;
            rig.engine.inject(0x20).map_err(|e| e.to_string())?;
        }
        same!(rig.run_to(Some(count))?, End::Reached, "run to {count}");
        same!(&rig.engine.state(), state, "state at {count}");
        same!(&rig.memory_hash(), memory, "memory at {count}");
    }
    Ok(())
}

fn restore(make: Maker) -> Result<(), String> {
    let mut whole = busy(make)?;
    finish(&mut whole, &[])?;
    let end = whole.engine.state();
    let mut rig = busy(make)?;
    for count in 0..end.count {
        rig.run_to(Some(count))?;
        let mut copy = rig.copy()?;
        let seen = rig.seen.len();
        finish(&mut copy, &[])?;
        same!(copy.engine.state(), end, "state, restored at {count}");
        same!(
            copy.memory_hash(),
            whole.memory_hash(),
            "memory, restored at {count}"
        );
        same!(
            copy.seen.as_slice(),
            &whole.seen[seen..],
            "traffic, restored at {count}"
        );
    }
    Ok(())
}

fn everywhere_real(make: Maker) -> Result<(), String> {
    let body = assemble!(16, 0, |a| {
        let mut again = a.create_label();
        a.mov(cx, 10)?;
        a.set_label(&mut again)?;
        a.push(cx)?;
        a.mov(di, 0x9000u32)?;
        a.mov(cx, 7)?;
        a.rep().stosw()?;
        a.int(0x40)?;
        a.pop(cx)?;
        a.loop_(again)?;
        a.hlt()?;
    });
    let handler = assemble!(16, 0, |a| {
        a.add(ax, 3)?;
        a.iret()?;
    });
    let start = || -> Result<Rig, String> {
        let mut rig = Rig::new(make, 0, &body)?;
        rig.write(at::DATA, &handler);
        rig.write(0x40 * 4, &((at::DATA >> 4 << 16) as u32).to_le_bytes());
        rig.set(&crate::rig::real_state())?;
        Ok(rig)
    };
    let mut whole = start()?;
    finish(&mut whole, &[])?;
    let end = whole.engine.state();
    same!(end.gpr[0], 30, "sum");
    let mut stepped = start()?;
    for count in 0..end.count {
        stepped.run_to(Some(count))?;
        let mut rig = start()?;
        rig.run_to(Some(count))?;
        same!(rig.engine.state(), stepped.engine.state(), "at {count}");
    }
    Ok(())
}

fn past(make: Maker) -> Result<(), String> {
    let mut rig = busy(make)?;
    rig.run_to(Some(5))?;
    let refused = rig.engine.run(Some(4), engine::Entry::Resume);
    same!(refused.is_err(), true, "asked for an earlier position");
    same!(rig.run_to(Some(5))?, End::Reached, "asked for the same");
    same!(rig.engine.position().count, 5, "position");
    Ok(())
}
