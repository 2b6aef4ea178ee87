//! A guest that does nothing but put out still takes its interrupts, and the replica's control is
//! served: outputs do not keep a slice of the vCPU's time from ending.

#![allow(clippy::unwrap_used)] // a test's helpers may fail the test

mod common;

use std::time::{Duration, Instant};

use common::TIMEOUT;
use iced_x86::code_asm::*;
use vmm::config::Endpoints;
use vmm::machine::Off;
use vmm::replica::{Ended, Role};
use wire::control::{ControlClient, Request, Response};
use wire::register::VmId;

/// It bounds a hang only.
const BOUND: Duration = Duration::from_secs(60);

/// Dots on the serial port for ever; the timer's handler writes a `T`.
fn assemble(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut begin, mut flood) = (a.create_label(), a.create_label());
    a.jmp(begin)?; // two bytes
    a.mov(al, u32::from(b'T'))?;
    a.out(dx, al)?;
    a.mov(al, 0x20u32)?;
    a.out(0x20, al)?;
    a.mov(al, u32::from(b'.'))?;
    a.iret()?;
    a.set_label(&mut begin)?;
    a.mov(dx, 0x3f8u32)?;
    common::start_ticks(a)?;
    a.mov(al, u32::from(b'.'))?;
    a.set_label(&mut flood)?;
    a.out(dx, al)?;
    a.jmp(flood)
}

#[test]
fn a_guest_that_floods_its_console_is_interrupted_and_controlled() {
    let dir = tempfile::tempdir().unwrap();
    let guest = common::boot_sector(assemble);
    let config = common::config(dir.path(), VmId([8; 16]), &guest);
    let (replica, at) = common::start(
        dir.path(),
        &config,
        vmm::engines::make,
        Role::Solo,
        1,
        Endpoints::default(),
    );
    let mut control = ControlClient::connect(&at.control.parse().unwrap(), TIMEOUT).unwrap();
    let begun = Instant::now();
    loop {
        // The vCPU's thread answers it, between two slices.
        let hash = control.call(&Request::Hash { memory: false }).unwrap();
        assert!(matches!(hash, Response::Hash { .. }), "{hash:?}");
        let said = std::fs::read(dir.path().join("1.serial")).unwrap();
        if said.contains(&b'.') && said.iter().filter(|byte| **byte == b'T').count() > 5 {
            break;
        }
        assert!(begun.elapsed() < BOUND, "no timer interrupt was taken");
    }
    control.call(&Request::Poweroff).unwrap();
    let end = replica.join().unwrap().unwrap();
    assert!(matches!(end, Ended::Off(Off::Power)), "{end:?}");
}
