//! What a guest can write into a queue, from known attacks to random bytes.
//!
//! Proptest prints the failing case and keeps its seed in `proptest-regressions/`; run
//! `cargo test --release -p devices hostile` to repeat it, with `PROPTEST_CASES=n` for more cases.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::testkit::{Driver, EVENT_IDX, Machine, NEXT, RAM, WRITE, put};
use crate::{Board, DiskStatus, Input, Output};

const DISK: u32 = 3;
const ENTROPY: u32 = 4;
const INDIRECT: u16 = 4;
const NEEDS_RESET: u64 = 64;
const STATUS_UP: u64 = 15;

/// Offers the chain whose descriptors are these, from index 0 on, to a device.
fn offer(slot: u32, queue: usize, descriptors: &[(u64, u32, u16, u16)]) -> (Machine, Driver) {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, slot, 8, 0);
    for (index, descriptor) in (0..).zip(descriptors) {
        driver.descriptor(&machine, queue, index, *descriptor);
    }
    driver.offer(&machine, queue, 0);
    driver.notify(&mut machine, queue);
    (machine, driver)
}

#[test]
fn known_attacks_stop_the_device_and_a_reset_heals_it() {
    let chains: &[&[(u64, u32, u16, u16)]] = &[
        // Loops, of one and of two.
        &[(0x1000, 16, NEXT, 0)],
        &[(0x1000, 16, NEXT, 1), (0x1000, 16, NEXT, 0)],
        // Next beyond the table.
        &[(0x1000, 16, NEXT, 8)],
        &[(0x1000, 16, NEXT, 0xffff)],
        // No length; buffers outside memory, across its end, and around the end of addresses.
        &[(0x1000, 0, 0, 0)],
        &[(0xc000_0000, 16, WRITE, 0)],
        &[(RAM - 8, 16, WRITE, 0)],
        &[(u64::MAX - 7, 16, WRITE, 0)],
        &[(0x1000, u32::MAX, WRITE, 0)],
        // An indirect table, alone and with a next.
        &[(0x1000, 16, INDIRECT, 0)],
        &[(0x1000, 16, INDIRECT | NEXT, 1), (0x1000, 16, WRITE, 0)],
        // A buffer to read after one to write.
        &[(0x1000, 16, WRITE | NEXT, 1), (0x1000, 16, 0, 0)],
    ];
    for (slot, queues) in [(2, 2), (DISK, 1), (ENTROPY, 1), (5, 2)] {
        for queue in 0..queues {
            for chain in chains {
                let (mut machine, driver) = offer(slot, queue, chain);
                if (slot, queue) == (2, 0) || (slot, queue) == (5, 0) {
                    // Receive queues look when there is something to receive.
                    machine.deliver(Input::NetReceive(vec![0; 60]));
                    machine.deliver(Input::ConsoleInput(vec![0]));
                }
                let status = driver.status(&mut machine);
                assert_eq!(
                    status,
                    STATUS_UP | NEEDS_RESET,
                    "slot {slot} {queue} {chain:x?}"
                );
                assert_eq!(driver.isr(&mut machine) & 2, 2, "a configuration interrupt");
                assert!(!machine.board.has_outputs());
                assert_eq!(machine.board.counters().virtio_faults, 1);
                driver.notify(&mut machine, queue);
                assert_eq!(
                    machine.board.counters().virtio_faults,
                    1,
                    "it stays stopped"
                );
                let healed = Driver::start(&mut machine, slot, 8, 0);
                assert_eq!(healed.status(&mut machine), STATUS_UP);
            }
        }
    }
}

#[test]
fn buffers_of_the_wrong_direction_stop_the_device() {
    for (slot, queue, flags) in [(2, 0, 0), (2, 1, WRITE), (DISK, 0, 0), (DISK, 0, WRITE)] {
        let (mut machine, driver) = offer(slot, queue, &[(0x1000, 2000, flags, 0)]);
        machine.deliver(Input::NetReceive(vec![0; 60]));
        assert_eq!(
            driver.status(&mut machine) & NEEDS_RESET,
            NEEDS_RESET,
            "{slot} {queue} {flags}"
        );
    }
    for (slot, queue, flags) in [(ENTROPY, 0, 0), (5, 0, 0), (5, 1, WRITE)] {
        let (mut machine, driver) = offer(slot, queue, &[(0x1000, 16, flags, 0)]);
        machine.deliver(Input::ConsoleInput(vec![0]));
        assert_eq!(
            driver.status(&mut machine) & NEEDS_RESET,
            NEEDS_RESET,
            "{slot} {queue} {flags}"
        );
    }
}

