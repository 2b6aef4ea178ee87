//! Saved machine states: reading one, and going on from it.

use soft::SoftEngine;
use vmm::machine::Machine;
use vmm::memory::GuestRam;
use vmm::save::{self, About, SavedMachine};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{guest, images};
use crate::Target;
use crate::input::Input;

pub const TARGET: Target = Target {
    name: "saved-state",
    about: "saved machine states: what can be read is written the same, and the machine goes on",
    run,
    samples,
    cases: 500,
};

/// Magic and version; then sections of a header (kind, length, sum) and a payload.
const PREFIX: usize = 12;
const HEADER: usize = 20;
const END: u32 = 4;

/// Input: whether checksums are made right, then the file.
fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let mut file = input.rest().to_vec();
    if flags & 1 != 0 {
        repair(&mut file);
    }
    let _ = save::read_about(&mut file.as_slice());
    let ram = GuestRam::new(guest::RAM).expect("memory for a guest");
    let saved = match save::read_from(&mut file.as_slice(), &ram, &mut |_| ()) {
        Ok(saved) => saved,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let again = write(&saved, &ram);
    let other = GuestRam::new(guest::RAM).expect("memory for a guest");
    let read = save::read_from(&mut again.as_slice(), &other, &mut |_| ());
    assert_eq!(read.expect("what was written can be read"), saved);
    assert_eq!(other.hash(), ram.hash());
    go_on(&saved, ram);
}

/// A state that is refused is as good as one that runs; nothing else may come of it.
fn go_on(saved: &SavedMachine, ram: GuestRam) {
    let engine = Box::new(SoftEngine::new(ram.memory()).expect("a software CPU"));
    let boot = guest::boot_spec(images::bootsector(&[0xf4]));
    let Ok(mut machine) = Machine::resume(engine, ram, boot, &saved.state) else {
        return;
    };
    crate::findings::accepted();
    let until = machine.position().count.saturating_add(2000);
    guest::run_to(&mut machine, until);
    let _ = (
        machine.state(),
        machine.hash(false),
        machine.disk_in_flight(),
    );
}

/// Makes the checksums and the end section of a file right.
fn repair(file: &mut [u8]) {
    let Some((_, mut rest)) = file.split_at_mut_checked(PREFIX) else {
        return;
    };
    let (mut sections, mut headers) = (0u64, Xxh3::new());
    while let Some((header, body)) = rest.split_first_chunk_mut::<HEADER>() {
        let [a, b, c, d, len @ .., _, _, _, _, _, _, _, _] = *header;
        let (kind, len) = (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(len));
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let Some((payload, after)) = body.split_at_mut_checked(len) else {
            return;
        };
        if let (END, Some(count)) = (kind, payload.first_chunk_mut::<16>()) {
            count[..8].copy_from_slice(&sections.to_le_bytes());
            count[8..].copy_from_slice(&headers.digest().to_le_bytes());
        }
        header[12..].copy_from_slice(&xxh3_64(payload).to_le_bytes());
        headers.update(header);
        sections += 1;
        rest = after;
    }
}

fn write(saved: &SavedMachine, ram: &GuestRam) -> Vec<u8> {
    let mut file = Vec::new();
    save::write_to(&mut file, saved, ram, &mut |_| ()).expect("a state that was read");
    file
}

fn samples() -> Vec<Vec<u8>> {
    let code: &[u8] = &[
        0xba, 0xf8, 0x03, 0xb0, b'A', 0xee, 0xfb, 0xb8, 0, 0x20, 0xf7, 0xe0, 0x50, 0x58, 0xeb, 0xf3,
    ];
    let kernels = [
        images::bootsector(code),
        images::elf(32, code),
        images::elf(64, code),
    ];
    let mut samples = Vec::new();
    for kernel in kernels {
        let boot_digest = guest::boot_spec(kernel.clone()).digest();
        let mut machine = guest::power_on(guest::boot_spec(kernel));
        guest::run_to(&mut machine, 100);
        let saved = SavedMachine {
            about: About {
                vm_name: "demo".into(),
                vm_uuid: "0d2f".into(),
                ram_bytes: guest::RAM,
                engine: (&machine.engine_info()).into(),
                boot_digest,
                position: machine.position(),
                config: "vm.memory = \"16MiB\"".into(),
            },
            state: machine.state(),
        };
        for flags in [1, 1, 0] {
            samples.push([&[flags][..], &write(&saved, machine.ram())].concat());
        }
    }
    samples
}
