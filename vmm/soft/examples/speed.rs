//! How fast the software CPU runs: small loops of different kinds, in millions of guest instructions
//! a second.
//!
//! `cargo run --release -p soft --example speed [-- NAME [MILLIONS]]`

use std::sync::Arc;
use std::time::Instant;

use engine::{Boundary, CpuState, Engine, Entry, Exit, Segment};
use iced_x86::code_asm::*;
use soft::SoftEngine;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STACK: u64 = 0x80_0000;
const MEMORY: usize = 64 << 20;

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Bitwise CRC-32 of a 4 KiB buffer.
fn crc(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut byte, mut bit, mut even) = labels4(a);
    a.set_label(&mut again)?;
    a.mov(rsi, DATA)?;
    a.mov(ecx, 4096)?;
    a.mov(eax, -1)?;
    a.set_label(&mut byte)?;
    a.movzx(edx, byte_ptr(rsi))?;
    a.xor(eax, edx)?;
    a.mov(edi, 8)?;
    a.set_label(&mut bit)?;
    a.shr(eax, 1)?;
    a.jnc(even)?;
    a.xor(eax, 0xedb8_8320u32 as i32)?;
    a.set_label(&mut even)?;
    a.dec(edi)?;
    a.jnz(bit)?;
    a.inc(rsi)?;
    a.dec(ecx)?;
    a.jnz(byte)?;
    a.mov(dword_ptr(DATA), eax)?;
    a.jmp(again)
}

/// Recursive Fibonacci numbers: calls, returns, the stack.
fn fib(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut f, mut small, _) = labels4(a);
    a.set_label(&mut again)?;
    a.mov(edi, 20)?;
    a.call(f)?;
    a.jmp(again)?;
    a.set_label(&mut f)?;
    a.cmp(edi, 2)?;
    a.jb(small)?;
    a.push(rbx)?;
    a.push(rbp)?;
    a.mov(ebx, edi)?;
    a.lea(edi, ptr(rbx - 1))?;
    a.call(f)?;
    a.mov(ebp, eax)?;
    a.lea(edi, ptr(rbx - 2))?;
    a.call(f)?;
    a.add(eax, ebp)?;
    a.pop(rbp)?;
    a.pop(rbx)?;
    a.ret()?;
    a.set_label(&mut small)?;
    a.mov(eax, edi)?;
    a.ret()
}

/// Insertion sort of 256 pseudo-random words.
fn sort(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut fill, mut outer, mut inner) = labels4(a);
    let mut place = a.create_label();
    a.set_label(&mut again)?;
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.imul_3(edx, edx, 1_103_515_245)?;
    a.add(edx, 12345)?;
    a.mov(dword_ptr(rcx * 4 + DATA), edx)?;
    a.inc(ecx)?;
    a.cmp(ecx, 256)?;
    a.jne(fill)?;
    a.mov(ecx, 1)?;
    a.set_label(&mut outer)?;
    a.mov(eax, dword_ptr(rcx * 4 + DATA))?;
    a.mov(rbx, rcx)?;
    a.set_label(&mut inner)?;
    a.mov(esi, dword_ptr(rbx * 4 + (DATA - 4)))?;
    a.cmp(esi, eax)?;
    a.jle(place)?;
    a.mov(dword_ptr(rbx * 4 + DATA), esi)?;
    a.dec(rbx)?;
    a.jnz(inner)?;
    a.set_label(&mut place)?;
    a.mov(dword_ptr(rbx * 4 + DATA), eax)?;
    a.inc(rcx)?;
    a.cmp(rcx, 256)?;
    a.jne(outer)?;
    a.jmp(again)
}

/// A walk through a linked list spread over 8 MiB.
fn chase(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut fill, mut walk, _, _) = labels4(a);
    a.xor(ecx, ecx)?;
    a.set_label(&mut fill)?;
    a.imul_3(rax, rcx, 64)?;
    a.imul_3(rdx, rcx, 64 * 37)?;
    a.add(rdx, 64 * 37)?;
    a.and(rdx, 0x7f_ffff)?;
    a.imul_3(rax, rcx, 64 * 37)?;
    a.and(rax, 0x7f_ffff)?;
    a.add(rdx, 0x100_0000)?;
    a.mov(qword_ptr(rax + 0x100_0000), rdx)?;
    a.inc(rcx)?;
    a.cmp(rcx, 0x2_0000)?;
    a.jne(fill)?;
    a.mov(rax, 0x100_0000u64)?;
    a.set_label(&mut walk)?;
    for _ in 0..8 {
        a.mov(rax, qword_ptr(rax))?;
        a.add(rbx, rax)?;
    }
    a.jmp(walk)
}

/// Copies by words, then by REP MOVS (whose iterations count).
fn copy(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut words, _, _) = labels4(a);
    a.set_label(&mut again)?;
    a.mov(rsi, DATA)?;
    a.mov(rdi, DATA + 0x1_0000)?;
    a.mov(ecx, 512)?;
    a.set_label(&mut words)?;
    a.mov(rax, qword_ptr(rsi))?;
    a.mov(qword_ptr(rdi), rax)?;
    a.add(rsi, 8)?;
    a.add(rdi, 8)?;
    a.sub(ecx, 1)?;
    a.jne(words)?;
    a.mov(ecx, 64)?;
    a.rep().movsq()?;
    a.jmp(again)
}

