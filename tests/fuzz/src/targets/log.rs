//! Log frames and log files: both decoders, fed in pieces of any size.

use ftlog::codec::{Ack, Bye, Decoder, LogEncoder, Message, encode, read_log};
use ftlog::{Entry, Header};

use super::toy;
use crate::Target;
use crate::input::Input;

pub const TARGET: Target = Target {
    name: "log",
    about: "frames of the logging channel and log files; what is decoded is encoded to the same",
    run,
    samples,
    cases: 20_000,
};

const REPAIR: u8 = 1;
const ACKS: u8 = 2;

/// Input: a byte of flags, the size of the pieces (u16), the stream.
fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (flags, piece) = (input.u8(), usize::from(input.u16()).max(1));
    let mut stream = input.rest().to_vec();
    if flags & REPAIR != 0 {
        toy::repair(&mut stream);
    }
    let acks = flags & ACKS != 0;
    let whole = decode(&stream, stream.len().max(1), acks);
    let pieces = decode(&stream, piece, acks);
    assert_eq!(whole, pieces, "pieces of {piece} bytes make a difference");
    if acks {
        if whole.1.is_none() {
            crate::findings::accepted();
        }
        return;
    }
    check_again(&whole.0);
    if let Ok((hello, entries, _)) = read_log(stream.as_slice()) {
        crate::findings::accepted();
        check_same(&hello.header, &entries);
    }
}

/// The messages up to the end or the first error, and that error.
fn decode(stream: &[u8], piece: usize, acks: bool) -> (Vec<Message>, Option<String>) {
    let mut decoder = if acks {
        Decoder::for_acks()
    } else {
        Decoder::for_log()
    };
    let mut messages = Vec::new();
    for piece in stream.chunks(piece) {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    assert!(decoder.next().is_err(), "an error is for ever");
                    return (messages, Some(error.to_string()));
                }
            }
        }
    }
    (messages, None)
}

/// Messages without entries survive their own encoder.
fn check_again(messages: &[Message]) {
    for message in messages {
        let again = match message {
            Message::Entries { .. } => continue,
            Message::Welcome(_) | Message::Hello(_) | Message::Refuse { .. } => encode(message),
            Message::Ack(_) | Message::Heartbeat { .. } | Message::Bye(_) => encode(message),
        };
        let (decoded, error) = decode(&again, again.len(), false);
        assert_eq!(error, None);
        assert_eq!(decoded.as_slice(), std::slice::from_ref(message));
    }
}

/// So do entries, given the header that they were read with.
fn check_same(header: &Header, entries: &[Entry]) {
    let mut encoder = LogEncoder::new(header);
    for entry in entries {
        encoder
            .push(entry)
            .expect("what was decoded can be encoded");
    }
    let mut stream = toy::log(
        &ftlog::codec::Hello {
            replica: toy::PRIMARY,
            header: header.clone(),
        },
        &[],
        1,
    );
    for frame in encoder.take_frames() {
        stream.extend_from_slice(&frame);
    }
    let (_, again, _) = read_log(stream.as_slice()).expect("what was encoded can be decoded");
    assert_eq!(again, entries);
}

fn samples() -> Vec<Vec<u8>> {
    let entries = toy::entries();
    let mut samples = Vec::new();
    for (flags, each) in [(REPAIR, 1), (REPAIR, 5), (REPAIR, 100), (0, 100)] {
        let mut sample = vec![flags, 7, 0];
        sample.extend(toy::log(&toy::hello(toy::PRIMARY), &entries, each));
        samples.push(sample);
    }
    let acks = [
        Message::Welcome(Box::new(toy::hello(toy::BACKUP))),
        Message::Ack(Ack {
            received: 300,
            executed: 200,
            executed_count: 1 << 40,
        }),
        Message::Refuse {
            reason: "other memory".into(),
        },
        Message::Heartbeat {
            next_seq: 9,
            released: 3,
        },
        Message::Bye(Bye::PoweredOff),
    ];
    for flags in [REPAIR | ACKS, REPAIR] {
        let mut sample = vec![flags, 3, 0];
        acks.iter()
            .for_each(|message| sample.extend(encode(message)));
        samples.push(sample);
    }
    samples
}
