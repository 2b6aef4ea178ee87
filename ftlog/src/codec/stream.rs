//! Frames to bytes and back: [`LogEncoder`], [`encode`] and the streaming [`Decoder`].

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::delta::Deltas;
use super::error::{DecodeError, EncodeError, Problem};
use super::header::Header;
use super::message::{self, ENTRIES, HELLO, Message};
use super::stats::KindBytes;
use super::varint::{Reader, put};
use super::{
    BODY_BYTES_MAX, FRAME_ENTRIES_MAX, FRAME_HEADER_BYTES, SEAL_BYTES, SMALL_BODY_BYTES_MAX,
};
use crate::entry::Entry;

/// A whole frame with a message other than entries.
pub fn encode(message: &Message) -> Bytes {
    let mut body = Vec::new();
    message::encode_body(message, &mut body);
    frame(&[&body])
}

fn frame(parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    assert!(
        len <= BODY_BYTES_MAX,
        "a frame is sealed before it is too long"
    );
    let crc = parts
        .iter()
        .fold(0, |crc, part| crc32c::crc32c_append(crc, part));
    let mut out = BytesMut::with_capacity(FRAME_HEADER_BYTES + len);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    out.extend_from_slice(&crc.to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.freeze()
}

/// Turns entries into frames. One for each stream; it starts at the header's start position and
/// sequence number 0.
#[derive(Debug)]
pub struct LogEncoder {
    deltas: Deltas,
    next_seq: u64,
    /// Outputs that have left; tells the backup which it need not keep for going live.
    released: u64,
    /// Entries of the frame that is being filled.
    open: Vec<u8>,
    open_entries: usize,
    sealed: VecDeque<Bytes>,
    sealed_bytes: usize,
    stats: KindBytes,
}

impl LogEncoder {
    pub fn new(header: &Header) -> Self {
        Self {
            deltas: Deltas::new(header),
            next_seq: 0,
            released: 0,
            open: Vec::new(),
            open_entries: 0,
            sealed: VecDeque::new(),
            sealed_bytes: 0,
            stats: KindBytes::default(),
        }
    }

    /// Appends an entry and returns its sequence number. On an error nothing has changed.
    pub fn push(&mut self, entry: &Entry) -> Result<u64, EncodeError> {
        let before = self.open.len();
        self.deltas.encode(entry, &mut self.open)?;
        self.stats.add(entry.kind(), self.open.len() - before);
        self.open_entries += 1;
        let seq = self.next_seq;
        self.next_seq += 1;
        if self.open.len() >= SEAL_BYTES || self.open_entries == FRAME_ENTRIES_MAX {
            self.seal();
        }
        Ok(seq)
    }

    /// Seals what is open and hands out all frames, oldest first.
    pub fn take_frames(&mut self) -> impl Iterator<Item = Bytes> + '_ {
        self.seal();
        self.sealed_bytes = 0;
        self.sealed.drain(..)
    }

    /// Says how many outputs have left, in the frames sealed from now on.
    pub fn set_released(&mut self, released: u64) {
        self.released = released;
    }

    /// Counts bytes that the driver of this stream sent beside entries.
    pub fn count_overhead(&mut self, bytes: usize) {
        self.stats.overhead += bytes as u64;
    }

    /// The number of the next entry, which is also how many there are.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Bytes appended and not yet taken.
    pub fn pending_bytes(&self) -> usize {
        self.open.len() + self.sealed_bytes
    }

    pub fn stats(&self) -> &KindBytes {
        &self.stats
    }

    fn seal(&mut self) {
        if self.open_entries == 0 {
            return;
        }
        let mut prefix = vec![ENTRIES];
        put(&mut prefix, self.next_seq - self.open_entries as u64);
        put(&mut prefix, self.released);
        let frame = frame(&[&prefix, &self.open]);
        self.stats.overhead += (frame.len() - self.open.len()) as u64;
        self.stats.frames += 1;
        self.sealed_bytes += frame.len();
        self.sealed.push_back(frame);
        self.open.clear();
        self.open_entries = 0;
    }
}

