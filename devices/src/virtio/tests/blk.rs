use crate::testkit::{Driver, Machine, bytes, put};
use crate::{Board, DeliverError, DiskOp, DiskRequest, DiskStatus, Input, Output};

const DISK: u32 = 3;
const HEADER: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
const STATUS: u64 = 0x2_1000;

/// Puts a request's header at slot `n`.
fn header(machine: &Machine, n: u64, kind: u32, sector: u64) -> u64 {
    let at = HEADER + 16 * n;
    put(&machine.mem, at, &u64::from(kind).to_le_bytes());
    put(&machine.mem, at + 8, &sector.to_le_bytes());
    put(&machine.mem, STATUS + n, &[0xee]);
    at
}

fn read(machine: &Machine, driver: &mut Driver, n: u64, sector: u64, len: u32) -> u16 {
    let header = header(machine, n, 0, sector);
    let data = DATA + n * 0x1000;
    driver.add(
        machine,
        0,
        &[
            (header, 16, false),
            (data, len, true),
            (STATUS + n, 1, true),
        ],
    )
}

fn write(machine: &Machine, driver: &mut Driver, n: u64, sector: u64, data: &[u8]) -> u16 {
    let header = header(machine, n, 1, sector);
    let at = DATA + n * 0x1000;
    put(&machine.mem, at, data);
    let len = data.len() as u32;
    driver.add(
        machine,
        0,
        &[(header, 16, false), (at, len, false), (STATUS + n, 1, true)],
    )
}

fn done(id: u64, data: Vec<u8>) -> Input {
    Input::DiskDone {
        id,
        status: DiskStatus::Ok,
        data,
    }
}

