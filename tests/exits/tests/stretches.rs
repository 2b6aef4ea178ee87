//! A guest that computes without exits, on an engine whose positions are exits: it must get its
//! timer, its backup must follow, and whichever replica dies when, the other must go on with a guest
//! whose memory and registers are of one moment.

#![allow(clippy::unwrap_used)] // a test's helpers may fail the test

#[path = "../../../vmm/tests/common/mod.rs"]
mod common;
#[path = "../../../vmm/tests/common/pair.rs"]
mod pair;
mod process;

use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use pair::Pair;
use process::Processes;
use vmm::machine::Off;
use vmm::replica::Ended;

/// What the guest writes to the exit port after its ticks, and if it finds its memory torn.
const WHOLE: u32 = 5;
const TORN: u32 = 63;
/// Timer interrupts until the guest ends; at each it says a dot.
const TICKS: u32 = 300;
/// How long its handler computes.
const SPINS: u32 = 60_000;
/// The pages that it writes, one after the other, again and again, as segments.
const FIRST_SEGMENT: u32 = 0x1000;
const LAST_SEGMENT: u32 = 0x8f00;
const PAGE: u32 = 0x100;

/// Writes the same number to all of the pages, then the next one. The timer's handler, which may come
/// anywhere, looks whether the first and the last page have the number or the one before it.
fn assemble(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut begin, mut round, mut page) = (a.create_label(), a.create_label(), a.create_label());
    let (mut torn, mut on, mut spin) = (a.create_label(), a.create_label(), a.create_label());
    a.jmp(begin)?; // two bytes
    a.push(es)?;
    for segment in [FIRST_SEGMENT, LAST_SEGMENT] {
        a.push(eax)?;
        a.push(segment)?;
        a.pop(es)?;
        a.sub(eax, dword_ptr(0x10).es())?;
        a.cmp(eax, 1u32)?;
        a.pop(eax)?;
        a.ja(torn)?;
    }
    a.pop(es)?;
    a.push(eax)?;
    // For so long that the interrupt is often part of a stretch.
    a.mov(cx, SPINS)?;
    a.set_label(&mut spin)?;
    a.loop_(spin)?;
    a.mov(dx, 0x3f8u32)?;
    a.mov(al, u32::from(b'.'))?;
    a.out(dx, al)?;
    a.inc(word_ptr(0x5010))?;
    a.cmp(word_ptr(0x5010), TICKS)?;
    a.jb(on)?;
    a.mov(al, WHOLE)?;
    a.out(0xf4, al)?;
    a.set_label(&mut torn)?;
    a.mov(al, TORN)?;
    a.out(0xf4, al)?;
    a.set_label(&mut on)?;
    a.mov(al, 0x20u32)?;
    a.out(0x20, al)?;
    a.pop(eax)?;
    a.iret()?;
    a.set_label(&mut begin)?;
    a.xor(eax, eax)?;
    common::start_ticks(a)?;
    a.xor(eax, eax)?;
    a.set_label(&mut round)?;
    a.inc(eax)?;
    a.mov(bx, FIRST_SEGMENT)?;
    a.set_label(&mut page)?;
    a.mov(es, bx)?;
    a.mov(dword_ptr(0x10).es(), eax)?;
    a.add(bx, PAGE)?;
    a.cmp(bx, LAST_SEGMENT)?;
    a.jbe(page)?;
    a.jmp(round)
}

#[test]
fn a_guest_without_exits_gets_its_timer_and_its_backup_follows() {
    let guest = common::boot_sector(assemble);
    let pair = Pair::start(exits::make, &guest, |config| {
        config.hash.interval = 200_000;
        config.hash.memory = true;
        config.vm.stretch_ms = 1.try_into().unwrap();
    });
    let mut last = None;
    while !pair.backup.is_finished() {
        last = pair::status(&pair.backup_at).or(last);
    }
    for end in [
        pair.primary.join().unwrap().unwrap(),
        pair.backup.join().unwrap().unwrap(),
    ] {
        assert!(matches!(end, Ended::Off(Off::Exit(WHOLE))), "{end:?}");
    }
    assert_eq!(dots(&pair.dir, 1), TICKS as usize);
    assert_eq!(
        dots(&pair.dir, 2),
        0,
        "the backup's output was not suppressed"
    );
    let last = last.unwrap();
    let stretches = last.stretches;
    assert!(stretches.closed > 20, "{stretches:?}");
    assert!(stretches.interrupts > 5, "{stretches:?}");
    assert!(stretches.pages >= stretches.closed, "{stretches:?}");
    assert!(last.hashes_compared > 5, "{} hashes", last.hashes_compared);
}

/// How many dots have left a replica.
fn dots(dir: &tempfile::TempDir, replica: u64) -> usize {
    let said = std::fs::read(dir.path().join(format!("{replica}.serial"))).unwrap();
    assert!(said.iter().all(|byte| *byte == b'.'), "{said:?}");
    said.len()
}

/// Kills one replica after a while that is different each time; the other goes on to the end.
fn goes_on_without(primary: bool, after: Duration) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let guest = common::boot_sector(assemble);
    let pair = Processes::start(&dir, &guest);
    let (mut victim, mut other) = if primary {
        (pair.primary, pair.backup)
    } else {
        (pair.backup, pair.primary)
    };
    let (mut closed, mut begun) = (0, None::<Instant>);
    while begun.is_none_or(|begun| begun.elapsed() < after) {
        closed = pair::status(&victim.at).map_or(closed, |status| status.stretches.closed);
        if closed > 0 {
            begun.get_or_insert_with(Instant::now);
        }
    }
    victim.kill();
    assert_eq!(other.end(), 64 + WHOLE as i32, "the guest's end");
    // What a process has released, and said so, may die in its queue to the outside.
    let said = dots(&dir, 1) + dots(&dir, 2);
    assert!(said + 3 >= TICKS as usize, "only {said} dots have left");
    drop(pair.diskd);
    closed
}

#[test]
fn whichever_dies_when_the_guest_goes_on_whole() {
    for n in 0..8u64 {
        let after = Duration::from_micros(1000 + n * 27_013);
        let closed = goes_on_without(n % 4 != 3, after);
        println!("killed after {after:?}, with {closed} stretches closed");
    }
}