#[test]
fn an_available_index_beyond_the_queue_stops_the_device() {
    let mut machine = Machine::new();
    let driver = Driver::start(&mut machine, ENTROPY, 8, 0);
    put(&machine.mem, driver.rings[0].avail + 2, &9u16.to_le_bytes());
    driver.notify(&mut machine, 0);
    assert_eq!(driver.status(&mut machine), STATUS_UP | NEEDS_RESET);
}

#[test]
fn a_request_offered_twice_stops_the_disk() {
    let (mut machine, mut driver) = offer(
        DISK,
        0,
        &[
            (0x1000, 16, NEXT, 1),
            (0x2000, 512, NEXT | WRITE, 2),
            (0x3000, 1, WRITE, 0),
        ],
    );
    assert_eq!(machine.outputs().len(), 1);
    driver.offer(&machine, 0, 0);
    driver.notify(&mut machine, 0);
    assert_eq!(driver.status(&mut machine), STATUS_UP | NEEDS_RESET);
    // The completion of the first one finds the device stopped.
    machine.deliver(Input::DiskDone {
        id: 1,
        status: DiskStatus::Ok,
        data: vec![1; 512],
    });
    assert!(driver.used(&machine, 0).is_empty());
}

/// One thing that a hostile guest, or the outside, does.
#[derive(Clone, Debug)]
enum Step {
    Descriptor {
        slot: u8,
        queue: u8,
        index: u16,
        addr: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    Offer {
        slot: u8,
        queue: u8,
        head: u16,
    },
    AvailIndex {
        slot: u8,
        queue: u8,
        index: u16,
    },
    Notify {
        slot: u8,
        queue: u8,
    },
    Mmio {
        offset: u64,
        size: u8,
        value: u64,
    },
    Config {
        slot: u8,
        offset: u8,
        value: u32,
    },
    Port {
        port: u16,
        size: u8,
        value: u32,
    },
    /// What a well-behaved driver would offer.
    Sound {
        slot: u8,
        queue: u8,
        sector: u64,
    },
    Restart {
        slot: u8,
    },
    Frame {
        len: usize,
    },
    Complete {
        index: usize,
        ok: bool,
    },
    Input {
        len: usize,
    },
    Time {
        ns: u64,
    },
}

/// Numbers that matter to ring code, mixed with any.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..RAM,
        1 => RAM - 0x1000..RAM + 0x1000,
        1 => Just(u64::MAX - 15),
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(16),
        Just(512),
        Just(1526),
        0..0x3000u32,
        any::<u32>()
    ]
}

fn index() -> impl Strategy<Value = u16> {
    prop_oneof![8 => 0..8u16, 1 => any::<u16>()]
}

fn step() -> impl Strategy<Value = Step> {
    let device = (2..6u8, 0..2u8);
    let flags = prop_oneof![9 => 0..4u16, 1 => any::<u16>()];
    let ports = prop_oneof![
        Just(0x20u16),
        Just(0x21),
        Just(0xa0),
        Just(0xa1),
        Just(0x4d0),
        Just(0x4d1),
        0x40..0x44u16,
        Just(0x60),
        Just(0x61),
        Just(0x64),
        Just(0x70),
        Just(0x71),
        Just(0x92),
        Just(0xcf9),
        0x3f8..0x400u16,
        0xcf8..0xd00u16,
        Just(0x604),
        any::<u16>()
    ];
    prop_oneof![
        6 => (device.clone(), index(), address(), length(), flags, index()).prop_map(
            |((slot, queue), index, addr, len, flags, next)| Step::Descriptor {
                slot, queue, index, addr, len, flags, next
            }
        ),
        4 => (device.clone(), index())
            .prop_map(|((slot, queue), head)| Step::Offer { slot, queue, head }),
        1 => (device.clone(), any::<u16>())
            .prop_map(|((slot, queue), index)| Step::AvailIndex { slot, queue, index }),
        6 => device.prop_map(|(slot, queue)| Step::Notify { slot, queue }),
        2 => (0..0x6_0000u64, 1..9u8, any::<u64>())
            .prop_map(|(offset, size, value)| Step::Mmio { offset, size, value }),
        1 => (0..7u8, any::<u8>(), any::<u32>())
            .prop_map(|(slot, offset, value)| Step::Config { slot, offset, value }),
        3 => (ports, prop_oneof![Just(1u8), Just(2), Just(4)], any::<u32>())
            .prop_map(|(port, size, value)| Step::Port { port, size, value }),
        8 => (2..6u8, 0..2u8, 0..3000u64)
            .prop_map(|(slot, queue, sector)| Step::Sound { slot, queue, sector }),
        2 => (2..6u8).prop_map(|slot| Step::Restart { slot }),
        2 => (0..2000usize).prop_map(|len| Step::Frame { len }),
        2 => (0..8usize, any::<bool>()).prop_map(|(index, ok)| Step::Complete { index, ok }),
        1 => (0..300usize).prop_map(|len| Step::Input { len }),
        2 => prop_oneof![0..100_000_000u64, any::<u64>()].prop_map(|ns| Step::Time { ns }),
    ]
}

