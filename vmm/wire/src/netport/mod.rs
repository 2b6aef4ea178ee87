//! The protocol between a replica and a port of the switch (`ft-netd`), over TCP.
//!
//! ```text
//!  31      24 23                             0
//! +----------+--------------------------------+----------------------+
//! |   kind   |        length, bytes           |  payload             |
//! +----------+--------------------------------+----------------------+
//!      0 = Ethernet frame, 1 = control message (JSON)
//! ```
//!
//! The header word is big endian, so a frame looks as in QEMU's stream protocol. A replica begins
//! with [`ToSwitch::Hello`]; the switch answers [`FromSwitch::Welcome`], or refuses. The switch
//! takes frames only from the replica that is live in the highest view announced, and gives
//! inbound frames to that one alone.
//!
//! **Nothing is lost at a failover**: the switch keeps every inbound frame until the live replica
//! says that it is [consumed](ToSwitch::Consumed) (in the log, and acknowledged by the backup),
//! and gives the rest again, in order, to the next live replica. TCP absorbs the duplicates.

pub mod client;

pub use client::{NetportClient, NetportCloser, NetportError, NetportReceiver, NetportSender};

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::register::{ReplicaId, VmId};

/// The protocol's version; both sides must have the same.
pub const VERSION: u32 = 1;
/// The longest Ethernet frame, in bytes.
pub const MAX_FRAME: usize = 65_550;
/// The shortest frame that has an Ethernet header, in bytes.
pub const MIN_FRAME: usize = 14;
/// The longest control message, in bytes.
pub const MAX_CONTROL: usize = 4096;

const KIND_FRAME: u8 = 0;
const KIND_CONTROL: u8 = 1;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a string is not an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address of the form 52:54:00:12:34:56")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let bad = || MacError(text.to_owned());
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(hex).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() {
            Err(bad())
        } else {
            Ok(Mac(bytes))
        }
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Mac, MacError> {
        text.parse()
    }
}

/// Who connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    pub vm: VmId,
    pub replica: ReplicaId,
    /// The view that this replica knows.
    pub view: u64,
    /// Live from the start (a primary); otherwise the connection waits for `go-live`.
    pub live: bool,
    /// The guest's address.
    pub mac: Mac,
}

/// Control messages from a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum ToSwitch {
    Hello(Hello),
    /// This replica has won `view`: older views are fenced from here on.
    GoLive {
        view: u64,
    },
    /// The first `frames` inbound frames of this connection are safe: never give them again.
    Consumed {
        frames: u64,
    },
}

/// Control messages from the switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum FromSwitch {
    Welcome {
        version: u32,
    },
    /// This connection is the live one of `view` from here on.
    Live {
        view: u64,
    },
    /// A replica of `view` is live, which is not this one: nothing from this connection goes out
    /// any more.
    Fenced {
        view: u64,
    },
    /// The connection is refused and closed.
    Refused {
        reason: String,
    },
}

/// One message of either direction; `C` is [`ToSwitch`] or [`FromSwitch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<C> {
    Frame(Bytes),
    Control(C),
}

/// Why a stream of messages cannot be understood any further.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a message of unknown kind {0}")]
    Kind(u8),
    #[error("a frame of {0} bytes is longer than {MAX_FRAME} bytes")]
    FrameTooLong(usize),
    #[error("a frame of {0} bytes is shorter than an Ethernet header ({MIN_FRAME} bytes)")]
    FrameTooShort(usize),
    #[error("a control message of {0} bytes is longer than {MAX_CONTROL} bytes")]
    ControlTooLong(usize),
    #[error("malformed control message: {0}")]
    Control(#[from] serde_json::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn header(kind: u8, length: usize) -> [u8; 4] {
    (u32::from(kind) << 24 | length as u32).to_be_bytes()
}

/// The header that goes before a frame.
pub fn frame_header(frame: &[u8]) -> Result<[u8; 4], WireError> {
    match frame.len() {
        length if length > MAX_FRAME => Err(WireError::FrameTooLong(length)),
        length if length < MIN_FRAME => Err(WireError::FrameTooShort(length)),
        length => Ok(header(KIND_FRAME, length)),
    }
}

/// A control message with its header.
pub fn control_bytes<C: Serialize>(message: &C) -> Result<Vec<u8>, WireError> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MAX_CONTROL {
        return Err(WireError::ControlTooLong(body.len()));
    }
    Ok([&header(KIND_CONTROL, body.len())[..], &body].concat())
}

/// Reads the next message. `None`: the peer closed the connection between two messages.
pub fn read_message<C: serde::de::DeserializeOwned>(
    reader: &mut impl Read,
) -> Result<Option<Message<C>>, WireError> {
    let mut word = [0u8; 4];
    let first = loop {
        match reader.read(&mut word[..1]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut word[1..])?;
    let word = u32::from_be_bytes(word);
    let (kind, length) = ((word >> 24) as u8, (word & 0x00ff_ffff) as usize);
    match kind {
        KIND_FRAME if length > MAX_FRAME => return Err(WireError::FrameTooLong(length)),
        KIND_FRAME if length < MIN_FRAME => return Err(WireError::FrameTooShort(length)),
        KIND_CONTROL if length > MAX_CONTROL => return Err(WireError::ControlTooLong(length)),
        KIND_FRAME | KIND_CONTROL => {}
        other => return Err(WireError::Kind(other)),
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(match kind {
        KIND_FRAME => Message::Frame(Bytes::from(body)),
        _ => Message::Control(serde_json::from_slice(&body)?),
    }))
}

#[cfg(test)]
mod tests;
