//! Guests that do anything: random code, tables and registers in every mode. Nothing they do may
//! panic; two runs are equal; and the state that comes out is one that goes in again.
//!
//! `HOSTILE_SEEDS=10000 HOSTILE_FIRST=0 cargo test --release -p soft --test hostile` runs that many
//! guests from that seed on.

use std::sync::Arc;

use conformance::rig::{Rig, at, long_state, protected_state, real_state};
use engine::{Boundary, CpuState, Engine, Entry, Exit};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use soft::SoftEngine;
use vm_memory::GuestMemoryMmap;

const INSTRUCTIONS: u64 = 3000;

fn make(memory: &Arc<GuestMemoryMmap>) -> Box<dyn Engine> {
    match SoftEngine::new(memory) {
        Ok(engine) => Box::new(engine),
        Err(e) => panic!("no engine: {e}"),
    }
}

/// Beginnings of system instructions; random bytes follow.
const SYSTEM: &[&[u8]] = &[
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x05],
    &[0x0f, 0x07],
    &[0x48, 0x0f, 0x07],
    &[0x0f, 0x20],
    &[0x0f, 0x21],
    &[0x0f, 0x22],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x48, 0x0f, 0x35],
    &[0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x8e],
    &[0x8c],
    &[0xea],
    &[0x9a],
    &[0xff],
    &[0x48, 0xff],
    &[0xca],
    &[0xcb],
    &[0x48, 0xcb],
    &[0xcc],
    &[0xcd],
    &[0xcf],
    &[0x48, 0xcf],
    &[0x9c],
    &[0x9d],
    &[0xe4],
    &[0xee],
    &[0xf3, 0x6c],
    &[0xf3, 0x6f],
    &[0xf3, 0xa4],
    &[0xf3, 0x48, 0xab],
    &[0xfb],
    &[0xc5],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0x1f],
    &[0x07],
    &[0xc8],
    &[0xd9],
    &[0xdd],
];

fn random_code(rng: &mut StdRng, len: usize) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < len {
        if rng.random_bool(0.5) {
            code.extend(SYSTEM[rng.random_range(0..SYSTEM.len())]);
            code.push(rng.random());
        } else {
            for _ in 0..rng.random_range(1..6) {
                code.push(rng.random());
            }
        }
    }
    code.truncate(len);
    code
}

/// A descriptor that is often plausible.
fn descriptor(rng: &mut StdRng) -> u64 {
    let base = match rng.random_range(0..4) {
        0 => 0,
        1 => at::TSS,
        2 => at::DATA,
        _ => rng.random_range(0..at::END),
    };
    let limit: u64 = [0xffff, 0xf_ffff, 0x67, 0x2b, 0xfff][rng.random_range(0..5)];
    let access: u64 = if rng.random_bool(0.7) {
        0x80 | rng.random_range(0u64..0x80)
    } else {
        rng.random_range(0..0x100)
    };
    let flags: u64 = rng.random_range(0..16);
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16) << 48
        | flags << 52
        | (base >> 24) << 56
}

fn random_word(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..8) {
        0 => rng.random(),
        1 => rng.random_range(0..0x100),
        2 => at::DATA + rng.random_range(0..0x1000),
        3 => at::TEST + rng.random_range(0..0x8000),
        4 => {
            [at::MMIO, at::MMIO_GPA, 0x7fff_ffff_f000][rng.random_range(0..3)]
                + rng.random_range(0..0x1000)
        }
        5 => 0xc000_0080 + rng.random_range(0..8),
        6 => 0x7fff_ffff_fff0 + rng.random_range(0..32),
        _ => 8 * rng.random_range(0..16) + rng.random_range(0..4),
    }
}

fn random_state(rng: &mut StdRng) -> CpuState {
    let mut s = match rng.random_range(0..5) {
        0 => long_state(0),
        1 => long_state(3),
        2 => protected_state(),
        3 => real_state(),
        _ => {
            // Compatibility mode.
            let mut s = long_state(0);
            s.segments[1].access = 0xc09b;
            s
        }
    };
    for (i, g) in s.gpr.iter_mut().enumerate() {
        if i != 4 || rng.random_bool(0.1) {
            *g = random_word(rng);
        }
    }
    s.rflags = s.rflags | rng.random_range(0..0x40_0000) & 0x24_4fd5 | 2;
    if rng.random_bool(0.3) {
        s.rflags &= !0x4100;
    }
    s.cr4 |= [0, 1 << 20, 1 << 21, 1 << 16, 0x10][rng.random_range(0..5)];
    s.msrs.star = rng.random();
    s.msrs.lstar = at::CODE + rng.random_range(0..0x1000);
    s.msrs.sysenter_cs = rng.random_range(0..0x80);
    s.msrs.sysenter_eip = at::CODE;
    s.msrs.sysenter_esp = at::STACK;
    if rng.random_bool(0.1) {
        s.idtr.base = random_word(rng) & 0x7fff_ffff;
    }
    if rng.random_bool(0.1) {
        s.gdtr.base = random_word(rng) & 0x7fff_ffff;
    }
    if rng.random_bool(0.1) {
        s.tr.base = random_word(rng) & 0x7fff_ffff;
    }
    if rng.random_bool(0.2) {
        s.dr[0] = at::CODE + rng.random_range(0..64);
        s.dr[1] = at::DATA + rng.random_range(0..64);
        s.dr[5] = 0x400 | rng.random_range(0..0x1_0000) & 0x2bff | 0x00f0_0000;
    }
    s
}

