//! Ports and memory outside RAM.

use iced_x86::code_asm::*;

use crate::rig::{P, Rig, Seen, U, W, at, mmio_value, port_value, sel};
use crate::{Cases, Maker, assemble, same};

pub const CASES: Cases = &[
    ("outside: ports", ports),
    ("outside: strings over ports", strings),
    ("outside: port permission", permission),
    ("outside: memory reads and writes", memory),
    ("outside: read-modify-write and stack", read_modify_write),
    ("outside: wide and unaligned accesses", wide),
    ("outside: faults come before reads", faults_first),
    ("outside: state while a read is pending", pending),
];

fn ports(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, -1i64)?;
        a.in_(al, 0x60)?;
        a.mov(rbx, rax)?;
        a.mov(edx, 0x1f0)?;
        a.in_(ax, dx)?;
        a.mov(rcx, rax)?;
        a.in_(eax, dx)?;
        a.out(0x80, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    let s = rig.finish()?;
    let v = port_value(0x1f0, 4);
    same!(
        s.gpr[3],
        !0xff | port_value(0x60, 1),
        "IN AL leaves the rest"
    );
    same!(
        s.gpr[1],
        !0xffff | port_value(0x1f0, 2),
        "IN AX leaves the rest"
    );
    same!(s.gpr[0], v, "IN EAX clears the rest");
    let out = |port, size, value| Seen::Out { port, size, value };
    same!(
        rig.seen,
        [
            Seen::In {
                port: 0x60,
                size: 1
            },
            Seen::In {
                port: 0x1f0,
                size: 2
            },
            Seen::In {
                port: 0x1f0,
                size: 4
            },
            out(0x80, 1, v as u32 & 0xff),
            out(0x1f0, 2, v as u32 & 0xffff),
            out(0x1f0, 4, v as u32),
        ],
        "traffic"
    );
    same!(s.count, 11, "count");
    Ok(())
}

fn strings(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(edx, 0x1f0)?;
        a.mov(ecx, 3)?;
        a.rep().insw()?;
        a.mov(ecx, 2)?;
        a.std()?;
        a.rep().outsd()?;
        a.rep().outsb()?;
        a.cld()?;
        a.outsb()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.write(at::DATA, &[1, 0, 0, 0, 2, 0, 0, 0]);
    rig.change(|s| {
        s.gpr[7] = at::DATA + 0x100;
        s.gpr[6] = at::DATA + 4;
    })?;
    let s = rig.finish()?;
    let out = |size, value| Seen::Out {
        port: 0x1f0,
        size,
        value,
    };
    let read = Seen::In {
        port: 0x1f0,
        size: 2,
    };
    same!(
        rig.seen,
        [read, read, read, out(4, 2), out(4, 1), out(1, 0)],
        "traffic"
    );
    let w = port_value(0x1f0, 2);
    same!(
        rig.read_u64(at::DATA + 0x100),
        w | w << 16 | w << 32,
        "read words"
    );
    same!(s.gpr[7], at::DATA + 0x106, "RDI");
    same!(s.gpr[6], at::DATA - 3, "RSI");
    same!(s.gpr[1], 0, "RCX");
    // REP with a count of 0 counts as one.
    same!(s.count, 2 + 3 + 2 + 2 + 1 + 3, "count");
    Ok(())
}

fn permission(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::USER_CODE, |a| {
        a.in_(al, 0x60)?;
        a.in_(al, 0x61)?;
    });
    let map = |rig: &mut Rig| {
        rig.write(at::TSS + 0x66, &0x80u16.to_le_bytes());
        rig.write(at::TSS + 0x80, &[0xff; 33]);
        rig.write(at::TSS + 0x80 + 12, &[0xfe]);
    };
    let mut rig = Rig::new(make, 3, &body)?;
    map(&mut rig);
    let fault = rig.fault()?;
    same!(
        (fault.vector, fault.error, fault.rip),
        (13, Some(0), at::USER_CODE + 2),
        "port 60h allowed, 61h not"
    );
    let word = assemble!(64, at::USER_CODE, |a| {
        a.in_(ax, 0x60)?;
    });
    let mut rig = Rig::new(make, 3, &word)?;
    map(&mut rig);
    same!(rig.fault()?.rip, at::USER_CODE, "a word takes both");
    let mut rig = Rig::new(make, 3, &body)?;
    map(&mut rig);
    rig.change(|s| s.tr.limit = 0x80 + 12)?;
    same!(
        rig.fault()?.rip,
        at::USER_CODE,
        "the byte behind must lie in the TSS"
    );
    let mut rig = Rig::new(make, 3, &body)?;
    rig.change(|s| s.rflags |= 0x3000)?;
    let fault = rig.fault();
    same!(rig.seen.len(), 2, "IOPL 3: {fault:?}");
    Ok(())
}

const FAR: u64 = at::MMIO + 0x2000;
const GPA: u64 = at::MMIO_GPA + 0x2000;

fn load(offset: u64, size: u8) -> Seen {
    Seen::Load {
        addr: GPA + offset,
        size,
    }
}

fn store(offset: u64, size: u8, value: u64) -> Seen {
    Seen::Store {
        addr: GPA + offset,
        size,
        value,
    }
}

