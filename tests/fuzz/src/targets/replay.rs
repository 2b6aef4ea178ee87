//! Replay of log files that are falsified behind right checksums: the whole machine takes what the
//! log says.

use std::sync::OnceLock;

use ftlog::codec::{Hello, LogFile};
use ftlog::{CountUnit, Entry, Event, Header, Mismatch, Region, digest};
use tempfile::TempDir;
use vmm::config::{Config, NetMode, Seed};
use vmm::machine::{Machine, Stop};
use vmm::memory::GuestRam;
use vmm::replica::convert;
use vmm::replica::offline::{self, OfflineError, Replica};

use super::{guest, images, toy};
use crate::Target;
use crate::input::Input;

pub const TARGET: Target = Target {
    name: "replay",
    about: "offline replay of falsified logs on the whole machine",
    run,
    samples,
    cases: 300,
};

/// Writes to ttyS0, computes, and halts for ever.
const PROGRAM: &[u8] = &[
    0xba, 0xf8, 0x03, 0xb0, b'A', 0xee, // out 3f8h, 'A'
    0xb9, 0xe8, 0x03, 0xe2, 0xfe, // 1000 times loop
    0xb0, b'B', 0xee, 0xb9, 0xe8, 0x03, 0xe2, 0xfe, // the same with 'B'
    0xfa, 0xf4, // cli; hlt
];
const START_TIME: u64 = 1_700_000_000;
const SEED: [u8; 32] = [9; 32];

/// The machine that logs are replayed on; its kernel is a file in the folder.
fn replica() -> &'static Replica {
    static REPLICA: OnceLock<(TempDir, Replica)> = OnceLock::new();
    let (_, replica) = REPLICA.get_or_init(|| {
        let folder = crate::scratch::folder();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, images::bootsector(PROGRAM)).expect("room for a small file");
        let mut config = Config::default();
        config.vm.memory = "16MiB".parse().expect("a size of RAM");
        config.vm.uuid = Some(toy::VM);
        config.vm.seed = Some(Seed(SEED));
        config.vm.start_time = Some(START_TIME);
        config.net.mode = NetMode::None;
        config.boot.kernel = Some(kernel);
        let replica = Replica {
            config,
            engine: vmm::engines::make,
            disk_bytes: None,
            from: None,
        };
        (folder, replica)
    });
    replica
}

