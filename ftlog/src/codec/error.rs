//! What can be wrong with bytes from a peer or a file, and with entries from a driver.

use thiserror::Error;

/// A stream cannot be decoded. The connection is of no further use.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("log stream, frame at byte {offset}: {problem}")]
pub struct DecodeError {
    /// Offset of the frame from the start of the stream.
    pub offset: u64,
    #[source]
    pub problem: Problem,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Problem {
    #[error("a body of {len} bytes is longer than the {max} allowed")]
    TooLong { len: usize, max: usize },
    #[error("checksum {found:#010x} does not match the body's {actual:#010x}: damaged in transit")]
    Checksum { found: u32, actual: u32 },
    #[error("the body ends inside {what}")]
    Ends { what: &'static str },
    #[error("{extra} bytes are left after {what}")]
    Trailing { what: &'static str, extra: usize },
    #[error("{what} does not fit into 64 bits")]
    VarintOverflow { what: &'static str },
    #[error("{what} cannot be {value}")]
    Value { what: &'static str, value: u64 },
    #[error("{what} runs past the greatest 64-bit number")]
    RunsPast { what: &'static str },
    #[error("{what} of {len} bytes is longer than the {max} allowed")]
    DataTooLong {
        what: &'static str,
        len: u64,
        max: usize,
    },
    #[error("{found} at count {count} inside a stretch that began at count {began}")]
    InStretch {
        found: &'static str,
        count: u64,
        began: u64,
    },
    #[error("{what} is not UTF-8")]
    Utf8 { what: &'static str },
    #[error("these are not Lockstep's bytes: the magic number is missing")]
    Magic,
    #[error("log format version {found}, this program reads version {supported}")]
    Version { found: u16, supported: u16 },
    #[error("entry {found} follows where entry {expected} was due: a frame is missing or repeated")]
    Sequence { expected: u64, found: u64 },
    #[error("more than {max} entries in a frame")]
    TooManyEntries { max: usize },
    #[error("entries before the hello that says what they are relative to")]
    NoHello,
    #[error("a second hello")]
    SecondHello,
    #[error("the stream failed before at this frame")]
    Failed,
}

/// An entry that the log cannot take. It was not appended.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EncodeError {
    #[error("entry at count {count} after one at count {last}: positions never go back")]
    PositionBack { count: u64, last: u64 },
    #[error("clock {clock_ns} ns after {last_ns} ns: the guest's clock never goes back")]
    ClockBack { clock_ns: u64, last_ns: u64 },
    #[error("{found} at count {count} inside a stretch that began at count {began}")]
    InStretch {
        found: &'static str,
        count: u64,
        began: u64,
    },
    #[error("{what} of {len} bytes is longer than the {max} a log entry can carry")]
    TooLong {
        what: &'static str,
        len: usize,
        max: usize,
    },
}
