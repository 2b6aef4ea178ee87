use super::*;
use crate::testkit::{Machine, spec};

#[test]
fn unclaimed_addresses_read_as_all_ones() {
    let mut machine = Machine::new();
    for port in [0x3d4, 0x3d5, 0x80, 0xed, 0x510, 0x2f8, 0xffff] {
        assert_eq!(machine.inp(port, 1), 0xff);
        assert_eq!(machine.inp(port, 4), u32::MAX, "{port:#x}");
        machine.out(port, 4, 0);
    }
    assert_eq!(machine.read(0xfee0_0000, 8), u64::MAX);
    machine.write(0xfee0_0000, 8, 0);
    assert!(!machine.board.has_outputs());
}

#[test]
fn ways_out() {
    /// Port, size, value.
    type Write = (u16, u8, u32);
    let ways: &[(&[Write], Output)] = &[
        (&[(0x64, 1, 0xfe)], Output::Reset),
        (&[(0x92, 1, 0x03)], Output::Reset),
        (&[(0xcf9, 1, 0x02), (0xcf9, 1, 0x06)], Output::Reset),
        (&[(0x604, 2, 0x2000)], Output::PowerOff),
        (&[(0xb004, 2, 0x2000)], Output::PowerOff),
        (&[(0xf4, 1, 0x10)], Output::Exit(0x10)),
        (&[(0xf4, 4, 0x12345678)], Output::Exit(0x1234_5678)),
    ];
    for (writes, output) in ways {
        let mut machine = Machine::new();
        for (port, size, value) in *writes {
            machine.out(*port, *size, *value);
        }
        assert_eq!(machine.outputs().as_slice(), std::slice::from_ref(output));
    }
    let mut machine = Machine::new();
    machine.board = Board::new(&BoardSpec {
        exit_port: false,
        ..spec()
    });
    machine.out(0xf4, 1, 0x10);
    assert!(
        !machine.board.has_outputs(),
        "no exit port unless asked for"
    );
}

#[test]
fn timer_interrupts_at_100_hz() {
    let mut machine = Machine::new();
    machine.init_pic();
    machine.out(0x43, 1, 0x34);
    machine.out(0x40, 1, 11_932 & 0xff);
    machine.out(0x40, 1, 11_932 >> 8);
    assert_eq!(machine.board.next_deadline(), None, "masked");
    machine.out(0x20, 1, 0x0a);
    machine.out(0x21, 1, 0);
    let mut count = 0;
    while let Some(at) = machine
        .board
        .next_deadline()
        .filter(|at| *at <= 1_000_000_000)
    {
        machine.board.advance(at - 1);
        assert!(!machine.board.interrupt_pending());
        machine.board.advance(at);
        assert!(machine.board.interrupt_pending());
        assert_eq!(machine.board.acknowledge_interrupt(), 0x20);
        machine.now = at;
        machine.out(0x20, 1, 0x20);
        assert!(!machine.board.interrupt_pending());
        count += 1;
    }
    assert_eq!(count, 99, "11,932 ticks are a little more than 10 ms");
}

#[test]
fn accesses_catch_up_with_time_by_themselves() {
    let mut machine = Machine::new();
    machine.init_pic();
    machine.now = 500_000_000;
    machine.out(0x21, 1, 0);
    assert!(
        machine.board.interrupt_pending(),
        "edges that came while it was masked are kept"
    );
}

#[test]
fn time_never_goes_back() {
    let mut machine = Machine::new();
    machine.board.advance(5_000_000_000);
    machine.now = 1;
    machine.out(0x70, 1, 0);
    let seconds = machine.inp(0x71, 1);
    machine.now = 5_000_000_000;
    assert_eq!(machine.inp(0x71, 1), seconds);
}

#[test]
fn absent_devices_refuse_inputs() {
    let mut machine = Machine::new();
    machine.board = Board::new(&BoardSpec {
        net: false,
        disk_sectors: None,
        ..spec()
    });
    let frame = machine
        .board
        .deliver(&machine.mem, Input::NetReceive(vec![0; 60]));
    assert_eq!(frame, Err(DeliverError::NoDevice("network interface")));
    assert_eq!(machine.board.announce(), None);
    assert!(machine.board.pending_disk().is_empty());
    assert_eq!(machine.config(2, 0), u32::MAX);
    assert_eq!(machine.config(3, 0), u32::MAX);
}

#[test]
fn serial_input_interrupts() {
    let mut machine = Machine::new();
    machine.init_pic();
    machine.out(0x3fc, 1, 0x0b);
    machine.out(0x3f9, 1, 0x01);
    machine.deliver(Input::SerialInput(b"ab".to_vec()));
    assert_eq!(machine.board.acknowledge_interrupt(), 0x24);
    assert_eq!(machine.inp(0x3f8, 1), u32::from(b'a'));
    assert_eq!(machine.inp(0x3f8, 1), u32::from(b'b'));
}
