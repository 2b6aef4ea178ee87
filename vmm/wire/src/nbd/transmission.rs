//! The transmission phase: request headers, simple replies, error numbers.

use std::fmt;
use std::io::{self, Read};

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::handshake::read_struct;

pub const REQUEST_MAGIC: u32 = 0x2560_9513;
pub const REPLY_MAGIC: u32 = 0x6744_6698;

/// Command flags.
pub const FLAG_FUA: u16 = 1;
pub const FLAG_NO_HOLE: u16 = 2;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RequestHeader {
    pub magic: U32,
    pub flags: U16,
    pub command: U16,
    pub handle: U64,
    pub offset: U64,
    pub length: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ReplyHeader {
    pub magic: U32,
    pub error: U32,
    pub handle: U64,
}

const _: () = assert!(size_of::<RequestHeader>() == 28);
const _: () = assert!(size_of::<ReplyHeader>() == 16);

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Read,
    Write,
    Disconnect,
    Flush,
    Trim,
    WriteZeroes,
    /// A number that this server does not know; it carries no payload.
    Unknown(u16),
}

impl Command {
    pub fn from_wire(number: u16) -> Command {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            6 => Command::WriteZeroes,
            other => Command::Unknown(other),
        }
    }

    pub fn to_wire(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::WriteZeroes => 6,
            Command::Unknown(number) => number,
        }
    }
}

/// An error number on the wire. The numbers are the protocol's, whatever the host's are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub u32);

impl Errno {
    pub const PERM: Errno = Errno(1);
    pub const IO: Errno = Errno(5);
    pub const NOMEM: Errno = Errno(12);
    pub const INVAL: Errno = Errno(22);
    pub const NOSPC: Errno = Errno(28);
    pub const NOTSUP: Errno = Errno(95);
    /// This connection's view has ended (or the server has).
    pub const SHUTDOWN: Errno = Errno(108);

    fn words(self) -> &'static str {
        match self {
            Errno::PERM => "not permitted",
            Errno::IO => "input/output error",
            Errno::NOMEM => "out of memory",
            Errno::INVAL => "invalid argument",
            Errno::NOSPC => "no space left on the server's device",
            Errno::NOTSUP => "not supported",
            Errno::SHUTDOWN => "the connection's view has ended or the server shuts down",
            _ => "error",
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (NBD error {})", self.words(), self.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {})", self.0, self.words())
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Errno {
        match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Errno::NOSPC,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Errno::PERM,
            io::ErrorKind::OutOfMemory => Errno::NOMEM,
            io::ErrorKind::InvalidInput => Errno::INVAL,
            io::ErrorKind::Unsupported => Errno::NOTSUP,
            _ => Errno::IO,
        }
    }
}

/// A request's header, parsed. A WRITE's payload of `length` bytes follows it on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub command: Command,
    pub flags: u16,
    /// Chosen by the client, sent back in the reply.
    pub handle: u64,
    /// Bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// Why the stream of requests or replies cannot be understood any further.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("a request began with {0:#010x}, which is not NBD's magic number")]
    RequestMagic(u32),
    #[error("a reply began with {0:#010x}, which is not NBD's magic number")]
    ReplyMagic(u32),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Request {
    pub fn from_header(header: &RequestHeader) -> Result<Request, StreamError> {
        if header.magic.get() != REQUEST_MAGIC {
            return Err(StreamError::RequestMagic(header.magic.get()));
        }
        Ok(Request {
            command: Command::from_wire(header.command.get()),
            flags: header.flags.get(),
            handle: header.handle.get(),
            offset: header.offset.get(),
            length: header.length.get(),
        })
    }

    pub fn to_header(&self) -> RequestHeader {
        RequestHeader {
            magic: U32::new(REQUEST_MAGIC),
            flags: U16::new(self.flags),
            command: U16::new(self.command.to_wire()),
            handle: U64::new(self.handle),
            offset: U64::new(self.offset),
            length: U32::new(self.length),
        }
    }

    /// Reads the next header from a stream.
    pub fn read(reader: &mut impl Read) -> Result<Request, StreamError> {
        Request::from_header(&read_struct(reader)?)
    }
}

/// The header of a simple reply; `error` `None` is success.
pub fn reply_header(handle: u64, error: Option<Errno>) -> ReplyHeader {
    ReplyHeader {
        magic: U32::new(REPLY_MAGIC),
        error: U32::new(error.map_or(0, |errno| errno.0)),
        handle: U64::new(handle),
    }
}

/// Reads the next simple reply's header: its handle and whether it succeeded.
pub fn read_reply_header(reader: &mut impl Read) -> Result<(u64, Result<(), Errno>), StreamError> {
    let header: ReplyHeader = read_struct(reader)?;
    if header.magic.get() != REPLY_MAGIC {
        return Err(StreamError::ReplyMagic(header.magic.get()));
    }
    let result = match header.error.get() {
        0 => Ok(()),
        number => Err(Errno(number)),
    };
    Ok((header.handle.get(), result))
}
