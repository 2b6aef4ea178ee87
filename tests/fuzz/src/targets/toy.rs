//! What several targets' samples are made of: a header, a view, a log of every kind of entry.

use bytes::Bytes;
use ftlog::codec::{Hello, LogEncoder, Message, encode};
use ftlog::{
    Control, CountUnit, Entry, Event, Header, MarkKind, PageBlock, Position, Region, ReplicaId,
    View, VmId, digest,
};

pub const VM: VmId = VmId([7; 16]);
pub const PRIMARY: ReplicaId = ReplicaId(1);
pub const BACKUP: ReplicaId = ReplicaId(2);
/// What every output of the toy guest is.
pub const OUTPUT: &[u8] = b"output";

/// Three pages: two of one byte, one of zeros.
static PAGES: [u8; 3 * 4096] = {
    let mut pages = [0x5a; 3 * 4096];
    let mut at = 4096;
    while at < 2 * 4096 {
        pages[at] = 0;
        at += 1;
    }
    pages
};

pub fn view() -> View {
    View {
        number: 1,
        primary: PRIMARY,
        backup: Some(BACKUP),
    }
}

pub fn header() -> Header {
    Header {
        vm: VM,
        view: 1,
        build: "0.1.0+5eed".into(),
        engine: "toy".into(),
        counts: CountUnit::Instructions,
        cpuid: 1,
        memory: vec![Region {
            base: 0,
            len: 1 << 24,
        }],
        board: 2,
        host_math: 3,
        initial_state: 4,
        start: Position::default(),
        start_clock_ns: 0,
    }
}

pub fn hello(replica: ReplicaId) -> Hello {
    Hello {
        replica,
        header: header(),
    }
}

pub fn at(count: u64) -> Position {
    Position {
        count,
        rip: 0xffff_ffff_8100_0000 + count,
        rcx: count % 7,
    }
}

/// One entry of each kind, in order of position.
pub fn entries() -> Vec<Entry> {
    let data = Bytes::from_static(&[0x5a; 90]);
    let events = [
        Event::Timer,
        Event::NetReceive(data.clone()),
        Event::DiskDone {
            id: 1,
            status: 0,
            data: Some(data.clone()),
        },
        Event::DiskDone {
            id: 2,
            status: 1,
            data: None,
        },
        Event::ConsoleInput(data.slice(..3)),
        Event::SerialInput(data.slice(..3)),
        Event::Timer,
        Event::Control(Control::Reset),
        Event::GoLive { view: 2 },
    ];
    let mut entries = Vec::new();
    for (n, event) in (1..).zip(events) {
        let count = n * 1000;
        entries.push(Entry::Event {
            at: at(count),
            clock_ns: count * 3,
            event,
        });
        entries.push(Entry::Mark {
            at: at(count + 10),
            ordinal: n - 1,
            kind: [MarkKind::Net, MarkKind::DiskWrite, MarkKind::Console][n as usize % 3],
            digest: digest(OUTPUT),
        });
        entries.push(Entry::Progress { at: at(count + 20) });
        entries.push(Entry::Hash {
            at: at(count + 20),
            registers: 1,
            memory: (n % 2 == 0).then_some(2),
            devices: 3,
        });
        let frames = [n, n + 2, 1 << (5 * n)];
        let pages = PageBlock::pack(&frames[..n as usize % 4], &PAGES[..n as usize % 4 * 4096]);
        entries.push(Entry::Pages {
            at: at(count + 20),
            pages,
        });
        entries.push(Entry::Stretch {
            at: at(count + 21),
            interrupts: n as u32 % 3,
            cpu: data.clone(),
        });
    }
    entries
}

/// The frames of a log with these entries, `each` to a frame.
pub fn frames(header: &Header, entries: &[Entry], each: usize) -> Vec<Bytes> {
    let mut encoder = LogEncoder::new(header);
    let mut frames = Vec::new();
    for chunk in entries.chunks(each) {
        for entry in chunk {
            encoder.push(entry).expect("entries that fit the header");
        }
        frames.extend(encoder.take_frames());
    }
    frames
}

/// A whole log: the hello and the frames.
pub fn log(hello: &Hello, entries: &[Entry], each: usize) -> Vec<u8> {
    let mut bytes = encode(&Message::Hello(Box::new(hello.clone()))).to_vec();
    for frame in frames(&hello.header, entries, each) {
        bytes.extend_from_slice(&frame);
    }
    bytes
}

/// Makes the checksums of frames right, so that an input gets past them. What comes after the last
/// whole frame stays as it is.
pub fn repair(stream: &mut [u8]) {
    let mut rest = stream;
    while let Some((head, body)) = rest.split_first_chunk_mut::<8>() {
        let [a, b, c, d, sum @ ..] = head;
        let len = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let Some((body, after)) = body.split_at_mut_checked(len) else {
            return;
        };
        *sum = crc32c::crc32c(body).to_le_bytes();
        rest = after;
    }
}