/// Offers and notifies what the device of a slot expects in a queue.
fn sound(machine: &mut Machine, driver: &mut Driver, slot: u8, queue: usize, sector: u64) {
    let at = 0x4_0000 + sector * 64;
    match u32::from(slot) {
        DISK => {
            put(&machine.mem, at, &(sector & 1).to_le_bytes());
            put(&machine.mem, at + 8, &sector.to_le_bytes());
            let read = sector & 1 == 0;
            let buffers = [(at, 16, false), (at + 1024, 512, read), (at + 32, 1, true)];
            driver.add(machine, queue, &buffers);
        }
        ENTROPY => drop(driver.add(machine, queue, &[(at, 64, true)])),
        _ => drop(driver.add(machine, queue, &[(at, 1526, queue == 0)])),
    }
    driver.notify(machine, queue);
}

/// A machine with all four devices up and the requests that the disk has seen.
struct Rig {
    machine: Machine,
    drivers: Vec<Driver>,
    requests: Vec<crate::DiskRequest>,
    outputs: Vec<Output>,
}

impl Rig {
    fn new() -> Self {
        let mut machine = Machine::new();
        machine.init_pic();
        let drivers = (2..6)
            .map(|slot| Driver::start(&mut machine, slot, 8, EVENT_IDX))
            .collect();
        Self {
            machine,
            drivers,
            requests: Vec::new(),
            outputs: Vec::new(),
        }
    }

    fn apply(&mut self, step: &Step) {
        let machine = &mut self.machine;
        let queue_of = |drivers: &[Driver], slot: u8, queue: u8| {
            usize::from(queue).min(drivers[usize::from(slot - 2)].rings.len() - 1)
        };
        match *step {
            Step::Descriptor {
                slot,
                queue,
                index,
                addr,
                len,
                flags,
                next,
            } => {
                let queue = queue_of(&self.drivers, slot, queue);
                let driver = &self.drivers[usize::from(slot - 2)];
                driver.descriptor(machine, queue, index % 8, (addr, len, flags, next));
            }
            Step::Offer { slot, queue, head } => {
                let queue = queue_of(&self.drivers, slot, queue);
                self.drivers[usize::from(slot - 2)].offer(machine, queue, head);
            }
            Step::AvailIndex { slot, queue, index } => {
                let queue = queue_of(&self.drivers, slot, queue);
                let at = self.drivers[usize::from(slot - 2)].rings[queue].avail + 2;
                put(&machine.mem, at, &index.to_le_bytes());
            }
            Step::Notify { slot, queue } => {
                self.drivers[usize::from(slot - 2)]
                    .notify(machine, queue_of(&self.drivers, slot, queue));
            }
            Step::Mmio {
                offset,
                size,
                value,
            } => {
                machine.write(0xc000_0000 + offset, size, value);
                machine.read(0xc000_0000 + offset, size);
            }
            Step::Config {
                slot,
                offset,
                value,
            } => {
                machine.set_config(slot.into(), u32::from(offset & 0xfc), value);
                machine.config(slot.into(), u32::from(offset & 0xfc));
            }
            Step::Port { port, size, value } => {
                machine.out(port, size, value);
                machine.inp(port, size);
            }
            Step::Sound {
                slot,
                queue,
                sector,
            } => {
                let queue = queue_of(&self.drivers, slot, queue);
                sound(
                    machine,
                    &mut self.drivers[usize::from(slot - 2)],
                    slot,
                    queue,
                    sector,
                );
            }
            Step::Restart { slot } => {
                machine.set_config(slot.into(), 0x10, 0xc000_0000 + u32::from(slot) * 0x1_0000);
                machine.set_config(slot.into(), 0x14, 0);
                machine.set_config(slot.into(), 4, 6);
                self.drivers[usize::from(slot - 2)] =
                    Driver::start(machine, slot.into(), 8, EVENT_IDX);
            }
            Step::Frame { len } => {
                let refused = machine
                    .board
                    .deliver(&machine.mem, Input::NetReceive(vec![7; len]));
                assert_eq!(refused.is_err(), len < 14);
            }
            Step::Complete { index, ok } => {
                let Some(request) = self.requests.get(index).cloned() else {
                    return;
                };
                self.requests.remove(index);
                let read = matches!(request.op, crate::DiskOp::Read) && ok;
                let data = if read {
                    vec![3; request.len as usize]
                } else {
                    Vec::new()
                };
                let status = if ok {
                    DiskStatus::Ok
                } else {
                    DiskStatus::IoError
                };
                machine.deliver(Input::DiskDone {
                    id: request.id,
                    status,
                    data,
                });
            }
            Step::Input { len } => {
                machine.deliver(Input::ConsoleInput(vec![1; len]));
                machine.deliver(Input::SerialInput(vec![2; len]));
            }
            Step::Time { ns } => {
                machine.now = machine.now.saturating_add(ns);
                machine.board.advance(machine.now);
                machine.board.next_deadline();
            }
        }
        self.after();
    }