/// Input: whether checksums are made right, then the log file.
fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let mut file = input.rest().to_vec();
    if flags & 1 != 0 {
        toy::repair(&mut file);
    }
    let Ok(log) = LogFile::open(file.as_slice()) else {
        return;
    };
    match offline::replay(log, replica(), &mut |_| ()) {
        Ok(outcome) => {
            crate::findings::accepted();
            if let Some(difference) = outcome.difference {
                assert!(!difference.divergence.to_string().is_empty());
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The machine as the replay builds it.
fn machine() -> Machine {
    let config = &replica().config;
    let boot = vmm::boot::BootSpec::from_files(
        config.boot.kernel.as_deref().expect("a kernel"),
        None,
        config.kernel_cmdline(""),
        config.boot.mode,
    );
    let spec = devices::BoardSpec {
        net: false,
        mac: config.mac().0,
        disk_sectors: None,
        disk_id: config.vm.name.clone(),
        unix_epoch_ns: START_TIME * 1_000_000_000,
        rng_seed: SEED,
        exit_port: false,
        ..guest::board()
    };
    let ram = GuestRam::new(guest::RAM).expect("memory for a guest");
    let engine = Box::new(soft::SoftEngine::new(ram.memory()).expect("a software CPU"));
    Machine::power_on(engine, ram, boot.expect("a kernel"), &spec).expect("a kernel that loads")
}

/// The header of that machine's logs, learned from what the replay says is wrong with another.
fn header() -> Header {
    let mut header = Header {
        memory: vec![Region {
            base: 0,
            len: guest::RAM,
        }],
        ..toy::header()
    };
    loop {
        let hello = Hello {
            replica: toy::PRIMARY,
            header: header.clone(),
        };
        let file = toy::log(&hello, &[], 1);
        let log = LogFile::open(file.as_slice()).expect("a log without entries");
        match offline::replay(log, replica(), &mut |_| ()) {
            Ok(_) => return header,
            Err(OfflineError::Mismatch(mismatch)) => adopt(&mut header, mismatch),
            Err(error) => panic!("no machine for the samples: {error}"),
        }
    }
}

fn adopt(header: &mut Header, mismatch: Mismatch) {
    match mismatch {
        Mismatch::Engine { ours, .. } => header.engine = ours,
        Mismatch::Cpuid { ours, .. } => header.cpuid = ours,
        Mismatch::Board { ours, .. } => header.board = ours,
        Mismatch::HostMath { ours, .. } => header.host_math = ours,
        Mismatch::InitialState { ours, .. } => header.initial_state = ours,
        Mismatch::Counts { .. } => header.counts = CountUnit::Instructions,
        Mismatch::Start { ours, ours_ns, .. } => {
            (header.start, header.start_clock_ns) = (ours, ours_ns);
        }
        other => panic!("the samples' header is wrong: {other}"),
    }
}

/// Runs the machine and writes down what a primary would.
fn record() -> Vec<Entry> {
    let mut machine = machine();
    let (mut entries, mut ordinal) = (Vec::new(), 0);
    loop {
        let until = machine.position().count + 500;
        let stop = machine.run(until).expect("the program runs");
        let at = machine.position();
        for output in machine.take_outputs().expect("outputs can be taken") {
            let Ok(marked) = convert::mark(output) else {
                continue;
            };
            entries.push(Entry::Mark {
                at,
                ordinal,
                kind: marked.kind,
                digest: digest(&marked.bytes),
            });
            ordinal += 1;
        }
        match stop {
            Stop::Off(_) => return entries,
            Stop::Output => {}
            Stop::Reached | Stop::Adrift | Stop::Idle => {
                let clock_ns = machine.now() + 1000;
                let event = [
                    Event::Timer,
                    Event::SerialInput(bytes::Bytes::from_static(b"x")),
                ][entries.len() % 2]
                    .clone();
                entries.push(Entry::Event {
                    at,
                    clock_ns,
                    event: event.clone(),
                });
                machine
                    .apply(clock_ns, event, None)
                    .expect("an event that fits");
                let state = machine.hash(true);
                entries.push(Entry::Hash {
                    at,
                    registers: state.registers,
                    memory: state.memory,
                    devices: state.devices,
                });
                if entries.len() > 4 {
                    let stretch = machine.close_stretch(true).expect("a vCPU at rest");
                    entries.extend(stretch.into_entries());
                }
            }
        }
    }
}

fn samples() -> Vec<Vec<u8>> {
    let hello = Hello {
        replica: toy::PRIMARY,
        header: header(),
    };
    let entries = record();
    let mut foreign = entries.clone();
    for (entry, other) in foreign.iter_mut().zip(toy::entries()) {
        if let (Entry::Event { event, .. }, Entry::Event { event: new, .. }) = (entry, other) {
            *event = new;
        }
    }
    let sample = |flags: u8, entries: &[Entry], each| {
        [&[flags][..], &toy::log(&hello, entries, each)].concat()
    };
    let whole = sample(0, &entries, 100);
    let log = LogFile::open(&whole[1..]).expect("a log");
    let outcome = offline::replay(log, replica(), &mut |_| ()).expect("the samples' machine");
    assert!(
        outcome.difference.is_none(),
        "the sample does not replay: {outcome:?}"
    );
    vec![
        whole,
        sample(1, &entries, 1),
        sample(1, &entries, 1),
        sample(1, &foreign, 1),
    ]
}
