//! The TLB and the cache of decoded code are invisible: random programs that edit their page tables
//! and their code, in every way and without telling the CPU, end in the same state and memory as
//! when everything derived is dropped before each instruction.
//!
//! `COHERENCE_SEEDS=1000 COHERENCE_FIRST=0 cargo test --release -p soft --test coherence` runs that
//! many programs from that seed on.

use std::sync::Arc;

use conformance::rig::{End, P, Rig, U, W, at, sel};
use engine::Engine;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use soft::SoftEngine;
use vm_memory::GuestMemoryMmap;

/// Bytes of code for each random operation.
const SLOT: u64 = 64;
const OPERATIONS: u64 = 400;
/// Frames from DATA on that page-table entries mostly lead to.
const FRAMES: u64 = 16;
/// Pages from TEST on that are used.
const PAGES: u64 = 6;
const FUNCTION: u64 = 0x800;
/// A second root and a second table behind the same directory.
const ROOT2: u64 = at::SPARE;
const TABLE2: u64 = at::SPARE + 0x1000;

fn make(memory: &Arc<GuestMemoryMmap>) -> Box<dyn Engine> {
    match SoftEngine::new(memory) {
        Ok(engine) => Box::new(engine),
        Err(e) => panic!("no engine: {e}"),
    }
}

/// A random page-table entry.
fn entry(rng: &mut StdRng) -> u64 {
    let frame = match rng.random_range(0..12) {
        0 => at::PT_TEST,
        1 => TABLE2,
        2 => at::MMIO_GPA,
        _ => at::DATA + 4096 * rng.random_range(0..FRAMES),
    };
    let mut entry = frame;
    for (bit, chance) in [(0, 0.9), (1, 0.8), (2, 0.4), (5, 0.3), (6, 0.3), (63, 0.15)] {
        if rng.random_bool(chance) {
            entry |= 1 << bit;
        }
    }
    entry
}

fn test_address(rng: &mut StdRng) -> u64 {
    let offset = match rng.random_range(0..8) {
        0 => rng.random_range(0xff9..0x1000),
        1 => FUNCTION + rng.random_range(0..6),
        _ => 8 * rng.random_range(0..8),
    };
    at::TEST + 4096 * rng.random_range(0..PAGES) + offset
}

/// Where a random entry lies.
fn entry_address(rng: &mut StdRng) -> u64 {
    let table = if rng.random_bool(0.7) {
        at::PT_TEST
    } else {
        TABLE2
    };
    table + 8 * rng.random_range(0..PAGES)
}

fn operation(rng: &mut StdRng, ip: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    // Where to go on after a page fault.
    a.mov(r14, ip + SLOT)?;
    match rng.random_range(0..18) {
        0..4 => {
            a.add(r13, qword_ptr(test_address(rng)))?;
            a.rol(r13, 7)?;
        }
        4..6 => a.mov(qword_ptr(test_address(rng)), r13)?,
        6 => a.mov(byte_ptr(test_address(rng)), r13b)?,
        7..9 => {
            a.mov(rax, entry(rng))?;
            a.mov(qword_ptr(entry_address(rng)), rax)?;
        }
        9 => {
            let at = entry_address(rng) + rng.random_range(0..2);
            a.mov(byte_ptr(at), rng.random_range(0..256))?;
        }
        10 => {
            let entries = [at::PT_TEST | P | W | U, TABLE2 | P | W, TABLE2 | P | U, 0];
            a.mov(rax, entries[rng.random_range(0..4)])?;
            a.mov(qword_ptr(at::PD + 16), rax)?;
        }
        11 => {
            a.mov(rax, [at::PML4, ROOT2][rng.random_range(0..2)])?;
            a.mov(cr3, rax)?;
        }
        12 => {
            a.mov(rax, entry(rng))?;
            a.xchg(qword_ptr(entry_address(rng)), rax)?;
            a.add(r13, rax)?;
        }
        13 => {
            let bit = [0, 1, 5, 6][rng.random_range(0..4)];
            a.lock().btc(qword_ptr(entry_address(rng)), bit)?;
        }
        14 => {
            a.mov(rdi, at::PT_TEST + 8 * rng.random_range(0..3))?;
            a.mov(ecx, 3)?;
            a.mov(rax, entry(rng))?;
            a.rep().stosq()?;
        }
        15 => {
            let bits = [1 << 20, 1 << 21, 0][rng.random_range(0..3)];
            a.mov(rax, 0x6a0u64 | bits)?;
            a.mov(cr4, rax)?;
            if rng.random_bool(0.5) {
                a.stac()?;
            } else {
                a.clac()?;
            }
        }
        16 => {
            a.mov(rbx, at::TEST + 4096 * rng.random_range(0..PAGES) + FUNCTION)?;
            a.call(rbx)?;
            a.add(r13, rax)?;
        }
        _ => {
            // Code is changed through its identity mapping.
            let frame = at::DATA + 4096 * rng.random_range(0..FRAMES);
            a.mov(byte_ptr(frame + FUNCTION + 1), rng.random_range(0..128))?;
        }
    }
    let mut code = a.assemble(ip)?;
    let mut go_on = CodeAssembler::new(64)?;
    go_on.jmp(ip + SLOT)?;
    code.extend(go_on.assemble(ip + code.len() as u64)?);
    Ok(code)
}

