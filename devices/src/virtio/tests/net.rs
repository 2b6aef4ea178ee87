use crate::testkit::{Driver, MAC, Machine, bytes, put};
use crate::{DeliverError, Input, Output};

const NET: u32 = 2;
const RX: usize = 0;
const TX: usize = 1;
const BUFFER: u64 = 0x2_0000;

fn frame(len: usize, tag: u8) -> Vec<u8> {
    let mut frame = vec![tag; len];
    frame[..6].copy_from_slice(&[0xff; 6]);
    frame[6..12].copy_from_slice(&MAC);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame
}

fn post_buffers(machine: &Machine, driver: &mut Driver, count: u64) {
    for index in 0..count {
        driver.add(machine, RX, &[(BUFFER + index * 0x800, 1526, true)]);
    }
}

#[test]
fn transmits_a_frame_in_pieces() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, NET, 16, 0);
    let sent = frame(100, 1);
    put(&machine.mem, BUFFER + 12, &sent[..50]);
    put(&machine.mem, BUFFER + 0x1000, &sent[50..]);
    driver.add(
        &machine,
        TX,
        &[(BUFFER, 62, false), (BUFFER + 0x1000, 50, false)],
    );
    driver.notify(&mut machine, TX);
    assert_eq!(machine.outputs(), [Output::NetTransmit(sent)]);
    assert_eq!(driver.used(&machine, TX), [(0, 0)]);
    assert_eq!(driver.isr(&mut machine), 1);
}

#[test]
fn frames_of_impossible_length_are_dropped_and_their_buffers_returned() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, NET, 16, 0);
    driver.add(&machine, TX, &[(BUFFER, 25, false)]);
    driver.add(&machine, TX, &[(BUFFER, 0x1_1000, false)]);
    driver.notify(&mut machine, TX);
    assert!(machine.outputs().is_empty());
    assert_eq!(driver.used(&machine, TX).len(), 2);
    assert_eq!(machine.board.counters().net.transmit_dropped, 2);
}

#[test]
fn receives_into_the_guests_buffers() {
    let mut machine = Machine::new();
    machine.init_pic();
    let mut driver = Driver::start(&mut machine, NET, 16, 0);
    assert!(!machine.board.can_receive(&machine.mem));
    post_buffers(&machine, &mut driver, 2);
    assert!(
        machine.board.can_receive(&machine.mem),
        "without a notification, too"
    );
    machine.deliver(Input::NetReceive(frame(60, 9)));
    assert_eq!(driver.used(&machine, RX), [(0, 72)]);
    assert_eq!(
        bytes(&machine.mem, BUFFER, 12),
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    );
    assert_eq!(bytes(&machine.mem, BUFFER + 12, 60), frame(60, 9));
    assert_eq!(machine.board.acknowledge_interrupt(), 0x2b);
}

#[test]
fn frames_without_buffer_wait_in_order_and_then_drop() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, NET, 256, 0);
    for index in 0..300 {
        machine.deliver(Input::NetReceive(frame(60, index as u8)));
    }
    assert_eq!(machine.board.counters().net.receive_dropped, 300 - 256);
    post_buffers(&machine, &mut driver, 200);
    assert!(
        !machine.board.can_receive(&machine.mem),
        "older frames come first"
    );
    driver.notify(&mut machine, RX);
    let used = driver.used(&machine, RX);
    assert_eq!(used.len(), 200);
    for (index, (_, len)) in used.iter().enumerate() {
        assert_eq!(*len, 72);
        assert_eq!(
            bytes(&machine.mem, BUFFER + index as u64 * 0x800 + 40, 1),
            [index as u8]
        );
    }
}

#[test]
fn frames_that_do_not_fit_leave_the_buffer() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, NET, 16, 0);
    post_buffers(&machine, &mut driver, 1);
    machine.deliver(Input::NetReceive(frame(9000, 1)));
    assert!(driver.used(&machine, RX).is_empty());
    machine.deliver(Input::NetReceive(frame(1514, 2)));
    assert_eq!(driver.used(&machine, RX), [(0, 1526)]);
}

#[test]
fn frames_for_a_driver_that_is_not_up_are_dropped() {
    let mut machine = Machine::new();
    machine.deliver(Input::NetReceive(frame(60, 1)));
    assert_eq!(machine.board.counters().net.receive_dropped, 1);
    for len in [0, 13, 65_554] {
        let refused = machine
            .board
            .deliver(&machine.mem, Input::NetReceive(vec![0; len]));
        assert_eq!(refused, Err(DeliverError::FrameLength(len)));
    }
}

#[test]
fn announces_the_address_it_has_seen() {
    let mut machine = Machine::new();
    let rarp = machine
        .board
        .announce()
        .expect("there is a network interface");
    assert_eq!(
        rarp[..14],
        [[0xff; 6].as_slice(), &MAC, &[0x80, 0x35]].concat()
    );
    assert_eq!(rarp.len(), 60);
    let mut driver = Driver::start(&mut machine, NET, 16, 0);
    let mut arp = frame(60, 0);
    arp[12..14].copy_from_slice(&[8, 6]);
    arp[28..32].copy_from_slice(&[10, 0, 2, 15]);
    put(&machine.mem, BUFFER + 12, &arp);
    driver.add(&machine, TX, &[(BUFFER, 72, false)]);
    driver.notify(&mut machine, TX);
    let garp = machine
        .board
        .announce()
        .expect("there is a network interface");
    assert_eq!(garp[12..14], [8, 6]);
    assert_eq!(
        (&garp[28..32], &garp[38..42]),
        (&[10, 0, 2, 15][..], &[10, 0, 2, 15][..])
    );
}