/// Turns a stream of bytes, in pieces of any size, back into messages.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    /// Offset of `buffer`'s start in the stream.
    offset: u64,
    body_bytes_max: usize,
    /// Set by the hello: what the entries' differences are relative to.
    deltas: Option<Deltas>,
    next_seq: u64,
    failed: bool,
}

impl Decoder {
    /// For what a primary sends, or a log file.
    pub fn for_log() -> Self {
        Self::new(BODY_BYTES_MAX)
    }

    /// For what a backup sends: small messages only.
    pub fn for_acks() -> Self {
        Self::new(SMALL_BODY_BYTES_MAX)
    }

    fn new(body_bytes_max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            offset: 0,
            body_bytes_max,
            deltas: None,
            next_seq: 0,
            failed: false,
        }
    }

    /// Takes bytes from the peer. Call [`Decoder::next`] until it has nothing more, after each.
    pub fn feed(&mut self, bytes: &[u8]) {
        if !self.failed {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole message, or `None` until more bytes are fed. After an error every further
    /// call fails.
    #[allow(clippy::should_implement_trait)] // an iterator would end at the first `None`
    pub fn next(&mut self) -> Result<Option<Message>, DecodeError> {
        let offset = self.offset;
        self.try_next().map_err(|problem| {
            self.failed = true;
            self.buffer = BytesMut::new();
            DecodeError { offset, problem }
        })
    }

    /// Bytes of a frame that has not wholly arrived.
    pub fn partial_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Offset of the first byte that is not part of a message already returned.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn try_next(&mut self) -> Result<Option<Message>, Problem> {
        if self.failed {
            return Err(Problem::Failed);
        }
        let Some(body) = self.body()? else {
            return Ok(None);
        };
        let message = match body.first() {
            Some(&ENTRIES) => self.entries(body)?,
            Some(&HELLO) if self.deltas.is_some() => return Err(Problem::SecondHello),
            _ => message::decode_body(body)?,
        };
        if let Message::Hello(hello) = &message {
            self.deltas = Some(Deltas::new(&hello.header));
        }
        Ok(Some(message))
    }

    /// The next whole body, checked against its length and checksum.
    fn body(&mut self) -> Result<Option<Bytes>, Problem> {
        let Some(head) = self.buffer.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let [l0, l1, l2, l3, c0, c1, c2, c3] = *head;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let found = u32::from_le_bytes([c0, c1, c2, c3]);
        if len > self.body_bytes_max {
            return Err(self.wrong_length(len));
        }
        if self.buffer.len() < FRAME_HEADER_BYTES + len {
            return Ok(None);
        }
        let body = self.buffer.split_to(FRAME_HEADER_BYTES + len).freeze();
        let body = body.slice(FRAME_HEADER_BYTES..);
        let actual = crc32c::crc32c(&body);
        if actual != found {
            return Err(Problem::Checksum { found, actual });
        }
        self.offset += (FRAME_HEADER_BYTES + len) as u64;
        Ok(Some(body))
    }

    /// A first frame with an absurd length is not a damaged log but something else altogether.
    fn wrong_length(&self, len: usize) -> Problem {
        match self.offset {
            0 => Problem::Magic,
            _ => Problem::TooLong {
                len,
                max: self.body_bytes_max,
            },
        }
    }

    fn entries(&mut self, body: Bytes) -> Result<Message, Problem> {
        let Some(deltas) = &mut self.deltas else {
            return Err(Problem::NoHello);
        };
        let mut body = Reader::new(body);
        body.u8("the message's kind")?;
        let first_seq = body.varint("a sequence number")?;
        if first_seq != self.next_seq {
            return Err(Problem::Sequence {
                expected: self.next_seq,
                found: first_seq,
            });
        }
        let released = body.varint("the number of released outputs")?;
        let mut entries = Vec::new();
        while body.left() > 0 {
            if entries.len() == FRAME_ENTRIES_MAX {
                return Err(Problem::TooManyEntries {
                    max: FRAME_ENTRIES_MAX,
                });
            }
            entries.push(deltas.decode(&mut body)?);
        }
        self.next_seq += entries.len() as u64;
        Ok(Message::Entries {
            first_seq,
            released,
            entries,
        })
    }
}