fn guest(seed: u64) -> Result<Rig<'static>, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut rig = Rig::new(&make, 0, &[])?;
    for (start, len) in [
        (at::CODE, 0x4000),
        (at::USER_CODE, 0x4000),
        (at::DATA, 0x4000),
    ] {
        let code = random_code(&mut rng, len);
        rig.write(start, &code);
    }
    for i in 11..256 {
        let d = descriptor(&mut rng);
        rig.write_u64(at::GDT + 8 * i, d);
    }
    // Some handlers lead back into random code; the 8-byte view of the table is random too.
    for v in 0..256 {
        if rng.random_bool(0.7) {
            let target = at::CODE + rng.random_range(0..0x4000);
            let kind = [0x8e00, 0xee00, 0x8f00, 0xef01, 0x8500, 0x8600][rng.random_range(0..6)];
            rig.set_gate(v, target, 8 * rng.random_range(1..20), kind);
        }
    }
    for i in 0..256 {
        if rng.random_bool(0.5) {
            rig.write_u64(at::TSS + 8 * i, random_word(&mut rng));
        }
        let entry = random_word(&mut rng) & !0xfff | rng.random_range(0..0x1000);
        rig.write_u64(at::PT_TEST + 8 * i, entry);
    }
    let state = random_state(&mut rng);
    rig.set(&state)?;
    Ok(rig)
}

/// Runs a guest with interrupts now and then; its states on the way.
fn run(rig: &mut Rig, seed: u64) -> Result<Vec<CpuState>, String> {
    let mut rng = StdRng::seed_from_u64(!seed);
    let mut states = Vec::new();
    let (mut entry, mut exits) = (Entry::Resume, 0);
    while exits < INSTRUCTIONS {
        exits += 1;
        let until = rig.engine.position().count + rng.random_range(1..200);
        let exit = rig.engine.run(Some(until), entry);
        entry = Entry::Resume;
        match exit.map_err(|e| e.to_string())? {
            Exit::Pending(_) => entry = Entry::Answer(rng.random()),
            Exit::Adrift => return Err("adrift".to_owned()),
            Exit::Boundary(boundary) => {
                let state = rig.engine.state();
                if boundary == Boundary::Shutdown || state.count > INSTRUCTIONS {
                    break;
                }
                if rig.engine.can_interrupt() {
                    rig.engine.inject(rng.random()).map_err(|e| e.to_string())?;
                } else if matches!(boundary, Boundary::Halt { .. }) {
                    break;
                }
                if boundary == Boundary::Reached {
                    states.push(state);
                }
            }
        }
    }
    Ok(states)
}

fn check(seed: u64) -> Result<u64, String> {
    let mut first = guest(seed)?;
    let states = run(&mut first, seed)?;
    let mut second = guest(seed)?;
    if run(&mut second, seed)? != states || first.memory_hash() != second.memory_hash() {
        return Err("two runs differ".into());
    }
    for state in &states {
        second
            .engine
            .set_state(state)
            .map_err(|e| format!("{e}: {state:#x?}"))?;
        if second.engine.state() != *state {
            return Err(format!("{state:#x?} became {:#x?}", second.engine.state()));
        }
    }
    Ok(first.engine.position().count)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

#[test]
fn nothing_a_guest_does_breaks_the_engine() {
    let first = setting("HOSTILE_FIRST", 0);
    let seeds = setting("HOSTILE_SEEDS", 400);
    let mut instructions = 0;
    for seed in first..first + seeds {
        let result = std::panic::catch_unwind(|| check(seed));
        match result {
            Ok(Ok(count)) => instructions += count,
            other => panic!(
                "seed {seed}: {other:?}\nrepeat with HOSTILE_FIRST={seed} HOSTILE_SEEDS=1 cargo \
                 test --release -p soft --test hostile"
            ),
        }
    }
    println!("{seeds} guests, {instructions} instructions");
    assert!(
        instructions > 20 * seeds,
        "the guests end too early: {instructions} instructions"
    );
}