    fn after(&mut self) {
        let machine = &mut self.machine;
        if machine.board.interrupt_pending() {
            machine.board.acknowledge_interrupt();
        }
        machine.board.can_receive(&machine.mem);
        for output in machine.outputs() {
            if let Output::Disk(request) = &output {
                self.requests.push(request.clone());
            }
            self.outputs.push(output);
        }
        let ids =
            |requests: &[crate::DiskRequest]| requests.iter().map(|r| r.id).collect::<Vec<_>>();
        assert_eq!(ids(&machine.board.pending_disk()), ids(&self.requests));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Nothing panics, and a board that is saved and restored in the middle, on a machine with the
    /// same memory, goes on exactly alike.
    #[test]
    fn anything_goes_and_replays(steps in vec(step(), 1..120), cut in 0..120usize) {
        let mut one = Rig::new();
        let mut two = Rig::new();
        for (index, step) in steps.iter().enumerate() {
            one.apply(step);
            two.apply(step);
            if index == cut {
                let saved = postcard::to_stdvec(&two.machine.board).unwrap();
                two.machine.board = postcard::from_bytes::<Board>(&saved).unwrap();
            }
        }
        prop_assert_eq!(&one.outputs, &two.outputs);
        prop_assert!(one.machine.board == two.machine.board);
        let all = |rig: &Rig| crate::testkit::bytes(&rig.machine.mem, 0, RAM as usize);
        prop_assert!(all(&one) == all(&two), "memory differs");
    }

    /// A damaged state is refused or works; it never panics.
    #[test]
    fn damaged_states_do_not_panic(
        steps in vec(step(), 1..40),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        then in vec(step(), 1..40),
    ) {
        let mut rig = Rig::new();
        steps.iter().for_each(|step| rig.apply(step));
        let mut saved = postcard::to_stdvec(&rig.machine.board).unwrap();
        for (at, value) in damage {
            let at = at.index(saved.len());
            saved[at] = value;
        }
        if let Ok(board) = postcard::from_bytes::<Board>(&saved) {
            rig.machine.board = board;
            for step in &then {
                // Requests that the damaged state does not know are refused, and a driver that
                // expects a sound device is not for it.
                if !matches!(step, Step::Complete { .. } | Step::Restart { .. }) {
                    rig.apply_unchecked(step);
                }
            }
        }
    }
}

impl Rig {
    /// `apply` for a state whose list of requests is its own affair.
    fn apply_unchecked(&mut self, step: &Step) {
        self.requests = self.machine.board.pending_disk();
        self.machine.outputs();
        match step {
            Step::Frame { .. } => {}
            // The damage may have taken the device.
            Step::Input { len } => {
                let (machine, input) = (&mut self.machine, Input::ConsoleInput(vec![1; *len]));
                let _ = machine.board.deliver(&machine.mem, input);
            }
            _ => self.apply(step),
        }
    }
}