fn requests(machine: &mut Machine) -> Vec<DiskRequest> {
    machine
        .outputs()
        .into_iter()
        .map(|output| match output {
            Output::Disk(request) => request,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn reads_reach_memory_only_when_delivered() {
    let mut machine = Machine::new();
    machine.init_pic();
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    read(&machine, &mut driver, 0, 5, 1024);
    driver.notify(&mut machine, 0);
    let read = DiskRequest {
        id: 1,
        op: DiskOp::Read,
        sector: 5,
        len: 1024,
    };
    assert_eq!(
        requests(&mut machine).as_slice(),
        std::slice::from_ref(&read)
    );
    assert_eq!(machine.board.pending_disk(), [read]);
    assert_eq!(machine.board.pending_request(1).map(|r| r.len), Some(1024));
    assert_eq!(machine.board.pending_request(2), None);
    assert!(driver.used(&machine, 0).is_empty());
    assert!(!machine.board.interrupt_pending());
    machine.deliver(done(1, vec![0xab; 1024]));
    assert_eq!(driver.used(&machine, 0), [(0, 1025)]);
    assert_eq!(bytes(&machine.mem, DATA, 1024), [0xab; 1024]);
    assert_eq!(bytes(&machine.mem, STATUS, 1), [0]);
    assert_eq!(machine.board.acknowledge_interrupt(), 0x25);
    assert!(machine.board.pending_disk().is_empty());
}

#[test]
fn writes_leave_memory_when_issued() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    write(&machine, &mut driver, 0, 7, &[1; 512]);
    driver.notify(&mut machine, 0);
    put(&machine.mem, DATA, &[2; 512]);
    let expect = DiskRequest {
        id: 1,
        op: DiskOp::Write(vec![1; 512]),
        sector: 7,
        len: 512,
    };
    assert_eq!(
        requests(&mut machine).as_slice(),
        std::slice::from_ref(&expect)
    );
    assert_eq!(
        machine.board.pending_disk(),
        [expect],
        "and are issued again as they were"
    );
    machine.deliver(Input::DiskDone {
        id: 1,
        status: DiskStatus::IoError,
        data: vec![],
    });
    assert_eq!(driver.used(&machine, 0), [(0, 1)]);
    assert_eq!(bytes(&machine.mem, STATUS, 1), [1]);
}

#[test]
fn completions_come_in_any_order_and_batches_in_one_notification() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    let heads: Vec<u16> = (0..8)
        .map(|n| read(&machine, &mut driver, n, n, 512))
        .collect();
    driver.notify(&mut machine, 0);
    assert_eq!(
        requests(&mut machine)
            .iter()
            .map(|r| r.id)
            .collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
    for id in [3, 1, 8] {
        machine.deliver(done(id, vec![id as u8; 512]));
    }
    let used: Vec<u32> = driver
        .used(&machine, 0)
        .iter()
        .map(|(head, _)| *head)
        .collect();
    assert_eq!(used, [3, 1, 8].map(|id: usize| u32::from(heads[id - 1])));
    assert_eq!(bytes(&machine.mem, DATA + 7 * 0x1000, 1), [8]);
    let pending: Vec<u64> = machine.board.pending_disk().iter().map(|r| r.id).collect();
    assert_eq!(pending, [2, 4, 5, 6, 7]);
}

#[test]
fn flush_discard_zeroes_and_id() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    let at = header(&machine, 0, 4, 0);
    driver.add(&machine, 0, &[(at, 16, false), (STATUS, 1, true)]);
    for (n, kind, flags) in [(1, 11, 0u32), (2, 13, 1)] {
        let at = header(&machine, n, kind, 0);
        let range = DATA + n * 0x1000;
        put(&machine.mem, range, &100u64.to_le_bytes());
        put(&machine.mem, range + 8, &8u32.to_le_bytes());
        put(&machine.mem, range + 12, &flags.to_le_bytes());
        driver.add(
            &machine,
            0,
            &[(at, 16, false), (range, 16, false), (STATUS + n, 1, true)],
        );
    }
    let at = header(&machine, 3, 8, 0);
    driver.add(
        &machine,
        0,
        &[(at, 16, false), (DATA, 20, true), (STATUS + 3, 1, true)],
    );
    driver.notify(&mut machine, 0);
    assert_eq!(
        requests(&mut machine),
        [
            DiskRequest {
                id: 1,
                op: DiskOp::Flush,
                sector: 0,
                len: 0
            },
            DiskRequest {
                id: 2,
                op: DiskOp::Discard,
                sector: 100,
                len: 4096
            },
            DiskRequest {
                id: 3,
                op: DiskOp::WriteZeroes,
                sector: 100,
                len: 4096
            },
        ]
    );
    assert_eq!(
        driver.used(&machine, 0).len(),
        1,
        "the ID is answered at once"
    );
    assert_eq!(bytes(&machine.mem, DATA, 20), *b"lockstep-disk-0\0\0\0\0\0");
    machine.deliver(Input::DiskDone {
        id: 2,
        status: DiskStatus::Unsupported,
        data: vec![],
    });
    assert_eq!(bytes(&machine.mem, STATUS + 1, 1), [2]);
}

#[test]
fn senseless_requests_are_answered_with_a_status() {
    const IO_ERROR: u8 = 1;
    const UNSUPPORTED: u8 = 2;
    let cases: &[(u32, u64, u32, u8)] = &[
        (0, 2048, 512, IO_ERROR),
        (0, 2047, 1024, IO_ERROR),
        (0, u64::MAX, 512, IO_ERROR),
        (0, 0, 513, IO_ERROR),
        (8 + 100, 0, 512, UNSUPPORTED),
        (2, 0, 512, UNSUPPORTED),
        (11, 0, 512, IO_ERROR),
    ];
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    for (n, (kind, sector, len, status)) in (0..).zip(cases) {
        let at = header(&machine, n, *kind, *sector);
        driver.add(
            &machine,
            0,
            &[(at, 16, false), (DATA, *len, true), (STATUS + n, 1, true)],
        );
        driver.notify(&mut machine, 0);
        assert_eq!(bytes(&machine.mem, STATUS + n, 1), [*status], "case {n}");
        assert_eq!(driver.used(&machine, 0).len(), 1);
    }
    let at = header(&machine, 20, 1, 0);
    driver.add(&machine, 0, &[(at, 16, false), (STATUS + 20, 1, true)]);
    driver.notify(&mut machine, 0);
    assert_eq!(
        bytes(&machine.mem, STATUS + 20, 1),
        [IO_ERROR],
        "a write of nothing"
    );
    assert!(!machine.board.has_outputs());
    assert_eq!(driver.status(&mut machine), 15);
}

#[test]
fn chains_may_be_cut_anywhere() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    let at = header(&machine, 0, 0, 3);
    // The header in two parts; data and status byte in one buffer, and in three.
    driver.add(
        &machine,
        0,
        &[(at, 5, false), (at + 5, 11, false), (DATA, 513, true)],
    );
    driver.add(
        &machine,
        0,
        &[
            (at, 16, false),
            (DATA + 0x1000, 100, true),
            (DATA + 0x2000, 412, true),
            (STATUS, 1, true),
        ],
    );
    driver.notify(&mut machine, 0);
    let data: Vec<u8> = (0..512).map(|index| index as u8).collect();
    machine.deliver(done(1, data.clone()));
    machine.deliver(done(2, data.clone()));
    assert_eq!(driver.used(&machine, 0), [(0, 513), (3, 513)]);
    assert_eq!(
        bytes(&machine.mem, DATA, 513),
        [data.as_slice(), &[0]].concat()
    );
    assert_eq!(bytes(&machine.mem, DATA + 0x1000, 100), data[..100]);
    assert_eq!(bytes(&machine.mem, DATA + 0x2000, 412), data[100..]);
}