/// Lays out the program of a seed.
fn program(seed: u64) -> Result<Rig<'static>, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rig = Rig::new(&make, 0, &[])?;
    for i in 0..OPERATIONS {
        let ip = at::CODE + SLOT * i;
        let code = operation(&mut rng, ip).map_err(|e| e.to_string())?;
        assert!(code.len() as u64 <= SLOT);
        rig.write(ip, &code);
    }
    rig.write(at::CODE + SLOT * OPERATIONS, &[0xf4]);
    // Page fault: notes error code and address, gives up the operation.
    let handler = || -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        a.rol(r15, 5)?;
        a.pop(rax)?;
        a.xor(r15, rax)?;
        a.mov(rax, cr2)?;
        a.xor(r15, rax)?;
        a.mov(qword_ptr(rsp), r14)?;
        a.mov(rax, at::STACK)?;
        a.mov(qword_ptr(rsp + 24), rax)?;
        a.iretq()?;
        a.assemble(0x9000)
    };
    rig.write(0x9000, &handler().map_err(|e| e.to_string())?);
    rig.set_gate(14, 0x9000, sel::CODE64, 0x8e01);
    rig.write_u64(ROOT2, at::PDPT | P | W | U);
    for i in 0..FRAMES {
        let frame = at::DATA + 4096 * i;
        let words: Vec<u8> = (0..64).map(|_| rng.random()).collect();
        rig.write(frame, &words);
        // MOV EAX, imm32; RET.
        rig.write(frame + FUNCTION, &[0xb8, i as u8, 1, 0, 0, 0xc3]);
    }
    for i in 0..PAGES {
        let e = entry(&mut rng);
        rig.map(i, e);
        let e = entry(&mut rng);
        rig.write_u64(TABLE2 + 8 * i, e);
    }
    Ok(rig)
}

const LIMIT: u64 = 20_000;

/// Runs to `count` with everything derived dropped before each instruction.
fn run_plain(rig: &mut Rig, count: u64) -> Result<End, String> {
    loop {
        let state = rig.engine.state();
        if state.count >= count {
            return Ok(End::Reached);
        }
        rig.set(&state)?;
        rig.engine.memory_written(0..at::END);
        let end = rig.run_to(Some(state.count + 1))?;
        if end != End::Reached {
            return Ok(end);
        }
    }
}

/// Runs the program of a seed both ways: the number of instructions, or what differs.
fn check(seed: u64) -> Result<u64, String> {
    let mut cached = program(seed)?;
    let mut plain = program(seed)?;
    cached.run_to(Some(LIMIT))?;
    run_plain(&mut plain, LIMIT)?;
    let same = cached.engine.state() == plain.engine.state()
        && cached.memory_hash() == plain.memory_hash()
        && cached.seen == plain.seen;
    if same {
        return Ok(cached.engine.position().count);
    }
    let count = first_difference(seed)?;
    let mut before = program(seed)?;
    before.run_to(Some(count - 1))?;
    let (cached, plain) = (at_count(seed, count, false)?, at_count(seed, count, true)?);
    let rip = before.engine.position().rip;
    Err(format!(
        "instruction {count} at {rip:#x} ({:02x?}):\ncached {}\nplain  {}",
        before.read(rip.min(at::END - 16), 16),
        describe(&cached),
        describe(&plain)
    ))
}

fn describe(rig: &Rig) -> String {
    let s = rig.engine.state();
    format!(
        "rip {:x} cr2 {:x} flags {:x} gpr {:x?} memory {:x} seen {:x?}",
        s.rip,
        s.cr2,
        s.rflags,
        s.gpr,
        rig.memory_hash(),
        rig.seen.last()
    )
}

fn at_count(seed: u64, count: u64, plain: bool) -> Result<Rig<'static>, String> {
    let mut rig = program(seed)?;
    if plain {
        run_plain(&mut rig, count)?;
    } else {
        rig.run_to(Some(count))?;
    }
    Ok(rig)
}

/// The first position at which the two differ.
fn first_difference(seed: u64) -> Result<u64, String> {
    let (mut low, mut high) = (0, LIMIT);
    while low + 1 < high {
        let middle = (low + high) / 2;
        let (a, b) = (
            at_count(seed, middle, false)?,
            at_count(seed, middle, true)?,
        );
        if a.engine.state() == b.engine.state() && a.memory_hash() == b.memory_hash() {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(high)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

#[test]
fn caches_are_invisible() {
    let first = setting("COHERENCE_FIRST", 0);
    let seeds = setting("COHERENCE_SEEDS", 150);
    let mut instructions = 0;
    for seed in first..first + seeds {
        match check(seed) {
            Ok(count) => instructions += count,
            Err(what) => panic!(
                "seed {seed}: {what}\nrepeat with COHERENCE_FIRST={seed} COHERENCE_SEEDS=1 \
                 cargo test --release -p soft --test coherence"
            ),
        }
    }
    println!("{seeds} programs, {instructions} instructions");
    assert!(
        instructions > seeds * OPERATIONS,
        "the programs end too early: {instructions} instructions"
    );
}
