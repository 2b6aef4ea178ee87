//! Kernel files: the loader in each of its modes.

use vmm::boot::{self, BootMode, BootSpec};
use vmm::memory::GuestRam;

use super::images;
use crate::Target;
use crate::input::{Input, put_block};

pub const TARGET: Target = Target {
    name: "kernel",
    about: "kernel files, initrds and command lines in each boot mode; loading is a function",
    run,
    samples,
    cases: 3_000,
};

const RAM: u64 = 16 << 20;
const MODES: [BootMode; 5] = [
    BootMode::Auto,
    BootMode::Bzimage,
    BootMode::Pvh,
    BootMode::Multiboot,
    BootMode::Bootsector,
];

/// Input: mode, command line, initrd (empty: none), kernel.
fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mode = MODES[usize::from(input.u8()) % MODES.len()];
    let cmdline = String::from_utf8_lossy(input.block()).into_owned();
    let initrd = Some(input.block().to_vec()).filter(|initrd| !initrd.is_empty());
    let spec = BootSpec {
        kernel: input.rest().to_vec(),
        initrd,
        cmdline,
        mode,
    };
    let load = || {
        let ram = GuestRam::new(RAM).expect("memory for a guest");
        let state = boot::load(&ram, &spec);
        (state, ram)
    };
    match load() {
        (Ok(state), ram) => {
            crate::findings::accepted();
            let (again, other) = load();
            assert_eq!(again.expect("it was loaded once"), state);
            assert_eq!(ram.hash(), other.hash());
        }
        (Err(error), _) => assert!(!error.to_string().is_empty()),
    }
}

fn samples() -> Vec<Vec<u8>> {
    let code = [0xf4; 100];
    let multiboot = [images::multiboot_header(3, &[]), code.to_vec()].concat();
    let kernels = [
        (1, images::bzimage(&code, None)),
        (2, images::packed(&images::elf(64, &code))),
        (2, images::elf(64, &code)),
        (2, images::elf(32, &code)),
        (3, images::elf(32, &multiboot)),
        (3, images::flat_multiboot()),
        (4, images::bootsector(&code)),
    ];
    let mut samples = Vec::new();
    for (mode, kernel) in kernels {
        for (mode, initrd) in [(0, &b""[..]), (mode, b"070701 an initrd")] {
            let mut sample = vec![mode];
            put_block(&mut sample, b"console=ttyS0 quiet");
            put_block(&mut sample, initrd);
            sample.extend(&kernel);
            samples.push(sample);
        }
    }
    samples
}
