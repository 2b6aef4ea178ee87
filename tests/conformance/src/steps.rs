//! Guests that single-step themselves: a #DB is due behind each instruction, also behind one that
//! exits, and also where the engine itself steps.

use engine::{Boundary, CpuState, Exit};
use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions};

use crate::exits::set_clock;
use crate::rig::{End, Rig, at, sel};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("steps: over every exit", over_exits),
    ("steps: a window behind the code of STI", window),
];

const TF: u64 = 0x100;

/// Where the handler of #DB puts the addresses that it was called from; how many is in R15.
const TRAPS: u64 = at::DATA + 0x1000;

/// Also where it is saved right behind the exit, and goes on elsewhere.
fn over_exits(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.in_(al, 0x60)?;
        a.rdtsc()?;
        a.mov(r8, rax)?;
        a.out(0x80, al)?;
        a.cpuid()?;
        a.mov(rbx, qword_ptr(at::MMIO + 8))?;
        a.mov(dword_ptr(at::MMIO + 0x10), ebx)?;
        a.add(dword_ptr(at::MMIO + 0x10), ebx)?;
        a.mov(edi, at::DATA as u32 + 0x800)?;
        a.mov(dx, 0x1f0)?;
        a.insw()?;
        a.mov(esi, at::DATA as u32 + 0x800)?;
        a.outsb()?;
        a.mov(ecx, 0xc000_0082u32)?;
        a.rdmsr()?;
        a.wrmsr()?;
        a.rdtscp()?;
        a.nop()?;
        a.hlt()?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), !(TF as i32))?;
        a.popfq()?;
        a.hlt()?;
    });
    let stepping = || {
        let mut rig = guest(make, &body)?;
        rig.change(|s| s.rflags |= TF)?;
        Ok::<_, String>(rig)
    };
    let mut whole = stepping()?;
    let end = whole.finish()?;
    same!(traps(&whole, &end), behind(&body, at::CODE), "traps at");
    same!(end.dr[4] & 0x4000, 0x4000, "DR6.BS");
    let mut rig = stepping()?;
    for count in 1..end.count {
        same!(rig.run_to(Some(count))?, End::Reached, "to {count}");
        let state = rig.engine.state();
        let mut copy = rig.copy()?;
        set_clock(&mut copy);
        same!(copy.engine.state(), state, "state, restored at {count}");
        // Set in its own place as well: the state is what it was.
        rig.set(&state)?;
        same!(rig.engine.state(), state, "state, set again at {count}");
        same!(copy.finish()?, end, "end, restored at {count}");
        same!(copy.memory_hash(), whole.memory_hash(), "memory at {count}");
    }
    same!(rig.finish()?, end, "end, set again everywhere");
    Ok(())
}

/// An engine that goes one instruction further there, because it cannot tell what the byte was, does
/// not take the guest's own step for its.
fn window(make: Maker) -> Result<(), String> {
    const STI: u8 = 0xfb;
    let body = assemble!(64, at::CODE, |a| {
        let mut enabled = a.create_label();
        a.mov(rax, rsp)?;
        a.push(i32::from(sel::DATA))?;
        a.push(rax)?;
        a.push(0x302)?;
        a.push(i32::from(sel::CODE64))?;
        a.lea(rcx, ptr(enabled))?;
        a.push(rcx)?;
        a.iretq()?;
        a.db(&[STI])?;
        a.set_label(&mut enabled)?;
        a.inc(rbx)?;
        a.inc(rbx)?;
        a.inc(rbx)?;
        a.cli()?;
        a.pushfq()?;
        a.and(dword_ptr(rsp), !(TF as i32))?;
        a.popfq()?;
        a.hlt()?;
    });
    let Some(unused) = body.iter().position(|byte| *byte == STI) else {
        return Err("the code of STI is not in the guest".to_owned());
    };
    let mut rig = guest(make, &body)?;
    let count = assemble!(64, at::DATA + 0x100, |a| {
        a.inc(r13)?;
        a.iretq()?;
    });
    rig.write(at::DATA + 0x100, &count);
    rig.set_gate(0x20, at::DATA + 0x100, sel::CODE64, 0x8e00);
    rig.engine.request_window(true);
    same!(rig.next_exit()?, Exit::Boundary(Boundary::Window), "window");
    rig.engine.request_window(false);
    rig.engine.inject(0x20).map_err(|e| e.to_string())?;
    let end = rig.finish()?;
    same!((end.gpr[13], end.gpr[3]), (1, 3), "interrupts, sum");
    let stepped = unused + 1;
    let want = behind(&body[stepped..], at::CODE + stepped as u64);
    same!(traps(&rig, &end), want, "traps at");
    Ok(())
}

/// The guest with `body` and a handler of #DB.
fn guest<'a>(make: Maker<'a>, body: &[u8]) -> Result<Rig<'a>, String> {
    let handler = assemble!(64, at::DATA, |a| {
        a.xchg(qword_ptr(rsp), r14)?;
        a.mov(qword_ptr(r15 * 8 + TRAPS), r14)?;
        a.xchg(qword_ptr(rsp), r14)?;
        a.inc(r15)?;
        a.iretq()?;
    });
    let mut rig = Rig::new(make, 0, body)?;
    rig.write(at::DATA, &handler);
    rig.set_gate(1, at::DATA, sel::CODE64, 0x8e00);
    set_clock(&mut rig);
    Ok(rig)
}

/// The addresses behind the instructions of `code`, but for the last one.
fn behind(code: &[u8], at: u64) -> Vec<u64> {
    let decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
    let mut behind: Vec<u64> = decoder.into_iter().map(|i| i.next_ip()).collect();
    behind.pop();
    behind
}

fn traps(rig: &Rig, end: &CpuState) -> Vec<u64> {
    (0..end.gpr[15].min(99))
        .map(|i| rig.read_u64(TRAPS + 8 * i))
        .collect()
}
