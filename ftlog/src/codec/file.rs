//! Log files: the bytes of the channel from the primary, kept.
//!
//! A recorder may die at any byte. What was cut off in the last frame is reported, not an error;
//! anything else that is wrong is.

use std::io::{self, Read};

use thiserror::Error;

use super::error::DecodeError;
use super::message::{Hello, Message};
use super::stream::Decoder;
use crate::entry::Entry;

const READ_BYTES: usize = 64 << 10;

#[derive(Debug, Error)]
pub enum LogFileError {
    #[error("cannot read the log: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("this is not a log file: it does not begin with a whole header")]
    NoHeader,
}

/// How a log file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// With a whole frame.
    Whole,
    /// With `bytes` of a frame that was not written to its end; they were left out.
    Truncated { bytes: usize },
}

/// Reads a log file entry by entry.
#[derive(Debug)]
pub struct LogFile<R> {
    source: R,
    decoder: Decoder,
    hello: Hello,
    entries: std::vec::IntoIter<Entry>,
    next_seq: u64,
    tail: Option<Tail>,
}

impl<R: Read> LogFile<R> {
    /// Reads up to and including the header.
    pub fn open(mut source: R) -> Result<Self, LogFileError> {
        let mut decoder = Decoder::for_log();
        loop {
            match decoder.next()? {
                Some(Message::Hello(hello)) => {
                    let entries = Vec::new().into_iter();
                    let hello = *hello;
                    return Ok(Self {
                        source,
                        decoder,
                        hello,
                        entries,
                        next_seq: 0,
                        tail: None,
                    });
                }
                Some(_) => return Err(LogFileError::NoHeader),
                None if fill(&mut source, &mut decoder)? => {}
                None => return Err(LogFileError::NoHeader),
            }
        }
    }

    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The next entry and its sequence number; `None` at the end, when [`LogFile::tail`] is known.
    pub fn next_entry(&mut self) -> Result<Option<(u64, Entry)>, LogFileError> {
        loop {
            if let Some(entry) = self.entries.next() {
                let seq = self.next_seq;
                self.next_seq += 1;
                return Ok(Some((seq, entry)));
            }
            match self.decoder.next()? {
                Some(Message::Entries { entries, .. }) => self.entries = entries.into_iter(),
                Some(_) => {}
                None if fill(&mut self.source, &mut self.decoder)? => {}
                None => {
                    self.tail = Some(match self.decoder.partial_bytes() {
                        0 => Tail::Whole,
                        bytes => Tail::Truncated { bytes },
                    });
                    return Ok(None);
                }
            }
        }
    }

    /// How the file ends, once [`LogFile::next_entry`] has returned `None`.
    pub fn tail(&self) -> Option<Tail> {
        self.tail
    }
}

/// Feeds more bytes; false at the end of the source.
fn fill(source: &mut impl Read, decoder: &mut Decoder) -> io::Result<bool> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => {
                decoder.feed(&buffer[..n]);
                return Ok(true);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads a whole log that fits into memory.
pub fn read_log(source: impl Read) -> Result<(Hello, Vec<Entry>, Tail), LogFileError> {
    let mut file = LogFile::open(source)?;
    let mut entries = Vec::new();
    while let Some((_, entry)) = file.next_entry()? {
        entries.push(entry);
    }
    let tail = file.tail().unwrap_or(Tail::Whole);
    Ok((file.hello, entries, tail))
}
