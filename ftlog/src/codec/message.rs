//! What travels on the logging channel, each in a frame of its own.
//!
//! | code | message | direction |
//! |---|---|---|
//! | 1 | hello: who records what | primary to backup, first; also the start of a log file |
//! | 2 | welcome: the backup can replay it | backup to primary, first |
//! | 3 | refuse: it cannot, or can no longer, and why | both |
//! | 4 | entries | primary to backup |
//! | 5 | ack | backup to primary; also its heartbeat |
//! | 6 | heartbeat | primary to backup |
//! | 7 | bye: the sender ends on purpose | both |

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::Problem;
use super::header::Header;
use super::varint::{Reader, put, put_data};
use crate::entry::Entry;
use crate::ids::ReplicaId;

pub(super) const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSE: u8 = 3;
pub(super) const ENTRIES: u8 = 4;
const ACK: u8 = 5;
const HEARTBEAT: u8 = 6;
const BYE: u8 = 7;
/// The longest reason in words.
const REASON_BYTES_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    Hello(Box<Hello>),
    Welcome(Box<Hello>),
    Refuse {
        reason: String,
    },
    Entries {
        first_seq: u64,
        released: u64,
        entries: Vec<Entry>,
    },
    Ack(Ack),
    Heartbeat {
        next_seq: u64,
        released: u64,
    },
    Bye(Bye),
}

/// The first message of either side: who it is and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub replica: ReplicaId,
    pub header: Header,
}

/// How far the backup is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Entries received: those numbered below this.
    pub received: u64,
    /// Entries executed: those numbered below this.
    pub executed: u64,
    /// The count of the last position that it is known to have executed to.
    pub executed_count: u64,
}

/// Why a peer ends on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bye {
    /// The virtual machine is off; nothing is left to take over.
    PoweredOff,
}

/// The body of a message other than entries, which [`super::LogEncoder`] writes.
pub(super) fn encode_body(message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Hello(hello) => encode_hello(HELLO, hello, out),
        Message::Welcome(hello) => encode_hello(WELCOME, hello, out),
        Message::Refuse { reason } => {
            out.push(REFUSE);
            put_data(out, cut(reason).as_bytes());
        }
        Message::Entries { .. } => unreachable!("entries are written by the log encoder"),
        Message::Ack(ack) => {
            out.push(ACK);
            put(out, ack.received);
            put(out, ack.executed);
            put(out, ack.executed_count);
        }
        Message::Heartbeat { next_seq, released } => {
            out.push(HEARTBEAT);
            put(out, *next_seq);
            put(out, *released);
        }
        Message::Bye(Bye::PoweredOff) => out.extend_from_slice(&[BYE, 0]),
    }
}

fn encode_hello(code: u8, hello: &Hello, out: &mut Vec<u8>) {
    out.push(code);
    hello.header.encode(out);
    put(out, hello.replica.0);
}

/// The longest prefix of whole characters that fits.
fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

/// A body's message, except that of entries, for which the caller has the deltas.
pub(super) fn decode_body(body: Bytes) -> Result<Message, Problem> {
    let mut body = Reader::new(body);
    let message = match body.u8("the message's kind")? {
        HELLO => Message::Hello(Box::new(decode_hello(&mut body)?)),
        WELCOME => Message::Welcome(Box::new(decode_hello(&mut body)?)),
        REFUSE => Message::Refuse {
            reason: body.text("a reason", REASON_BYTES_MAX)?,
        },
        ACK => decode_ack(&mut body)?,
        HEARTBEAT => Message::Heartbeat {
            next_seq: body.varint("a sequence number")?,
            released: body.varint("the number of released outputs")?,
        },
        BYE => match body.u8("a bye's reason")? {
            0 => Message::Bye(Bye::PoweredOff),
            value => {
                return Err(Problem::Value {
                    what: "a bye's reason",
                    value: value.into(),
                });
            }
        },
        value => {
            return Err(Problem::Value {
                what: "the message's kind",
                value: value.into(),
            });
        }
    };
    body.end("the message")?;
    Ok(message)
}

fn decode_hello(body: &mut Reader) -> Result<Hello, Problem> {
    let header = Header::decode(body)?;
    Ok(Hello {
        header,
        replica: ReplicaId(body.varint("the replica's id")?),
    })
}

fn decode_ack(body: &mut Reader) -> Result<Message, Problem> {
    let received = body.varint("the number of received entries")?;
    let executed = body.varint("the number of executed entries")?;
    if executed > received {
        return Err(Problem::Value {
            what: "more executed than received entries",
            value: executed,
        });
    }
    let executed_count = body.varint("the executed count")?;
    Ok(Message::Ack(Ack {
        received,
        executed,
        executed_count,
    }))
}
