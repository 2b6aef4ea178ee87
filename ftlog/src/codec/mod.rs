//! The byte format of the logging channel and of log files.
//!
//! Both are a sequence of **frames**: length of the body (u32 LE), CRC-32C of the body (u32 LE),
//! body. The first byte of a body says what it is ([`message`]). The channel from primary to
//! backup begins with a `Hello` that carries the [`header::Header`]; a log file is the same bytes.
//!
//! Entries are written as differences to the entry before ([`delta`]). **The differences run on
//! from frame to frame**, from the header's start position: a frame alone cannot be decoded, and in
//! return an idle guest's timer entry takes about 8 bytes. Nothing is lost by it: a channel never
//! resumes in the middle (a closed channel is a suspected peer), and a file is read from its start.
//! Every frame says the sequence number of its first entry, so a missing frame is noticed.
//!
//! Decoding trusts nothing: lengths are bounded before anything is kept, counts and clocks cannot
//! run back, and every error says where and what.

pub mod delta;
pub mod error;
pub mod file;
pub mod header;
pub mod message;
mod pages;
pub mod stats;
pub mod stream;
mod varint;

pub use error::{DecodeError, EncodeError, Problem};
pub use file::{LogFile, LogFileError, Tail, read_log};
pub use header::{CountUnit, Header, Mismatch, Region};
pub use message::{Ack, Bye, Hello, Message};
pub use stats::KindBytes;
pub use stream::{Decoder, LogEncoder, encode};

#[cfg(test)]
mod tests;

/// Bytes before a frame's body.
pub const FRAME_HEADER_BYTES: usize = 8;
/// The longest network frame an entry can carry.
pub const NET_BYTES_MAX: usize = 65_550;
/// The longest console or serial input an entry can carry.
pub const INPUT_BYTES_MAX: usize = 65_536;
/// The most data one disk read can return.
pub const DISK_BYTES_MAX: usize = 32 << 20;
/// A frame is sealed when its entries reach this many bytes or [`FRAME_ENTRIES_MAX`].
pub const SEAL_BYTES: usize = 256 << 10;
/// The most entries in a frame.
pub const FRAME_ENTRIES_MAX: usize = 16_384;
/// The longest body of a frame that carries entries: one below the seal, then one of the longest.
pub const BODY_BYTES_MAX: usize = SEAL_BYTES + DISK_BYTES_MAX + 1024;
/// The longest body of a frame without entries (hello, acknowledgement, refusal …).
pub const SMALL_BODY_BYTES_MAX: usize = 64 << 10;
