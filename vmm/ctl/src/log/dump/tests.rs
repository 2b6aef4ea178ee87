use bytes::Bytes;
use ftlog::codec::{Message, encode};
use ftlog::{CountUnit, Header, PageBlock, Position, Region, ReplicaId, VmId};

use super::*;

fn sample() -> (tempfile::NamedTempFile, usize) {
    let header = Header {
        vm: VmId([1; 16]),
        view: 3,
        build: "0.1.0+5eed".into(),
        engine: "soft".into(),
        counts: CountUnit::Instructions,
        cpuid: 1,
        memory: vec![Region {
            base: 0,
            len: 64 << 20,
        }],
        board: 2,
        host_math: 0,
        initial_state: 4,
        start: Position::new(1000, 0x7c00, 5),
        start_clock_ns: 1_000_000_000,
    };
    let at = |count| Position::new(count, 0x7c10, 4);
    let entries = [
        Entry::Event {
            at: at(1500),
            clock_ns: 1_500_000_000,
            event: Event::NetReceive(Bytes::from_static(b"frame")),
        },
        Entry::Mark {
            at: at(1600),
            ordinal: 0,
            kind: ftlog::MarkKind::Net,
            digest: 0xabc,
        },
        Entry::Progress { at: at(2000) },
        Entry::Pages {
            at: at(2000),
            pages: PageBlock::pack(&[3, 4, 0x50], &[1; 3 * 4096]),
        },
        Entry::Stretch {
            at: at(2001),
            interrupts: 2,
            cpu: Bytes::from_static(b"state"),
        },
    ];
    let mut encoder = LogEncoder::new(&header);
    for entry in &entries {
        encoder.push(entry).unwrap();
    }
    let replica = ReplicaId(1);
    let mut bytes = encode(&Message::Hello(Box::new(Hello { replica, header }))).to_vec();
    for frame in encoder.take_frames() {
        bytes.extend_from_slice(&frame);
    }
    // The recorder died in the middle of its next frame.
    bytes.extend_from_slice(&[9, 0, 0]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    (file, bytes.len())
}

fn dumped(what: What) -> (String, usize) {
    let (file, length) = sample();
    let mut out = Vec::new();
    write(file.path(), what, &mut out).unwrap();
    (String::from_utf8(out).unwrap(), length)
}

#[test]
fn json_is_an_object_a_line_and_accounts_for_every_byte() {
    let (text, length) = dumped(What {
        json: true,
        entries: true,
        data: true,
    });
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 7);
    assert_eq!(lines[0]["header"]["view"], 3);
    assert_eq!(lines[1]["kind"], "net_receive");
    assert_eq!(lines[1]["data"], "6672616d65");
    assert_eq!(lines[2]["output"], 0);
    assert_eq!(lines[4]["frames"], "3-4,50");
    assert_eq!(lines[5]["interrupts"], 2);
    let summary = &lines[6]["summary"];
    assert_eq!(summary["bytes"], length);
    assert_eq!(summary["cut_off_bytes"], 3);
    assert_eq!(summary["instructions"], 1001);
    assert_eq!(summary["counts"], "instructions");
    assert_eq!(summary["guest_ns"], 500_000_000);
    let kinds = summary["kinds"].as_object().unwrap();
    let entries: u64 = kinds.values().map(|k| k["bytes"].as_u64().unwrap()).sum();
    let overhead = summary["overhead_bytes"].as_u64().unwrap();
    assert_eq!(entries + overhead, length as u64);
    let each: u64 = lines[1..6]
        .iter()
        .map(|line| line["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(each, entries);
}

#[test]
fn text_has_the_same() {
    let (text, _) = dumped(What {
        json: false,
        entries: true,
        data: false,
    });
    for words in [
        "view 3",
        "net_receive",
        "length 5",
        "mark",
        "pages 3",
        "stretch",
        "of Net",
        "3 bytes left out",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
    let (short, _) = dumped(What {
        json: false,
        entries: false,
        data: false,
    });
    assert!(short.lines().count() < text.lines().count());
}