fn memory(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(al, byte_ptr(FAR + 1))?;
        a.movzx(ebx, word_ptr(FAR + 2))?;
        a.mov(ecx, dword_ptr(FAR + 4))?;
        a.mov(rdx, qword_ptr(FAR + 8))?;
        a.mov(byte_ptr(FAR + 0x10), al)?;
        a.mov(word_ptr(FAR + 0x12), bx)?;
        a.mov(dword_ptr(FAR + 0x14), ecx)?;
        a.mov(qword_ptr(FAR + 0x18), rdx)?;
        a.movsq()?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| {
        s.gpr[6] = FAR + 0x20;
        s.gpr[7] = FAR + 0x28;
    })?;
    let s = rig.finish()?;
    let v = |offset, size| mmio_value(GPA + offset, size);
    same!(s.gpr[0], v(1, 1), "byte");
    same!(s.gpr[3], v(2, 2), "word");
    same!(s.gpr[1], v(4, 4), "doubleword");
    same!(s.gpr[2], v(8, 8), "quadword");
    same!(
        rig.seen,
        [
            load(1, 1),
            load(2, 2),
            load(4, 4),
            load(8, 8),
            store(0x10, 1, v(1, 1)),
            store(0x12, 2, v(2, 2)),
            store(0x14, 4, v(4, 4)),
            store(0x18, 8, v(8, 8)),
            load(0x20, 8),
            store(0x28, 8, v(0x20, 8)),
        ],
        "traffic"
    );
    same!(s.count, 10, "count");
    Ok(())
}

fn read_modify_write(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.add(dword_ptr(FAR), 5)?;
        a.push(qword_ptr(FAR + 8))?;
        a.pop(qword_ptr(FAR + 0x10))?;
        a.xchg(dword_ptr(FAR + 4), ebx)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    rig.change(|s| s.gpr[3] = 0x77)?;
    let s = rig.finish()?;
    let v = |offset, size| mmio_value(GPA + offset, size);
    same!(
        rig.seen,
        [
            load(0, 4),
            store(0, 4, (v(0, 4) + 5) & 0xffff_ffff),
            load(8, 8),
            store(0x10, 8, v(8, 8)),
            load(4, 4),
            store(4, 4, 0x77),
        ],
        "traffic"
    );
    same!(s.gpr[3], v(4, 4), "XCHG");
    same!(s.gpr[4], at::STACK, "RSP");
    same!(s.count, 5, "count");
    Ok(())
}

fn wide(make: Maker) -> Result<(), String> {
    let body = assemble!(64, at::CODE, |a| {
        a.mov(rax, qword_ptr(FAR + 3))?;
        a.movups(xmm0, xmmword_ptr(FAR + 0x10))?;
        a.movups(xmmword_ptr(at::DATA), xmm0)?;
        a.mov(qword_ptr(FAR + 0x26), rax)?;
        a.hlt()?;
    });
    let mut rig = Rig::new(make, 0, &body)?;
    let s = rig.finish()?;
    let bytes = |offset: u64, n: u64| -> Vec<u8> {
        (0..n)
            .map(|i| mmio_value(GPA + offset + i, 1) as u8)
            .collect()
    };
    same!(s.gpr[0].to_le_bytes().to_vec(), bytes(3, 8), "unaligned");
    same!(rig.read(at::DATA, 16), bytes(0x10, 16), "16 bytes");
    let v = s.gpr[0];
    same!(
        rig.seen,
        [
            load(3, 1),
            load(4, 4),
            load(8, 2),
            load(10, 1),
            load(0x10, 8),
            load(0x18, 8),
            store(0x26, 2, v & 0xffff),
            store(0x28, 4, v >> 16 & 0xffff_ffff),
            store(0x2c, 2, v >> 48),
        ],
        "traffic"
    );
    Ok(())
}

/// What will fault must not have read a device first, since that may have effects.
fn faults_first(make: Maker) -> Result<(), String> {
    let bodies = [
        (
            "INS to a read-only page",
            assemble!(64, at::CODE, |a| {
                a.insb()?;
            }),
        ),
        (
            "MOVS to a read-only page",
            assemble!(64, at::CODE, |a| {
                a.mov(rsi, FAR)?;
                a.movsb()?;
            }),
        ),
        (
            "RMW of a read-only page outside RAM",
            assemble!(64, at::CODE, |a| {
                a.add(dword_ptr(at::TEST + 0x1000), 1)?;
            }),
        ),
    ];
    for (what, body) in bodies {
        let mut rig = Rig::new(make, 0, &body)?;
        rig.map(0, at::DATA | P);
        rig.map(1, at::MMIO_GPA | P);
        rig.change(|s| s.gpr[7] = at::TEST)?;
        let fault = rig.fault()?;
        same!((fault.vector, fault.error), (14, Some(3)), "{what}");
        if what.starts_with("INS") || what.starts_with("RMW") {
            same!(rig.seen, [], "{what}");
        }
    }
    Ok(())
}

fn pending(make: Maker) -> Result<(), String> {
    use engine::{Entry, Exit, PendingRead};
    let body = assemble!(64, at::USER_CODE, |a| {
        a.nop()?;
        a.add(rax, qword_ptr(at::TEST))?;
        a.int3()?;
    });
    let mut rig = Rig::new(make, 3, &body)?;
    rig.set_gate(3, at::HANDLERS + 24, sel::CODE64, 0xee00);
    rig.map(0, at::MMIO_GPA | P | W | U);
    let exit = rig.next_exit()?;
    let read = PendingRead::Mmio {
        addr: at::MMIO_GPA,
        size: 8,
    };
    same!(exit, Exit::Pending(read), "pending");
    let p = rig.engine.position();
    same!((p.count, p.rip), (1, at::USER_CODE + 1), "position");
    same!(
        rig.engine.run(None, Entry::Resume).is_err(),
        true,
        "resuming without an answer is refused"
    );
    // The answer completes the instruction, and the run stops right behind it.
    let exit = rig.engine.run(Some(2), Entry::Answer(41));
    let exit = exit.map_err(|e| e.to_string())?;
    same!(exit, Exit::Boundary(engine::Boundary::Reached), "reached");
    same!(rig.gpr(0), 41, "sum");
    same!(rig.fault()?.vector, 3, "goes on");
    Ok(())
}
