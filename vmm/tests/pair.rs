//! A primary and a backup in this process, with a real disk server between them, run a small guest
//! that does what makes replay hard: timer interrupts at arbitrary instructions, interrupt shadows,
//! REP strings that are interrupted, HLT, clock reads, console output. The whole state, memory
//! included, is compared every few thousand instructions; any difference halts the backup.

#![allow(clippy::unwrap_used)] // a test's helpers may fail the test

mod common;
#[path = "common/pair.rs"]
mod pair;

use iced_x86::code_asm::*;
use pair::Pair;
use vmm::engines::MakeEngine;
use vmm::machine::Off;
use vmm::replica::Ended;

/// What the guest writes to the exit port after its ticks.
const EXIT_CODE: u32 = 5;
/// Timer interrupts until the guest ends.
const TICKS: u32 = 300;

fn assemble(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut begin, mut work, mut inner) = (a.create_label(), a.create_label(), a.create_label());
    a.jmp(begin)?; // two bytes
    a.push(ax)?;
    a.inc(word_ptr(0x5010))?;
    a.cmp(word_ptr(0x5010), TICKS)?;
    let mut on = a.create_label();
    a.jb(on)?;
    a.mov(al, EXIT_CODE)?;
    a.out(0xf4, al)?;
    a.set_label(&mut on)?;
    a.mov(al, 0x20u32)?;
    a.out(0x20, al)?;
    a.pop(ax)?;
    a.iret()?;
    a.set_label(&mut begin)?;
    common::start_ticks(a)?;
    a.set_label(&mut work)?;
    // REP strings over 3000 bytes, forwards and interrupted somewhere.
    a.mov(si, 0x1000u32)?;
    a.mov(di, 0x3000u32)?;
    a.mov(cx, 3000u32)?;
    a.rep().movsb()?;
    a.mov(di, 0x1000u32)?;
    a.mov(cx, 700u32)?;
    a.rdtsc()?;
    a.rep().stosw()?;
    a.mov(cx, 500u32)?;
    a.set_label(&mut inner)?;
    a.imul_3(ebx, ebx, 1_103_515_245)?;
    a.add(ebx, 12345)?;
    a.mov(dword_ptr(0x5000), ebx)?;
    // A shadow in which the interrupt must wait.
    a.cli()?;
    a.sti()?;
    a.inc(dword_ptr(0x5004))?;
    a.loop_(inner)?;
    // Latched timer count, and the RTC.
    a.xor(al, al)?;
    a.out(0x43, al)?;
    a.in_(al, 0x40)?;
    a.mov(byte_ptr(0x5008), al)?;
    a.out(0x70, al)?;
    a.in_(al, 0x71)?;
    a.mov(byte_ptr(0x5009), al)?;
    // A letter on the serial port, then rest until the next tick.
    a.mov(dx, 0x3f8u32)?;
    a.mov(al, u32::from(b'.'))?;
    a.out(dx, al)?;
    a.hlt()?;
    a.jmp(work)
}

/// Runs the guest on a pair to its end, comparing the whole state every few thousand instructions.
fn runs_to_the_end(engine: MakeEngine) {
    let guest = common::boot_sector(assemble);
    let pair = Pair::start(engine, &guest, |config| {
        config.hash.interval = 5_000;
        config.hash.memory = true;
    });
    let mut compared = 0;
    while !pair.backup.is_finished() {
        if let Some(status) = pair::status(&pair.backup_at) {
            compared = compared.max(status.hashes_compared);
        }
    }
    for end in [
        pair.primary.join().unwrap().unwrap(),
        pair.backup.join().unwrap().unwrap(),
    ] {
        assert!(matches!(end, Ended::Off(Off::Exit(EXIT_CODE))), "{end:?}");
    }
    assert!(compared > 20, "{compared} states were compared");
    let said = std::fs::read(pair.dir.path().join("1.serial")).unwrap();
    assert!(
        !said.is_empty() && said.iter().all(|byte| *byte == b'.'),
        "{said:?}"
    );
    let suppressed = std::fs::read(pair.dir.path().join("2.serial")).unwrap();
    assert!(
        suppressed.is_empty(),
        "the backup's output was not suppressed"
    );
}

#[test]
fn a_pair_runs_in_lockstep_to_the_end() {
    runs_to_the_end(vmm::engines::make);
}

#[test]
fn a_pair_whose_positions_are_exits_runs_in_lockstep_to_the_end() {
    runs_to_the_end(exits::make);
}
