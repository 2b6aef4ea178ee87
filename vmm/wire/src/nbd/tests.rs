//! Tests of the NBD formats: both sides understand each other, and nothing hostile panics.

use std::io::{self, Cursor, Read, Write};

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::handshake::*;
use super::transmission::*;
use super::*;
use crate::register::{ReplicaId, VmId};

/// A peer that says `input` whatever it hears.
struct Parrot {
    input: Cursor<Vec<u8>>,
    heard: Vec<u8>,
}

impl Read for Parrot {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer)
    }
}

impl Write for Parrot {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.heard.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn parrot(input: Vec<u8>) -> Parrot {
    Parrot {
        input: Cursor::new(input),
        heard: Vec::new(),
    }
}

fn info() -> ExportInfo {
    let flags = flags::HAS_FLAGS | flags::READ_ONLY;
    let block_max = MAX_PAYLOAD;
    ExportInfo {
        size: 1 << 40,
        flags,
        block_min: 1,
        block_preferred: 4096,
        block_max,
    }
}

/// What a server says up to the end of a successful GO.
fn server_speech() -> Vec<u8> {
    let mut greeting = parrot(3u32.to_be_bytes().to_vec());
    assert!(greet(&mut greeting).unwrap());
    let mut speech = greeting.heard;
    speech.extend(option_reply_bytes(
        OPT_GO,
        REP_INFO,
        &info_export_bytes(&info()),
    ));
    // An item that no client knows must be skipped.
    speech.extend(option_reply_bytes(OPT_GO, REP_INFO, &[0x7f, 0xff, 1, 2, 3]));
    speech.extend(option_reply_bytes(
        OPT_GO,
        REP_INFO,
        &info_block_size_bytes(&info()),
    ));
    speech.extend(option_reply_bytes(OPT_GO, REP_ACK, &[]));
    speech
}

#[test]
fn client_and_server_agree_on_the_handshake() {
    let mut server = parrot(server_speech());
    assert_eq!(negotiate(&mut server, "disk0").unwrap(), info());
    let mut heard = Cursor::new(server.heard);
    assert_eq!(
        read_struct::<zerocopy::byteorder::big_endian::U32>(&mut heard)
            .unwrap()
            .get(),
        3
    );
    let OptionRequest { option, data } = read_option(&mut heard).unwrap();
    assert_eq!(option, OPT_GO);
    let request = parse_info_request(option, &data).unwrap();
    assert_eq!(
        request,
        InfoRequest {
            name: "disk0".to_owned(),
            wants: vec![INFO_BLOCK_SIZE]
        }
    );
}

#[test]
fn a_refusal_arrives_in_words() {
    let mut speech = server_speech()[..18].to_vec();
    speech.extend(option_reply_bytes(
        OPT_GO,
        REP_ERR_POLICY,
        b"view 1 has ended",
    ));
    let error = negotiate(&mut parrot(speech), "disk0").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the server refused the export: not allowed: view 1 has ended"
    );
}

#[test]
fn a_handshake_cut_anywhere_is_an_error() {
    let speech = server_speech();
    for end in 0..speech.len() {
        assert!(
            negotiate(&mut parrot(speech[..end].to_vec()), "disk0").is_err(),
            "{end}"
        );
    }
}

#[test]
fn lengths_are_checked_before_memory_is_taken() {
    let header = OptionHeader {
        magic: OPTION_MAGIC.into(),
        option: OPT_GO.into(),
        length: u32::MAX.into(),
    };
    let error = read_option(&mut header.as_bytes()).unwrap_err();
    assert!(matches!(error, HandshakeError::OptionTooLong(u32::MAX)));
    for data in [
        &[0, 0, 0, 200, b'a', 0, 0][..],
        &[0, 0, 0, 1, b'a', 0, 2, 0, 3],
        &[0xff, 0xff, 0xff, 0xff, 0, 0],
        &[0, 0, 0, 1, 0xff, 0, 0],
        &[],
    ] {
        assert!(parse_info_request(OPT_GO, data).is_err(), "{data:?}");
    }
}

#[test]
fn export_names_are_explained() {
    for (text, word) in [
        ("", "1 to 64"),
        ("a/b", "letters"),
        ("..", "dot"),
        ("d?vm=xx&view=1&replica=1", "VM id"),
        ("d?view=1&replica=1", "vm="),
        ("d?vm=00000000000000000000000000000001&replica=1", "view="),
        (
            "d?vm=00000000000000000000000000000001&view=-1&replica=1",
            "not a number",
        ),
        (
            "d?vm=00000000000000000000000000000001&view=1&view=2&replica=1",
            "twice",
        ),
        ("d?color=red", "color"),
    ] {
        let error = text.parse::<ExportName>().unwrap_err().to_string();
        assert!(error.contains(word), "{text:?}: {error}");
    }
}

proptest! {
    #[test]
    fn export_names_round_trip(
        disk in "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}",
        tag in prop::option::of((any::<[u8; 16]>(), any::<u64>(), any::<u64>())),
    ) {
        let view = tag.map(|(vm, view, replica)| ViewTag {
            vm: VmId(vm), view, replica: ReplicaId(replica),
        });
        let name = ExportName { disk, view };
        prop_assert_eq!(name.to_string().parse::<ExportName>().unwrap(), name);
    }

    #[test]
    fn requests_round_trip(
        flags: u16, command: u16, handle: u64, offset: u64, length: u32,
    ) {
        let command = Command::from_wire(command);
        let request = Request { command, flags, handle, offset, length };
        let header = request.to_header();
        prop_assert_eq!(Request::read(&mut header.as_bytes()).unwrap(), request);
    }

    #[test]
    fn replies_round_trip(handle: u64, error in prop::option::of(1..200u32)) {
        let header = reply_header(handle, error.map(Errno));
        let expected = (handle, error.map_or(Ok(()), |number| Err(Errno(number))));
        prop_assert_eq!(read_reply_header(&mut header.as_bytes()).unwrap(), expected);
    }

    /// Random bytes, and good ones with a few changed, into every parser.
    #[test]
    fn hostile_bytes_never_panic(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        name in "\\PC{0,80}",
    ) {
        let mut speech = server_speech();
        for (at, byte) in changes {
            let at = at.index(speech.len());
            speech[at] = byte;
        }
        let _ = negotiate(&mut parrot(speech), "disk0");
        let _ = negotiate(&mut parrot(noise.clone()), "disk0");
        let _ = greet(&mut parrot(noise.clone()));
        let _ = read_option(&mut &noise[..]);
        let _ = read_option_reply(&mut &noise[..], OPT_GO);
        let _ = parse_info_request(OPT_GO, &noise);
        let _ = parse_info_reply(&noise, &mut info());
        let _ = Request::read(&mut &noise[..]);
        let _ = read_reply_header(&mut &noise[..]);
        let _ = name.parse::<ExportName>();
    }
}
