use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::codec::header::{CountUnit, Header, Region};
use crate::stretch::{BLOCK_PAGES_MAX, CPU_BYTES_MAX, PAGE_BYTES};
use crate::{Control, Entry, EntryKind, Event, MarkKind, PageBlock, Position, ReplicaId, VmId};

pub(crate) fn header() -> Header {
    Header {
        vm: VmId([7; 16]),
        view: 1,
        build: "0.1.0+5eed".into(),
        engine: "soft".into(),
        counts: CountUnit::Instructions,
        cpuid: 1,
        memory: vec![Region {
            base: 0,
            len: 512 << 20,
        }],
        board: 2,
        host_math: 3,
        initial_state: 4,
        start: Position::new(1000, 0xffff_ffff_8100_0000, 5),
        start_clock_ns: 77,
    }
}

fn hello() -> Hello {
    Hello {
        replica: ReplicaId(3),
        header: header(),
    }
}

fn event_strategy() -> impl Strategy<Value = Event> {
    let data = || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    prop_oneof![
        4 => Just(Event::Timer),
        2 => data().prop_map(Event::NetReceive),
        2 => (any::<u64>(), any::<u8>(), prop::option::of(data()))
            .prop_map(|(id, status, data)| Event::DiskDone { id, status, data }),
        1 => data().prop_map(Event::ConsoleInput),
        1 => data().prop_map(Event::SerialInput),
        1 => prop_oneof![Just(Control::PowerOff), Just(Control::Reset)].prop_map(Event::Control),
        1 => any::<u64>().prop_map(|view| Event::GoLive { view }),
    ]
}

fn pages_strategy() -> impl Strategy<Value = PageBlock> {
    let page = (0..1u64 << 40, prop_oneof![Just(0), any::<u8>()]);
    prop::collection::btree_map(0..1u64 << 40, page, 0..5).prop_map(|pages| {
        let frames: Vec<u64> = pages.keys().copied().collect();
        let content: Vec<u8> = pages
            .values()
            .flat_map(|(step, byte)| (0..PAGE_BYTES as u64).map(move |i| byte & (i * step) as u8))
            .collect();
        PageBlock::pack(&frames, &content)
    })
}

/// Differences; made into entries with positions and clocks that never go back.
fn entries_strategy() -> impl Strategy<Value = Vec<Entry>> {
    let kind = prop_oneof![
        Just(MarkKind::Net),
        Just(MarkKind::DiskWrite),
        Just(MarkKind::Console),
        Just(MarkKind::Power)
    ];
    let step = prop_oneof![
        4 => (event_strategy(), 0..1u64 << 40).prop_map(|(event, clock_ns)| Entry::Event {
            at: Position::default(),
            clock_ns,
            event
        }),
        2 => (any::<u64>(), kind, any::<u32>()).prop_map(|(ordinal, kind, digest)| Entry::Mark {
            at: Position::default(),
            ordinal,
            kind,
            digest
        }),
        1 => Just(Entry::Progress { at: Position::default() }),
        1 => (any::<u64>(), any::<Option<u64>>(), any::<u64>()).prop_map(
            |(registers, memory, devices)| Entry::Hash {
                at: Position::default(),
                registers,
                memory,
                devices
            }
        ),
        1 => (any::<u32>(), prop::collection::vec(any::<u8>(), 0..2000)).prop_map(
            |(interrupts, cpu)| Entry::Stretch {
                at: Position::default(),
                interrupts,
                cpu: cpu.into()
            }
        ),
        2 => pages_strategy().prop_map(|pages| Entry::Pages { at: Position::default(), pages }),
    ];
    let at = (
        0..1u64 << 40,
        prop_oneof![Just(5), any::<u64>()],
        prop_oneof![Just(0), any::<u64>()],
    );
    prop::collection::vec((step, at), 0..60).prop_map(|steps| {
        let (mut count, mut clock) = (header().start.count, header().start_clock_ns);
        let mut in_stretch = false;
        let place = |(mut entry, (more, rip, rcx))| {
            if in_stretch && !matches!(entry, Entry::Pages { .. }) {
                // Nothing but its end can follow the pages of a stretch.
                let (at, cpu) = (Position::default(), Bytes::from_static(b"registers"));
                let interrupts = 1;
                entry = Entry::Stretch {
                    at,
                    interrupts,
                    cpu,
                };
            }
            count += match (in_stretch, &entry) {
                (true, Entry::Pages { .. }) => 0,
                (true, _) => 1,
                (false, _) => more,
            };
            in_stretch = matches!(entry, Entry::Pages { .. });
            match &mut entry {
                Entry::Event { at, clock_ns, .. } => {
                    *at = Position { count, rip, rcx };
                    clock += *clock_ns;
                    *clock_ns = clock;
                }
                Entry::Mark { at, .. }
                | Entry::Progress { at }
                | Entry::Hash { at, .. }
                | Entry::Pages { at, .. }
                | Entry::Stretch { at, .. } => {
                    *at = Position { count, rip, rcx };
                }
            }
            entry
        };
        steps.into_iter().map(place).collect()
    })
}

