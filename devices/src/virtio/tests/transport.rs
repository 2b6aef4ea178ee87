use crate::testkit::{Driver, EVENT_IDX, Machine, bytes};

const NET: u32 = 2;
const ENTROPY: u32 = 4;

fn features(machine: &mut Machine, bar: u64) -> u64 {
    machine.write(bar, 4, 1);
    let high = machine.read(bar + 4, 4);
    machine.write(bar, 4, 0);
    high << 32 | machine.read(bar + 4, 4)
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let mut machine = Machine::new();
    let bar = Driver::bar_of(&mut machine, NET);
    let offered = features(&mut machine, bar);
    assert_eq!(offered, 1 << 32 | 1 << 29 | 1 << 16 | 1 << 5);
    for wanted in [offered | 1, offered & !(1 << 32), 0] {
        machine.write(bar + 20, 1, 0);
        machine.write(bar + 20, 1, 3);
        for half in 0..2 {
            machine.write(bar + 8, 4, half);
            machine.write(bar + 12, 4, wanted >> (32 * half) & 0xffff_ffff);
        }
        machine.write(bar + 20, 1, 11);
        assert_eq!(machine.read(bar + 20, 1), 3, "{wanted:#x}");
        machine.write(bar + 20, 1, 15);
        assert_eq!(
            machine.read(bar + 20, 1),
            3,
            "no DRIVER_OK without FEATURES_OK"
        );
    }
}

#[test]
fn queue_registers_are_frozen_once_in_use() {
    let mut machine = Machine::new();
    let driver = Driver::start(&mut machine, ENTROPY, 8, 0);
    let bar = driver.bar;
    let before = [24, 28, 32, 40, 48].map(|at| machine.read(bar + at, 4));
    for (at, size, value) in [
        (24, 2, 64),
        (28, 2, 0),
        (32, 4, 0x10),
        (40, 4, 2),
        (52, 4, 4),
    ] {
        machine.write(bar + at, size, value);
    }
    assert_eq!(
        [24, 28, 32, 40, 48].map(|at| machine.read(bar + at, 4)),
        before
    );
}

#[test]
fn unsound_queues_are_refused() {
    let ring = (8, 0x1000, 0x2000, 0x3000);
    for (size, desc, avail, used) in [
        (0, ring.1, ring.2, ring.3),
        (7, ring.1, ring.2, ring.3),
        (128, ring.1, ring.2, ring.3),
        (8, 0x1008, ring.2, ring.3),
        (8, ring.1, 0x2001, ring.3),
        (8, ring.1, ring.2, 0x3002),
        (8, crate::testkit::RAM - 64, ring.2, ring.3),
        (8, ring.1, 0xc000_0000, ring.3),
        (8, ring.1, ring.2, u64::MAX - 3),
    ] {
        let mut machine = Machine::new();
        let bar = Driver::bar_of(&mut machine, ENTROPY);
        machine.write(bar + 20, 1, 3);
        machine.write(bar + 22, 2, 0);
        machine.write(bar + 24, 2, size);
        machine.write(bar + 32, 8, desc);
        machine.write(bar + 40, 8, avail);
        machine.write(bar + 48, 8, used);
        machine.write(bar + 28, 2, 1);
        assert_eq!(machine.read(bar + 28, 2), 0);
        assert_eq!(machine.read(bar + 20, 1), 3 | 64, "DEVICE_NEEDS_RESET");
        machine.write(bar + 20, 1, 0);
        assert_eq!(machine.read(bar + 20, 1), 0);
    }
}

#[test]
fn notifications_beyond_the_queues_do_nothing() {
    let mut machine = Machine::new();
    let driver = Driver::start(&mut machine, ENTROPY, 8, 0);
    for queue in [1, 2, 0x3ff] {
        machine.write(driver.bar + 0x3000 + 4 * queue, 2, queue);
    }
    machine.write(driver.bar + 0x3ffe, 4, 0xffff);
    assert_eq!(driver.status(&mut machine), 15);
    machine.write(driver.bar + 22, 2, 0xffff);
    assert_eq!(
        machine.read(driver.bar + 24, 2),
        0,
        "a queue that is not there has size 0"
    );
}

#[test]
fn work_offered_before_driver_ok_waits_for_it() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, ENTROPY, 8, 0);
    // Bus mastering off stands for "not up": the notification is lost, the work is not.
    machine.set_config(ENTROPY, 4, 0x2);
    driver.add(&machine, 0, &[(0x1000, 16, true)]);
    driver.notify(&mut machine, 0);
    assert!(driver.used(&machine, 0).is_empty());
    machine.set_config(ENTROPY, 4, 0x6);
    assert_eq!(driver.used(&machine, 0), [(0, 16)]);
}

#[test]
fn interrupts_can_be_suppressed_by_flag() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, ENTROPY, 8, 0);
    crate::testkit::put(&machine.mem, driver.rings[0].avail, &1u16.to_le_bytes());
    driver.add(&machine, 0, &[(0x1000, 16, true)]);
    driver.notify(&mut machine, 0);
    assert_eq!(driver.used(&machine, 0).len(), 1);
    assert_eq!(driver.isr(&mut machine), 0);
}

#[test]
fn event_indexes_bound_interrupts_and_notifications() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, ENTROPY, 8, EVENT_IDX);
    let ring = driver.rings[0].clone();
    let mut isrs = Vec::new();
    for round in 0..10u16 {
        // used_event: an interrupt when the used index passes 3, then 7.
        let event: u16 = if round < 4 { 3 } else { 7 };
        crate::testkit::put(&machine.mem, ring.avail + 4 + 16, &event.to_le_bytes());
        driver.add(&machine, 0, &[(0x1000, 16, true)]);
        driver.notify(&mut machine, 0);
        isrs.push(driver.isr(&mut machine));
        let avail_event = bytes(&machine.mem, ring.used + 4 + 64, 2);
        assert_eq!(
            avail_event,
            (round + 1).to_le_bytes(),
            "notify me of the next one"
        );
    }
    assert_eq!(isrs, [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]);
}

#[test]
fn the_ring_indexes_wrap() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, ENTROPY, 2, EVENT_IDX);
    for _ in 0..70_000 {
        driver.add(&machine, 0, &[(0x1000, 1, true)]);
        driver.notify(&mut machine, 0);
        assert_eq!(driver.used(&machine, 0).len(), 1);
    }
    assert_eq!(driver.status(&mut machine), 15);
}
