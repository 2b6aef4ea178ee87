//! Entropy and console.

use crate::testkit::{Driver, Machine, bytes, put};
use crate::{ConsolePort, Input, Output};

const ENTROPY: u32 = 4;
const CONSOLE: u32 = 5;
const BUFFER: u64 = 0x2_0000;

fn entropy(machine: &mut Machine, lens: &[u32]) -> Vec<u8> {
    let mut driver = Driver::start(machine, ENTROPY, 8, 0);
    let mut all = Vec::new();
    for len in lens {
        driver.add(machine, 0, &[(BUFFER, *len, true)]);
        driver.notify(machine, 0);
        let [(_, got)] = driver.used(machine, 0)[..] else {
            panic!("one chain")
        };
        assert_eq!(got, (*len).min(4096));
        all.extend(bytes(&machine.mem, BUFFER, got as usize));
    }
    all
}

#[test]
fn the_same_seed_gives_the_same_stream_and_it_never_starts_over() {
    let mut one = Machine::new();
    let mut two = Machine::new();
    let first = entropy(&mut one, &[64, 8192]);
    assert_eq!(first, entropy(&mut two, &[64, 8192]));
    one.board.reset();
    assert_ne!(
        entropy(&mut one, &[64]),
        first[..64],
        "a reset goes on in the stream"
    );
    let distinct: std::collections::BTreeSet<u8> = first.iter().copied().collect();
    assert_eq!(distinct.len(), 256);
}

#[test]
fn console_output_is_joined_per_console() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, CONSOLE, 8, 0);
    put(&machine.mem, BUFFER, b"hello world");
    for (from, len) in [(0, 5), (5, 6)] {
        driver.add(&machine, 1, &[(BUFFER + from, len, false)]);
        driver.notify(&mut machine, 1);
    }
    machine.out(0x3f8, 1, b'x'.into());
    machine.out(0x3f8, 1, b'y'.into());
    let console = |port, bytes: &[u8]| Output::Console {
        port,
        bytes: bytes.to_vec(),
    };
    assert_eq!(
        machine.outputs(),
        [
            console(ConsolePort::Virtio, b"hello world"),
            console(ConsolePort::Serial, b"xy")
        ]
    );
    assert!(machine.outputs().is_empty());
}

#[test]
fn console_input_waits_for_buffers_and_is_bounded() {
    let mut machine = Machine::new();
    machine.deliver(Input::ConsoleInput(b"early".to_vec()));
    let mut driver = Driver::start(&mut machine, CONSOLE, 8, 0);
    driver.add(&machine, 0, &[(BUFFER, 3, true)]);
    driver.notify(&mut machine, 0);
    assert_eq!(driver.used(&machine, 0), [(0, 3)]);
    driver.add(&machine, 0, &[(BUFFER, 100, true)]);
    machine.deliver(Input::ConsoleInput(b"+late".to_vec()));
    assert_eq!(driver.used(&machine, 0), [(1, 7)]);
    assert_eq!(bytes(&machine.mem, BUFFER, 7), *b"ly+late");
    assert!(machine.board.console_can_receive());
    machine.deliver(Input::ConsoleInput(vec![0; 1 << 20]));
    assert!(!machine.board.console_can_receive());
    assert_eq!(
        machine.board.counters().console_dropped,
        (1 << 20) - (64 << 10)
    );
}
