//! A primary and a backup in this process, with a real disk server between them, run a small guest
//! that does what makes replay hard: timer interrupts at arbitrary instructions, interrupt shadows,
//! REP strings that are interrupted, HLT, clock reads, console output. The whole state, memory
//! included, is compared every few thousand instructions; any difference halts the backup.

#![allow(clippy::unwrap_used)] // a test's helpers may fail the test

mod common;

use common::{TIMEOUT, start};
use ft_diskd::DiskConfig;
use iced_x86::code_asm::*;
use vmm::config::Endpoints;
use vmm::machine::Off;
use vmm::replica::{Ended, Role};
use wire::control::ControlClient;
use wire::register::{RegisterClient, ReplicaId, VmId};

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

#[test]
fn a_pair_runs_in_lockstep_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let vm = VmId([7; 16]);
    let image = dir.path().join("disk");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let diskd = ft_diskd::serve(&ft_diskd::Config {
        nbd: "127.0.0.1:0".into(),
        register: "127.0.0.1:0".into(),
        state: dir.path().join("register"),
        disks: vec![DiskConfig {
            name: "disk".into(),
            path: image,
            read_only: false,
        }],
        snapshots: Vec::new(),
    })
    .unwrap();
    let register = diskd.register_addr().to_string();
    RegisterClient::new(&register, TIMEOUT)
        .create(
            vm,
            ReplicaId(1),
            Some(ReplicaId(2)),
            &["disk".to_owned()],
            false,
        )
        .unwrap();
    let endpoints = Endpoints {
        register: Some(register.parse().unwrap()),
        ..Endpoints::default()
    };
    let guest = common::boot_sector(assemble);
    let mut config = common::config(dir.path(), vm, &guest);
    config.hash.interval = 5_000;
    config.hash.memory = true;

    let (backup, backup_at) = start(dir.path(), &config, Role::Backup, 2, endpoints.clone());
    let log = backup_at.log.unwrap().parse().unwrap();
    let (primary, _) = start(
        dir.path(),
        &config,
        Role::Primary,
        1,
        Endpoints {
            log: Some(log),
            ..endpoints
        },
    );
    let mut compared = 0;
    while !backup.is_finished() {
        let addr = backup_at.control.parse().unwrap();
        if let Ok(status) = ControlClient::connect(&addr, TIMEOUT).and_then(|mut c| c.status()) {
            compared = compared.max(status.hashes_compared);
        }
    }
    for end in [
        primary.join().unwrap().unwrap(),
        backup.join().unwrap().unwrap(),
    ] {
        assert!(matches!(end, Ended::Off(Off::Exit(EXIT_CODE))), "{end:?}");
    }
    assert!(compared > 20, "{compared} states were compared");
    let said = std::fs::read(dir.path().join("1.serial")).unwrap();
    assert!(
        !said.is_empty() && said.iter().all(|byte| *byte == b'.'),
        "{said:?}"
    );
    let suppressed = std::fs::read(dir.path().join("2.serial")).unwrap();
    assert!(
        suppressed.is_empty(),
        "the backup's output was not suppressed"
    );
}
