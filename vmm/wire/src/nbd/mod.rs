//! The Network Block Device protocol: the fixed newstyle baseline, both sides.
//!
//! Source of every number here: the NBD protocol document (`doc/proto.md` of the NBD project).
//! What is spoken: fixed newstyle handshake with EXPORT_NAME, ABORT, LIST, INFO and GO; simple
//! replies; READ, WRITE, FLUSH, TRIM, WRITE_ZEROES and DISC; the FUA and NO_HOLE flags. Unknown
//! options are answered with ERR_UNSUP. There is no TLS, and no structured reply.

pub mod client;
pub mod export;
pub mod handshake;
pub mod transmission;

pub use client::{NbdClient, NbdCloser, NbdError, NbdReceiver, NbdReply, NbdSender, Operation};
pub use export::{ExportName, ExportNameError, ViewTag};
pub use handshake::HandshakeError;
pub use transmission::{Command, Errno};

/// The largest payload of one request, in bytes (what common clients assume without asking).
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// The longest export name or description, in bytes (the protocol's own limit).
pub const MAX_STRING: usize = 4096;
/// The longest data of one option that is read into memory, in bytes.
pub const MAX_OPTION: u32 = 64 << 10;

/// Transmission flags: what an export offers.
pub mod flags {
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// What a server says of an export before the transmission phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportInfo {
    /// Bytes.
    pub size: u64,
    /// [`flags`].
    pub flags: u16,
    /// Requests must be multiples of this many bytes, and aligned to it.
    pub block_min: u32,
    /// Bytes of a request that the server serves best.
    pub block_preferred: u32,
    /// The largest payload of a request, in bytes.
    pub block_max: u32,
}

impl ExportInfo {
    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.flags & flags::READ_ONLY != 0
    }
}

#[cfg(test)]
mod tests;