#[test]
fn completions_that_fit_nothing_are_refused_and_change_nothing() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    read(&machine, &mut driver, 0, 0, 512);
    driver.notify(&mut machine, 0);
    let before = machine.board.clone();
    for (id, len) in [(1, 511), (1, 0), (2, 512)] {
        let refused = machine.board.deliver(&machine.mem, done(id, vec![0; len]));
        match id {
            1 => assert_eq!(
                refused,
                Err(DeliverError::DataLength {
                    id,
                    want: 512,
                    got: len
                })
            ),
            _ => assert_eq!(refused, Err(DeliverError::UnknownRequest(id))),
        }
        assert_eq!(machine.board, before);
    }
}

#[test]
fn requests_after_a_reset_wait_for_those_before_it() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    write(&machine, &mut driver, 0, 9, &[1; 512]);
    driver.notify(&mut machine, 0);
    assert_eq!(requests(&mut machine).len(), 1);
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    write(&machine, &mut driver, 0, 9, &[2; 512]);
    driver.notify(&mut machine, 0);
    assert!(
        requests(&mut machine).is_empty(),
        "the old write could land on the new one"
    );
    let pending: Vec<u64> = machine.board.pending_disk().iter().map(|r| r.id).collect();
    assert_eq!(pending, [1], "only what was output is issued again");
    let early = machine.board.deliver(&machine.mem, done(2, vec![]));
    assert_eq!(early, Err(DeliverError::UnknownRequest(2)));
    machine.deliver(done(1, vec![]));
    assert_eq!(
        requests(&mut machine)
            .iter()
            .map(|r| r.id)
            .collect::<Vec<_>>(),
        [2]
    );
    assert!(
        driver.used(&machine, 0).is_empty(),
        "nobody hears of the old one"
    );
    machine.deliver(done(2, vec![]));
    assert_eq!(driver.used(&machine, 0).len(), 1);
}

#[test]
fn a_machine_reset_keeps_what_is_on_its_way() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    write(&machine, &mut driver, 0, 9, &[1; 512]);
    driver.notify(&mut machine, 0);
    machine.board.reset();
    assert_eq!(machine.board.pending_disk().len(), 1);
    assert_eq!(machine.outputs().len(), 1);
    machine.deliver(done(1, vec![]));
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    read(&machine, &mut driver, 0, 0, 512);
    driver.notify(&mut machine, 0);
    assert_eq!(requests(&mut machine)[0].id, 2, "identifiers go on");
}

#[test]
fn the_data_on_their_way_are_bounded() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, DISK, 256, 0);
    // 1 MiB each, all from the same megabyte of memory.
    for n in 0..64 {
        let at = header(&machine, n, 1, 0);
        driver.add(
            &machine,
            0,
            &[(at, 16, false), (0, 1 << 20, false), (STATUS + n, 1, true)],
        );
    }
    driver.notify(&mut machine, 0);
    assert_eq!(requests(&mut machine).len(), 32);
    for id in 1..=32 {
        machine.deliver(done(id, vec![]));
    }
    assert_eq!(requests(&mut machine).len(), 32, "completions make room");
}

#[test]
fn state_saved_with_requests_on_their_way_goes_on_alike() {
    let mut machine = Machine::new();
    let mut driver = Driver::start(&mut machine, DISK, 64, 0);
    read(&machine, &mut driver, 0, 1, 512);
    write(&machine, &mut driver, 1, 2, &[5; 512]);
    driver.notify(&mut machine, 0);
    let saved = postcard::to_stdvec(&machine.board).unwrap();
    let restored: Board = postcard::from_bytes(&saved).unwrap();
    assert_eq!(restored, machine.board);
    let mut copy = Machine::new();
    put(
        &copy.mem,
        0,
        &bytes(&machine.mem, 0, crate::testkit::RAM as usize),
    );
    copy.board = restored;
    for machine in [&mut machine, &mut copy] {
        machine.outputs();
        machine.deliver(done(1, vec![3; 512]));
        machine.deliver(done(2, vec![]));
    }
    assert_eq!(machine.board, copy.board);
    assert_eq!(driver.used(&copy, 0).len(), 2);
    assert_eq!(
        bytes(&copy.mem, 0, crate::testkit::RAM as usize),
        bytes(&machine.mem, 0, crate::testkit::RAM as usize)
    );
}
