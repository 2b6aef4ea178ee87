//! Small guests of one boot sector with a timer interrupt, and replicas in this process to run them.

#![allow(clippy::unwrap_used)] // a test's helpers may fail the test

use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use iced_x86::code_asm::*;
use vmm::config::{Config, Endpoints, NetMode, Seed};
use vmm::engines::MakeEngine;
use vmm::replica::{self, Ended, ReadyAt, Role, Spec};
use wire::control::ControlAddr;
use wire::register::{ReplicaId, VmId};

pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Where the handler of the timer interrupt is: after the jump over it.
const HANDLER: u16 = 0x7c02;

/// A boot sector in real mode.
pub fn boot_sector(assemble: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(16).unwrap();
    assemble(&mut a).unwrap();
    let mut code = a.assemble(0x7c00).unwrap();
    assert!(code.len() <= 510, "{} bytes", code.len());
    code.resize(510, 0);
    code.extend([0x55, 0xaa]);
    code
}

/// Lets IRQ 0 come about a thousand times a second. Its handler is the guest's second instruction;
/// the first is a short jump over it.
pub fn start_ticks(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cli()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.mov(es, ax)?;
    a.mov(ss, ax)?;
    a.mov(sp, 0x7c00u32)?;
    // IRQ 0 is vector 8.
    a.mov(bx, u32::from(HANDLER))?;
    a.mov(word_ptr(0x20), bx)?;
    a.mov(word_ptr(0x22), ax)?;
    for (port, value) in [
        (0x20u32, 0x11u32),
        (0x21, 8),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xfe),
    ] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    // Channel 0, mode 2, 1193 counts: about 1 kHz.
    for (port, value) in [(0x43u32, 0x34u32), (0x40, 0xa9), (0x40, 0x04)] {
        a.mov(al, value)?;
        a.out(port, al)?;
    }
    a.sti()
}

pub fn config(dir: &Path, vm: VmId, guest: &[u8]) -> Config {
    let kernel = dir.join("guest");
    std::fs::write(&kernel, guest).unwrap();
    let mut config = Config::default();
    config.vm.uuid = Some(vm);
    config.vm.seed = Some(Seed([3; 32]));
    config.vm.start_time = Some(1_790_000_000);
    config.vm.memory = "16MiB".parse().unwrap();
    config.boot.kernel = Some(kernel);
    config.boot.exit_port = true;
    config.net.mode = NetMode::None;
    config
}

/// A replica's thread.
pub type Running = JoinHandle<Result<Ended, replica::ReplicaError>>;

pub fn start(
    dir: &Path,
    config: &Config,
    engine: MakeEngine,
    role: Role,
    id: u64,
    endpoints: Endpoints,
) -> (Running, ReadyAt) {
    let (ready, ready_at) = crossbeam_channel::bounded(1);
    let spec = Spec {
        role,
        id: ReplicaId(id),
        config: config.clone(),
        engine,
        endpoints,
        control: ControlAddr::Unix(dir.join(format!("{id}.sock"))),
        from: None,
        serial_file: Some(dir.join(format!("{id}.serial"))),
        virtio_file: None,
        ready,
    };
    let thread = std::thread::spawn(move || replica::run(spec));
    let at = ready_at.recv().expect("the replica is set up");
    (thread, at)
}
