//! A boot sector that talks on the serial line is recorded by hand, replayed, and replayed again
//! with the log falsified in every way that a divergence has.

use std::io::Write;

use ftlog::codec::{Hello, LogEncoder, LogFile, Message, encode};
use ftlog::{Event, MarkKind, ReplicaId, VmId, digest};

use super::super::convert;
use super::*;
use crate::config::Seed;
use crate::machine::Stop;

/// At 7C00: writes "AB" to ttyS0, sets a register from memory in a loop, and halts for ever.
const PROGRAM: &[u8] = &[
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'A', // mov al, 'A'
    0xee, // out dx, al
    0xb9, 0xe8, 0x03, // mov cx, 1000
    0xe2, 0xfe, // loop $
    0xb0, b'B', // mov al, 'B'
    0xee, // out dx, al
    0xb9, 0xe8, 0x03, // mov cx, 1000
    0xe2, 0xfe, // loop $
    0xfa, // cli
    0xf4, // hlt
];

struct Recorded {
    replica: Replica,
    hello: Hello,
    entries: Vec<Entry>,
    _kernel: tempfile::NamedTempFile,
}

fn machine_to_record() -> (Replica, tempfile::NamedTempFile) {
    let mut sector = vec![0; 512];
    sector[..PROGRAM.len()].copy_from_slice(PROGRAM);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&sector).unwrap();
    let mut config = Config::parse("vm.memory = \"16MiB\"\nnet.mode = \"none\"").unwrap();
    config.boot.kernel = Some(kernel.path().to_owned());
    config.vm.uuid = Some(VmId([3; 16]));
    config.vm.seed = Some(Seed([9; 32]));
    config.vm.start_time = Some(1_700_000_000);
    let replica = Replica {
        config,
        engine: crate::engines::make,
        disk_bytes: None,
        from: None,
    };
    (replica, kernel)
}

fn record() -> Recorded {
    let (replica, kernel) = machine_to_record();
    let mut machine = setup::machine(&replica.config, replica.engine, None, None).unwrap();
    let header = setup::header(VmId([3; 16]), 1, &replica.config, &machine);
    let hello = Hello {
        replica: ReplicaId(1),
        header,
    };
    let mut entries = Vec::new();
    let mut ordinal = 0;
    loop {
        let stop = machine.run(machine.position().count + 500).unwrap();
        let at = machine.position();
        for output in machine.take_outputs().unwrap() {
            let marked = convert::mark(output).ok().unwrap();
            entries.push(Entry::Mark {
                at,
                ordinal,
                kind: marked.kind,
                digest: digest(&marked.bytes),
            });
            ordinal += 1;
        }
        match stop {
            Stop::Off(_) => break,
            Stop::Output => {}
            Stop::Reached | Stop::Adrift | Stop::Idle => {
                let clock_ns = machine.now() + 1000;
                let event = Event::Timer;
                entries.push(Entry::Event {
                    at,
                    clock_ns,
                    event: event.clone(),
                });
                machine.apply(clock_ns, event, None).unwrap();
                let state = machine.hash(true);
                entries.push(Entry::Hash {
                    at,
                    registers: state.registers,
                    memory: state.memory,
                    devices: state.devices,
                });
                // Any place where the vCPU rests can be made another position.
                entries.extend(machine.close_stretch(true).unwrap().into_entries());
            }
        }
    }
    Recorded {
        replica,
        hello,
        entries,
        _kernel: kernel,
    }
}

fn replay_entries(recorded: &Recorded, entries: &[Entry]) -> Outcome {
    let bytes = file(&recorded.hello, entries);
    let log = LogFile::open(bytes.as_slice()).unwrap();
    replay(log, &recorded.replica, &mut |_| ()).unwrap()
}

fn file(hello: &Hello, entries: &[Entry]) -> Vec<u8> {
    let mut encoder = LogEncoder::new(&hello.header);
    for entry in entries {
        encoder.push(entry).unwrap();
    }
    let mut bytes = encode(&Message::Hello(Box::new(hello.clone()))).to_vec();
    for frame in encoder.take_frames() {
        bytes.extend_from_slice(&frame);
    }
    bytes
}

#[test]
fn a_log_replays_to_its_end() {
    let recorded = record();
    let outcome = replay_entries(&recorded, &recorded.entries);
    assert!(outcome.difference.is_none(), "{:?}", outcome.difference);
    assert_eq!(outcome.entries, recorded.entries.len() as u64);
    assert!(outcome.marks >= 3, "two bytes and the end: {outcome:?}");
    assert!(outcome.hashes >= 3 && outcome.memory_hashes == outcome.hashes);
    assert_eq!(outcome.off, Some(Off::Power));
    assert_eq!(outcome.tail, Some(Tail::Whole));
}

#[test]
fn every_falsified_entry_is_found() {
    let recorded = record();
    for place in 0..recorded.entries.len() {
        let mut entries = recorded.entries.clone();
        match &mut entries[place] {
            Entry::Mark { digest, .. } => *digest ^= 1,
            Entry::Hash { registers, .. } => *registers ^= 1,
            Entry::Event { at, .. } | Entry::Progress { at } => at.rcx ^= 1,
            // Where the stretch began is its count alone, which the format does not let be wrong.
            Entry::Pages { .. } => continue,
            Entry::Stretch { at, .. } => at.rcx ^= 1,
        }
        let outcome = replay_entries(&recorded, &entries);
        let found = outcome.difference.expect("a falsified entry");
        assert_eq!(found.seq, place as u64, "{:?}", found.divergence);
        assert_eq!(found.recorded.as_ref(), Some(&entries[place]));
    }
}

#[test]
fn a_missing_and_an_invented_output_are_found() {
    let recorded = record();
    let place = recorded
        .entries
        .iter()
        .position(|entry| matches!(entry, Entry::Mark { .. }))
        .unwrap();
    let mut entries = recorded.entries.clone();
    entries.remove(place);
    let found = replay_entries(&recorded, &entries).difference.unwrap();
    let unexpected = matches!(found.divergence, Divergence::UnexpectedOutput { .. });
    assert!(unexpected, "{:?}", found.divergence);

    let mut entries = recorded.entries.clone();
    let at = entries.last().unwrap().at();
    let ordinal = entries.len() as u64;
    let kind = MarkKind::Console;
    entries.push(Entry::Mark {
        at,
        ordinal,
        kind,
        digest: 0,
    });
    let found = replay_entries(&recorded, &entries).difference.unwrap();
    let missing = matches!(found.divergence, Divergence::MissingOutput { .. });
    assert!(missing, "{:?}", found.divergence);
}

#[test]
fn another_machine_and_a_damaged_file_are_refused() {
    let mut recorded = record();
    let bytes = file(&recorded.hello, &recorded.entries);
    let mut damaged = bytes.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let log = LogFile::open(damaged.as_slice()).unwrap();
    let refused = replay(log, &recorded.replica, &mut |_| ());
    assert!(matches!(refused, Err(OfflineError::File(_))), "{refused:?}");

    recorded.replica.config.vm.start_time = Some(1);
    let log = LogFile::open(bytes.as_slice()).unwrap();
    let refused = replay(log, &recorded.replica, &mut |_| ());
    let state = matches!(
        refused,
        Err(OfflineError::Mismatch(Mismatch::InitialState { .. }))
    );
    assert!(state, "{refused:?}");
}
