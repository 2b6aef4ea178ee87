//! A hostile guest on the whole machine: arbitrary code from a boot sector or in protected mode,
//! with the board around it. Run in one go and in pieces, with a save in between, it comes to the
//! same state.

use devices::{BoardSpec, Output};
use soft::SoftEngine;
use vmm::boot::{BootMode, BootSpec};
use vmm::machine::{Machine, Stop};
use vmm::memory::GuestRam;

use super::images;
use crate::Target;
use crate::input::Input;

pub const TARGET: Target = Target {
    name: "guest",
    about: "arbitrary guest code; in one go, in pieces and across a save it comes to the same state",
    run,
    samples,
    cases: 200,
};

pub const RAM: u64 = 16 << 20;
/// Instructions that a guest gets.
const COUNT: u64 = 5000;
/// Resets that it gets.
const MAX_RESETS: u32 = 10;

pub fn board() -> BoardSpec {
    BoardSpec {
        memory_bytes: RAM,
        net: true,
        mac: [2, 0, 0, 0, 0, 1],
        disk_sectors: Some(2048),
        disk_id: "disk".into(),
        unix_epoch_ns: 1_795_264_496_000_000_000,
        rng_seed: [7; 32],
        exit_port: true,
    }
}

pub fn boot_spec(kernel: Vec<u8>) -> BootSpec {
    BootSpec {
        kernel,
        initrd: None,
        cmdline: String::new(),
        mode: BootMode::Auto,
    }
}

pub fn power_on(boot: BootSpec) -> Machine {
    let ram = GuestRam::new(RAM).expect("memory for a guest");
    let engine = Box::new(SoftEngine::new(ram.memory()).expect("a software CPU"));
    Machine::power_on(engine, ram, boot, &board()).expect("a kernel that can be loaded")
}

/// Input: the entry (0: real mode, else 32-bit protected mode), the length of pieces, code.
fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (entry, piece) = (input.u8(), u64::from(input.u8()) + 1);
    let boot = boot_spec(match entry {
        0 => images::bootsector(input.rest()),
        _ => images::elf(32, &[input.rest(), &[0xf4; 16]].concat()),
    });
    let mut whole = power_on(boot.clone());
    run_to(&mut whole, COUNT);
    let end = whole.position().count;
    if end >= 100 {
        crate::findings::accepted();
    }
    let mut pieces = power_on(boot);
    let mut at = 0;
    while at < end {
        at = (at + piece * 7).min(end);
        run_to(&mut pieces, at);
    }
    assert_eq!(whole.position(), pieces.position());
    assert_eq!(
        whole.state(),
        pieces.state(),
        "pieces of {piece} make a difference"
    );
    assert_eq!(whole.hash(true), pieces.hash(true));
}

/// Runs to a position, dropping outputs, but not through many resets, which take long. Whether it
/// ended before: the guest went off or waits, or there were too many.
pub fn run_to(machine: &mut Machine, until: u64) -> bool {
    let mut resets = 0;
    loop {
        match machine
            .run(until)
            .expect("a guest cannot make the engine fail")
        {
            Stop::Output => {
                // A reset reads the kernel again, which was loaded once.
                let outputs = machine.take_outputs().expect("outputs can be taken");
                resets += u32::from(outputs.is_empty() || outputs.contains(&Output::Reset));
                if resets == MAX_RESETS {
                    return true;
                }
            }
            Stop::Reached | Stop::Adrift => return false,
            Stop::Idle | Stop::Off(_) => return true,
        }
    }
}

fn samples() -> Vec<Vec<u8>> {
    let real: &[u8] = &[
        0xba, 0xf8, 0x03, 0xb0, b'A', 0xee, // out 3f8h, 'A'
        0xb9, 0x20, 0, 0xbf, 0, 0x10, 0xf3, 0xab, // rep stosw
        0x0f, 0x31, 0xe4, 0x40, 0xfb, 0x0f, 0xa2, // rdtsc; in al, 40h; sti; cpuid
        0x66, 0xba, 0x10, 0, 0, 0x80, 0xeb, 0xe0, // mov edx, imm; jmp
    ];
    let protected: &[u8] = &[
        0x0f, 0x20, 0xc0, 0x0f, 0x22, 0xc0, // mov eax, cr0; mov cr0, eax
        0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0x30, // rdmsr and wrmsr of EFER
        0xa1, 0, 0, 0, 0xfe, 0xa3, 0, 0, 0, 0xfe, // MMIO
        0xd9, 0xe8, 0xdd, 0x1d, 0, 0, 0x20, 0, // fld1; fstp
        0x0f, 0x28, 0xc1, 0x66, 0x0f, 0x38, 0x00, 0xc1, // movaps; pshufb
        0x0f, 0x01, 0x15, 0, 0, 0x10, 0, 0x6a, 0x08, 0xcf, 0xeb,
        0xcc, // lgdt; push; iretd; jmp
    ];
    let mut samples = Vec::new();
    for (entry, code) in [(0, real), (1, protected)] {
        for piece in [0, 13, 255] {
            samples.push([&[entry, piece], code].concat());
        }
        samples.push([&[entry, 3][..], code, code, real, protected].concat());
    }
    // Found once: a triple fault of the first instruction; resets without end.
    let fault: &[u8] = &[0x0f, 0x0b];
    let reset: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
    samples.extend([[&[1, 0][..], fault].concat(), [&[0, 0][..], reset].concat()]);
    samples
}