/// A mix as of compiled code: flags, byte loads, conditional moves, calls through a table.
fn mixed(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut f, mut skip, mut tail) = labels4(a);
    a.set_label(&mut again)?;
    a.mov(rdi, DATA)?;
    a.mov(ecx, 1000)?;
    let mut next = a.create_label();
    a.set_label(&mut next)?;
    a.lea(rax, ptr(f))?;
    a.call(rax)?;
    a.dec(ecx)?;
    a.jnz(next)?;
    a.jmp(again)?;
    a.set_label(&mut f)?;
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.movzx(eax, byte_ptr(rdi + rcx))?;
    a.mov(edx, eax)?;
    a.and(edx, 7)?;
    a.cmp(edx, 3)?;
    a.cmova(eax, edx)?;
    a.test(al, 1)?;
    a.jz(skip)?;
    a.add(dword_ptr(rdi + 64), 5)?;
    a.set_label(&mut skip)?;
    a.mov(qword_ptr(rbp - 16), rax)?;
    a.mov(r8, qword_ptr(rbp - 16))?;
    a.shl(r8, 3)?;
    a.xor(byte_ptr(rdi + rcx), 0x5a)?;
    a.cmp(r8, 100)?;
    a.jl(tail)?;
    a.sub(r8, 1)?;
    a.set_label(&mut tail)?;
    a.setne(al)?;
    a.pop(rbp)?;
    a.ret()
}

/// Doubles: a dot product.
fn doubles(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut next, _, _) = labels4(a);
    a.set_label(&mut again)?;
    a.pxor(xmm0, xmm0)?;
    a.mov(rsi, DATA)?;
    a.mov(ecx, 1000)?;
    a.set_label(&mut next)?;
    a.movsd_2(xmm1, qword_ptr(rsi))?;
    a.mulsd(xmm1, qword_ptr(rsi + 8))?;
    a.addsd(xmm0, xmm1)?;
    a.add(rsi, 8)?;
    a.dec(ecx)?;
    a.jnz(next)?;
    a.jmp(again)
}

fn labels4(a: &mut CodeAssembler) -> (CodeLabel, CodeLabel, CodeLabel, CodeLabel) {
    (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    )
}

fn engine(program: Program) -> Result<SoftEngine, Box<dyn std::error::Error>> {
    let memory: Arc<GuestMemoryMmap<()>> =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?);
    let mut a = CodeAssembler::new(64)?;
    program(&mut a)?;
    memory.write_slice(&a.assemble(CODE)?, GuestAddress(CODE))?;
    // Identity mapping with 2 MiB pages: PML4 at 1000h, PDPT at 2000h, PD at 3000h.
    memory.write_obj(0x2003u64, GuestAddress(0x1000))?;
    memory.write_obj(0x3003u64, GuestAddress(0x2000))?;
    for i in 0..32u64 {
        memory.write_obj(i << 21 | 0x83, GuestAddress(0x3000 + i * 8))?;
    }
    let mut engine = SoftEngine::new(&memory)?;
    let flat = |selector, access| Segment {
        selector,
        access,
        base: 0,
        limit: u32::MAX,
    };
    let mut state = CpuState::at_reset();
    state.segments = [flat(0x18, 0xc093); 6];
    state.segments[1] = flat(0x10, 0xa09b);
    state.cr0 = 0x8000_0033;
    state.cr3 = 0x1000;
    state.cr4 = 0x620;
    state.msrs.efer = 0x500;
    state.rip = CODE;
    state.gpr = [0; 16];
    state.gpr[4] = STACK;
    engine.set_state(&state)?;
    Ok(engine)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let programs: [(&str, Program); 7] = [
        ("crc", crc),
        ("fib", fib),
        ("sort", sort),
        ("chase", chase),
        ("copy", copy),
        ("mixed", mixed),
        ("doubles", doubles),
    ];
    let only = std::env::args().nth(1);
    let millions: u64 = match std::env::args().nth(2) {
        Some(n) => n.parse()?,
        None => 100,
    };
    for (name, program) in programs {
        if only.as_deref().is_some_and(|o| o != name && o != "all") {
            continue;
        }
        let mut engine = engine(program)?;
        // The best of ten stretches: the machine may be busy with other things.
        let stretch = millions * 100_000;
        let mut best = f64::INFINITY;
        for n in 1..=10 {
            let start = Instant::now();
            let exit = engine.run(Some(n * stretch), Entry::Resume)?;
            best = best.min(start.elapsed().as_secs_f64());
            if exit != Exit::Boundary(Boundary::Reached) {
                return Err(
                    format!("{name} stopped with {exit:?} at {:?}", engine.position()).into(),
                );
            }
        }
        let mips = stretch as f64 / best / 1e6;
        println!("{name:8} {mips:7.1} MIPS   at {:?}", engine.position());
    }
    Ok(())
}