/// A whole stream, a new frame after each entry whose number is in `cuts`.
fn stream(entries: &[Entry], cuts: usize) -> Vec<u8> {
    let mut bytes = encode(&Message::Hello(Box::new(hello()))).to_vec();
    let mut encoder = LogEncoder::new(&header());
    for (i, entry) in entries.iter().enumerate() {
        assert_eq!(encoder.push(entry).unwrap(), i as u64);
        if i % cuts == 0 {
            encoder
                .take_frames()
                .for_each(|frame| bytes.extend_from_slice(&frame));
        }
    }
    encoder
        .take_frames()
        .for_each(|frame| bytes.extend_from_slice(&frame));
    bytes
}

fn decode_all(bytes: &[u8], piece: usize) -> Result<Vec<Message>, DecodeError> {
    let mut decoder = Decoder::for_log();
    let mut messages = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        while let Some(message) = decoder.next()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

fn entries_of(messages: Vec<Message>) -> Vec<Entry> {
    let entries = |m| {
        if let Message::Entries { entries, .. } = m {
            entries
        } else {
            vec![]
        }
    };
    messages.into_iter().flat_map(entries).collect()
}

proptest! {
    #[test]
    fn entries_round_trip(entries in entries_strategy(), cuts in 1..9usize, piece in 1..200usize) {
        let bytes = stream(&entries, cuts);
        let messages = decode_all(&bytes, piece).unwrap();
        prop_assert_eq!(&messages[0], &Message::Hello(Box::new(hello())));
        prop_assert_eq!(entries_of(messages), entries);
    }

    #[test]
    fn a_log_cut_anywhere_reads_to_its_last_whole_frame(
        entries in entries_strategy(), cut in any::<prop::sample::Index>()
    ) {
        let bytes = stream(&entries, 1);
        let head = encode(&Message::Hello(Box::new(hello()))).len();
        let cut = head + cut.index(bytes.len() - head + 1);
        let (_, read, tail) = read_log(&bytes[..cut]).unwrap();
        prop_assert_eq!(&read[..], &entries[..read.len()]);
        match tail {
            Tail::Whole => prop_assert!(stream(&read, 1).len() == cut),
            Tail::Truncated { bytes: n } => prop_assert_eq!(stream(&read, 1).len() + n, cut),
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_all(&bytes, 64);
        let _ = read_log(&bytes[..]);
    }

    /// Damage behind a right checksum gets past the frame layer into every parser.
    #[test]
    fn damaged_bodies_never_panic(
        entries in entries_strategy(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        frame_hit in any::<bool>(),
    ) {
        let hello = encode(&Message::Hello(Box::new(hello()))).to_vec();
        let mut frame = stream(&entries, usize::MAX)[hello.len()..].to_vec();
        let mut bytes = hello;
        let target = if frame_hit && frame.len() > FRAME_HEADER_BYTES { &mut frame } else { &mut bytes };
        for (at, byte) in hits {
            let at = FRAME_HEADER_BYTES + at.index(target.len() - FRAME_HEADER_BYTES);
            target[at] = byte;
        }
        let crc = crc32c::crc32c(&target[FRAME_HEADER_BYTES..]);
        target[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&frame);
        let _ = decode_all(&bytes, 4096);
    }

    #[test]
    fn messages_round_trip(
        reason in ".*", seqs in any::<[u32; 4]>(), id in any::<u64>()
    ) {
        let [a, b, c, d] = seqs.map(u64::from);
        let mut welcome = hello();
        welcome.replica = ReplicaId(id);
        for message in [
            Message::Welcome(Box::new(welcome)),
            Message::Refuse { reason },
            Message::Ack(Ack { received: a.max(b), executed: a.min(b), executed_count: c }),
            Message::Heartbeat { next_seq: c, released: d },
            Message::Bye(Bye::PoweredOff),
        ] {
            let mut decoder = Decoder::for_acks();
            decoder.feed(&encode(&message));
            prop_assert_eq!(decoder.next().unwrap(), Some(message));
            prop_assert_eq!(decoder.next().unwrap(), None);
        }
    }
}

/// Arbitrary tags behind a right checksum, many at a time: the entry parser alone.
#[test]
fn random_entry_bodies_never_panic() {
    use rand::{Rng, SeedableRng};
    let seed = std::env::var("SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("repeat with SEED={seed} cargo test --release -p ftlog");
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let hello = encode(&Message::Hello(Box::new(hello())));
    for _ in 0..20_000 {
        let mut body = vec![message::ENTRIES, 0, 0];
        body.extend((0..rng.random_range(0..60)).map(|_| rng.random::<u8>()));
        let mut bytes = hello.to_vec();
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(crc32c::crc32c(&body).to_le_bytes());
        bytes.extend(body);
        let _ = decode_all(&bytes, usize::MAX);
    }
}

#[test]
fn an_idle_timer_entry_is_small() {
    let mut encoder = LogEncoder::new(&header());
    let at = |n| Position {
        count: 1000 + n * 30_000,
        ..header().start
    };
    for n in 0..100 {
        let clock_ns = 77 + n * 4_000_000;
        encoder
            .push(&Entry::Event {
                at: at(n),
                clock_ns,
                event: Event::Timer,
            })
            .unwrap();
    }
    assert!(
        encoder.stats().bytes(EntryKind::Timer) <= 100 * 8,
        "{:?}",
        encoder.stats()
    );
}

#[test]
fn entries_that_go_back_are_refused_and_change_nothing() {
    let mut encoder = LogEncoder::new(&header());
    let at = Position {
        count: 2000,
        ..header().start
    };
    let timer = |clock_ns| Entry::Event {
        at,
        clock_ns,
        event: Event::Timer,
    };
    encoder.push(&timer(100)).unwrap();
    let back = Position { count: 1999, ..at };
    assert_eq!(
        encoder.push(&Entry::Progress { at: back }),
        Err(EncodeError::PositionBack {
            count: 1999,
            last: 2000
        })
    );
    assert_eq!(
        encoder.push(&timer(99)),
        Err(EncodeError::ClockBack {
            clock_ns: 99,
            last_ns: 100
        })
    );
    let event = Event::NetReceive(vec![0; NET_BYTES_MAX + 1].into());
    let long = encoder.push(&Entry::Event {
        at,
        clock_ns: 100,
        event,
    });
    assert!(matches!(long, Err(EncodeError::TooLong { .. })));
    assert_eq!(encoder.push(&timer(100)), Ok(1));
    assert_eq!(encoder.stats().total_entries(), 2);
}

#[test]
fn the_longest_disk_read_fits_behind_a_nearly_full_frame() {
    let mut encoder = LogEncoder::new(&header());
    let at = header().start;
    let event = |len| Event::DiskDone {
        id: 1,
        status: 0,
        data: Some(vec![1; len].into()),
    };
    let small = Entry::Event {
        at,
        clock_ns: 77,
        event: event(SEAL_BYTES - 100),
    };
    let large = Entry::Event {
        at,
        clock_ns: 77,
        event: event(DISK_BYTES_MAX),
    };
    let entries = [small, large];
    let mut bytes = encode(&Message::Hello(Box::new(hello()))).to_vec();
    for entry in &entries {
        encoder.push(entry).unwrap();
    }
    assert!(encoder.pending_bytes() > DISK_BYTES_MAX);
    encoder
        .take_frames()
        .for_each(|frame| bytes.extend_from_slice(&frame));
    assert_eq!(entries_of(decode_all(&bytes, 1 << 20).unwrap()), entries);
}

#[test]
fn nothing_stands_inside_a_stretch() {
    let at = |count| Position::new(count, 1, 2);
    let pages = || Entry::Pages {
        at: at(2000),
        pages: PageBlock::pack(&[5], &[1; PAGE_BYTES]),
    };
    let stretch = |count, len| Entry::Stretch {
        at: at(count),
        interrupts: 0,
        cpu: vec![3; len].into(),
    };
    let timer = Entry::Event {
        at: at(2000),
        clock_ns: 100,
        event: Event::Timer,
    };
    let mut encoder = LogEncoder::new(&header());
    encoder.push(&timer).unwrap();
    encoder.push(&pages()).unwrap();
    encoder.push(&pages()).unwrap();
    for wrong in [&timer, &stretch(2000, 9), &stretch(2002, 9)] {
        let refused = encoder.push(wrong);
        assert!(
            matches!(refused, Err(EncodeError::InStretch { began: 2000, .. })),
            "{refused:?}"
        );
    }
    let long = encoder.push(&stretch(2001, CPU_BYTES_MAX + 1));
    assert!(matches!(long, Err(EncodeError::TooLong { .. })), "{long:?}");
    encoder.push(&stretch(2001, 900)).unwrap();
    encoder
        .push(&Entry::Progress { at: at(2001) })
        .expect("the stretch is closed");

    // The same from a peer: the second frame of pages is followed by something else.
    let mut bytes = encode(&Message::Hello(Box::new(hello()))).to_vec();
    let (mut one, mut other) = (LogEncoder::new(&header()), LogEncoder::new(&header()));
    one.push(&pages()).unwrap();
    let progress = Entry::Progress { at: at(2000) };
    other.push(&progress).unwrap();
    other.take_frames().for_each(drop);
    other.push(&progress).unwrap();
    for frame in one.take_frames().chain(other.take_frames()) {
        bytes.extend_from_slice(&frame);
    }
    let found = problem(&bytes);
    assert!(
        matches!(
            found,
            Problem::InStretch {
                found: "progress",
                ..
            }
        ),
        "{found:?}"
    );
}

#[test]
fn a_full_block_of_noise_travels() {
    let mut word = 1u64;
    let mut noise = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (word >> 56) as u8
    };
    let content: Vec<u8> = (0..BLOCK_PAGES_MAX * PAGE_BYTES).map(|_| noise()).collect();
    let frames: Vec<u64> = (7..).take(BLOCK_PAGES_MAX).collect();
    let entries = [Entry::Pages {
        at: header().start,
        pages: PageBlock::pack(&frames, &content),
    }];
    assert_eq!(
        entries_of(decode_all(&stream(&entries, 1), 4096).unwrap()),
        entries
    );
}

fn problem(bytes: &[u8]) -> Problem {
    decode_all(bytes, usize::MAX).unwrap_err().problem
}

#[test]
fn errors_say_what_is_wrong() {
    let hello = encode(&Message::Hello(Box::new(hello())));
    let with_body = |body: &[u8]| {
        let mut bytes = hello.to_vec();
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(crc32c::crc32c(body).to_le_bytes());
        bytes.extend(body);
        bytes
    };
    let mut newer = hello.to_vec();
    newer[FRAME_HEADER_BYTES + 9] = 99;
    let crc = crc32c::crc32c(&newer[FRAME_HEADER_BYTES..]);
    newer[4..8].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(
        problem(&newer),
        Problem::Version {
            found: 99,
            supported: header::LOG_VERSION
        }
    );
    assert_eq!(problem(b"GET / HTTP/1.1\r\n"), Problem::Magic);
    let frame = with_body(&[message::ENTRIES, 0, 0]);
    assert_eq!(problem(&frame[hello.len()..]), Problem::NoHello);
    let mut flipped = with_body(&[message::ENTRIES, 0, 0]);
    *flipped.last_mut().unwrap() ^= 1;
    assert!(matches!(problem(&flipped), Problem::Checksum { .. }));
    let gap = with_body(&[message::ENTRIES, 5, 0]);
    assert_eq!(
        problem(&gap),
        Problem::Sequence {
            expected: 0,
            found: 5
        }
    );
    let reserved = with_body(&[message::ENTRIES, 0, 0, 11]);
    assert_eq!(
        problem(&reserved),
        Problem::Value {
            what: "an entry's tag",
            value: 11
        }
    );
    let mut twice = hello.to_vec();
    twice.extend_from_slice(&hello);
    assert_eq!(problem(&twice), Problem::SecondHello);
    let mut long = hello.to_vec();
    long.extend([0xff; 8]);
    assert!(matches!(problem(&long), Problem::TooLong { .. }));
}

#[test]
fn each_difference_between_headers_has_its_message() {
    let ours = header();
    assert_eq!(ours.check_compatible(&header()), Ok(()));
    type Change = fn(&mut Header);
    let cases: [(&str, Change); 11] = [
        ("VM", |h| h.vm = VmId([8; 16])),
        ("view", |h| h.view = 2),
        (
            "0.1.0+5eed of Lockstep, the log was made by build 0.1.0+0dd",
            |h| {
                h.build = "0.1.0+0dd".into();
            },
        ),
        ("--engine", |h| h.engine = "kvm".into()),
        (
            "the log counts conditional branches; start both with the same --positions",
            |h| h.counts = CountUnit::Branches,
        ),
        ("CPUID", |h| h.cpuid = 9),
        ("memory", |h| h.memory[0].len = 1 << 30),
        ("board", |h| h.board = 9),
        ("processor", |h| h.host_math = 9),
        ("initial state", |h| h.initial_state = 9),
        ("starts at", |h| h.start_clock_ns = 9),
    ];
    for (word, change) in cases {
        let mut theirs = header();
        change(&mut theirs);
        let message = ours.check_compatible(&theirs).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
}
