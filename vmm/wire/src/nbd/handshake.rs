//! The handshake: greeting, options and their replies, for a server and for a client.

use std::io::{self, Read, Write};

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ExportInfo, MAX_OPTION, MAX_STRING};

/// `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: second word of the greeting, and first of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Handshake flags (16 bits from the server, 32 from the client).
pub const FIXED_NEWSTYLE: u16 = 1;
pub const NO_ZEROES: u16 = 2;

pub const OPT_EXPORT_NAME: u32 = 1;
pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;

pub const REP_ACK: u32 = 1;
pub const REP_SERVER: u32 = 2;
pub const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
pub const REP_ERR_UNSUP: u32 = REP_ERROR | 1;
pub const REP_ERR_POLICY: u32 = REP_ERROR | 2;
pub const REP_ERR_INVALID: u32 = REP_ERROR | 3;
pub const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
pub const REP_ERR_SHUTDOWN: u32 = REP_ERROR | 7;
pub const REP_ERR_TOO_BIG: u32 = REP_ERROR | 9;

pub const INFO_EXPORT: u16 = 0;
pub const INFO_NAME: u16 = 1;
pub const INFO_BLOCK_SIZE: u16 = 3;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Greeting {
    pub magic: U64,
    pub option_magic: U64,
    pub flags: U16,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionHeader {
    pub magic: U64,
    pub option: U32,
    pub length: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionReplyHeader {
    pub magic: U64,
    pub option: U32,
    pub kind: U32,
    pub length: U32,
}

const _: () = assert!(size_of::<Greeting>() == 18);
const _: () = assert!(size_of::<OptionHeader>() == 16);
const _: () = assert!(size_of::<OptionReplyHeader>() == 20);

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("the peer does not speak NBD (it began with {0:#018x})")]
    Magic(u64),
    #[error("the server speaks the old handshake only; fixed newstyle is needed")]
    NotFixedNewstyle,
    #[error("the client set handshake flags {0:#x} that were not offered")]
    ClientFlags(u32),
    #[error("an option did not begin with IHAVEOPT but {0:#018x}")]
    OptionMagic(u64),
    #[error("an option's reply began with {0:#018x}")]
    OptionReplyMagic(u64),
    #[error("the reply is to option {got}, not to option {asked}")]
    OptionMismatch { asked: u32, got: u32 },
    #[error("an option of {0} bytes is too long")]
    OptionTooLong(u32),
    #[error("malformed data of option {option}: {what}")]
    Malformed { option: u32, what: &'static str },
    #[error("the server refused the export: {0}")]
    Refused(String),
    /// The server knows the export and does not allow it to this client: for a replica, its view
    /// has ended.
    #[error("the server refused the export: {0}")]
    Fenced(String),
    #[error("the server did not send the export's size")]
    NoExportInfo,
    #[error("the server's reply of kind {0:#x} was not expected")]
    UnexpectedReply(u32),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads one fixed-size structure.
pub(crate) fn read_struct<T: FromBytes + IntoBytes>(reader: &mut impl Read) -> io::Result<T> {
    let mut value = T::new_zeroed();
    reader.read_exact(value.as_mut_bytes())?;
    Ok(value)
}

/// One option as a server receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionRequest {
    pub option: u32,
    pub data: Vec<u8>,
}

/// Server: reads the next option. `Err(OptionTooLong)` leaves the stream unusable.
pub fn read_option(reader: &mut impl Read) -> Result<OptionRequest, HandshakeError> {
    let header: OptionHeader = read_struct(reader)?;
    if header.magic.get() != OPTION_MAGIC {
        return Err(HandshakeError::OptionMagic(header.magic.get()));
    }
    let length = header.length.get();
    if length > MAX_OPTION {
        return Err(HandshakeError::OptionTooLong(length));
    }
    let mut data = vec![0; length as usize];
    reader.read_exact(&mut data)?;
    Ok(OptionRequest {
        option: header.option.get(),
        data,
    })
}

/// What INFO and GO ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InfoRequest {
    pub name: String,
    /// The INFO_* items that the client wants beside INFO_EXPORT.
    pub wants: Vec<u16>,
}

/// Parses the data of INFO or GO: name length, name, count, items.
pub fn parse_info_request(option: u32, data: &[u8]) -> Result<InfoRequest, HandshakeError> {
    let bad = |what| HandshakeError::Malformed { option, what };
    let (length, rest) = U32::read_from_prefix(data).map_err(|_| bad("no name length"))?;
    let length = length.get() as usize;
    if length > MAX_STRING {
        return Err(bad("the name is longer than 4096 bytes"));
    }
    if length > rest.len() {
        return Err(bad("the name is longer than the option"));
    }
    let (name, rest) = rest.split_at(length);
    let name = std::str::from_utf8(name).map_err(|_| bad("the name is not UTF-8"))?;
    let (count, rest) = U16::read_from_prefix(rest).map_err(|_| bad("no count of items"))?;
    if rest.len() != usize::from(count.get()) * 2 {
        return Err(bad("the count of items does not match the length"));
    }
    let wants = rest
        .chunks_exact(2)
        .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
        .collect();
    Ok(InfoRequest {
        name: name.to_owned(),
        wants,
    })
}

/// Client: the data of INFO or GO.
pub fn info_request_bytes(request: &InfoRequest) -> Vec<u8> {
    let mut data = (request.name.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(request.name.as_bytes());
    data.extend_from_slice(&(request.wants.len() as u16).to_be_bytes());
    for item in &request.wants {
        data.extend_from_slice(&item.to_be_bytes());
    }
    data
}

/// The data of a REP_INFO reply that carries INFO_EXPORT.
pub fn info_export_bytes(info: &ExportInfo) -> Vec<u8> {
    let mut data = INFO_EXPORT.to_be_bytes().to_vec();
    data.extend_from_slice(&info.size.to_be_bytes());
    data.extend_from_slice(&info.flags.to_be_bytes());
    data
}

/// The data of a REP_INFO reply that carries INFO_BLOCK_SIZE.
pub fn info_block_size_bytes(info: &ExportInfo) -> Vec<u8> {
    let mut data = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [info.block_min, info.block_preferred, info.block_max] {
        data.extend_from_slice(&size.to_be_bytes());
    }
    data
}

/// Client: takes what a REP_INFO reply says into `info`. Unknown items are skipped, as the
/// protocol asks. Returns whether it was INFO_EXPORT.
pub fn parse_info_reply(data: &[u8], info: &mut ExportInfo) -> Result<bool, HandshakeError> {
    let bad = |what| HandshakeError::Malformed {
        option: OPT_GO,
        what,
    };
    let (item, rest) = U16::read_from_prefix(data).map_err(|_| bad("an empty information"))?;
    match item.get() {
        INFO_EXPORT => {
            let (size, rest) = U64::read_from_prefix(rest).map_err(|_| bad("no size"))?;
            let (flags, _) = U16::read_from_prefix(rest).map_err(|_| bad("no flags"))?;
            (info.size, info.flags) = (size.get(), flags.get());
            Ok(true)
        }
        INFO_BLOCK_SIZE => {
            let sizes = <[U32; 3]>::read_from_bytes(rest).map_err(|_| bad("block sizes"))?;
            info.block_min = sizes[0].get();
            info.block_preferred = sizes[1].get();
            info.block_max = sizes[2].get();
            Ok(false)
        }
        _ => Ok(false),
    }
}

/// Client: sends one option.
pub fn write_option(writer: &mut impl Write, option: u32, data: &[u8]) -> io::Result<()> {
    let header = OptionHeader {
        magic: U64::new(OPTION_MAGIC),
        option: U32::new(option),
        length: U32::new(data.len() as u32),
    };
    writer.write_all(&[header.as_bytes(), data].concat())
}

/// Server: the bytes of one option reply.
pub fn option_reply_bytes(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let header = OptionReplyHeader {
        magic: U64::new(OPTION_REPLY_MAGIC),
        option: U32::new(option),
        kind: U32::new(kind),
        length: U32::new(data.len() as u32),
    };
    [header.as_bytes(), data].concat()
}

/// One reply as a client receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionReply {
    pub kind: u32,
    pub data: Vec<u8>,
}

impl OptionReply {
    /// Whether the server refused the option, and its words for it.
    pub fn refusal(&self) -> Option<String> {
        if self.kind & REP_ERROR == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&self.data);
        let name = match self.kind {
            REP_ERR_UNSUP => "option not supported",
            REP_ERR_POLICY => "not allowed",
            REP_ERR_INVALID => "invalid request",
            REP_ERR_UNKNOWN => "unknown export",
            REP_ERR_SHUTDOWN => "shutting down",
            REP_ERR_TOO_BIG => "request too big",
            _ => "error",
        };
        Some(if text.is_empty() {
            name.to_owned()
        } else {
            format!("{name}: {text}")
        })
    }
}

/// Client: reads one reply to the option `asked`.
pub fn read_option_reply(
    reader: &mut impl Read,
    asked: u32,
) -> Result<OptionReply, HandshakeError> {
    let header: OptionReplyHeader = read_struct(reader)?;
    if header.magic.get() != OPTION_REPLY_MAGIC {
        return Err(HandshakeError::OptionReplyMagic(header.magic.get()));
    }
    if header.option.get() != asked {
        return Err(HandshakeError::OptionMismatch {
            asked,
            got: header.option.get(),
        });
    }
    if header.length.get() > MAX_OPTION {
        return Err(HandshakeError::OptionTooLong(header.length.get()));
    }
    let mut data = vec![0; header.length.get() as usize];
    reader.read_exact(&mut data)?;
    Ok(OptionReply {
        kind: header.kind.get(),
        data,
    })
}

/// Server: sends the greeting and reads the client's flags; returns whether the client asked for
/// no zeroes after EXPORT_NAME.
pub fn greet(stream: &mut (impl Read + Write)) -> Result<bool, HandshakeError> {
    let greeting = Greeting {
        magic: U64::new(MAGIC),
        option_magic: U64::new(OPTION_MAGIC),
        flags: U16::new(FIXED_NEWSTYLE | NO_ZEROES),
    };
    stream.write_all(greeting.as_bytes())?;
    let flags: U32 = read_struct(stream)?;
    let flags = flags.get();
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(HandshakeError::ClientFlags(flags));
    }
    Ok(flags & u32::from(NO_ZEROES) != 0)
}

/// Client: reads the greeting and answers it, then asks for `name` with GO.
pub fn negotiate(
    stream: &mut (impl Read + Write),
    name: &str,
) -> Result<ExportInfo, HandshakeError> {
    let greeting: Greeting = read_struct(stream)?;
    if greeting.magic.get() != MAGIC || greeting.option_magic.get() != OPTION_MAGIC {
        return Err(HandshakeError::Magic(greeting.magic.get()));
    }
    let offered = greeting.flags.get();
    if offered & FIXED_NEWSTYLE == 0 {
        return Err(HandshakeError::NotFixedNewstyle);
    }
    let mine = u32::from(offered & (FIXED_NEWSTYLE | NO_ZEROES));
    stream.write_all(&mine.to_be_bytes())?;
    let request = InfoRequest {
        name: name.to_owned(),
        wants: vec![INFO_BLOCK_SIZE],
    };
    write_option(stream, OPT_GO, &info_request_bytes(&request))?;
    let mut info = ExportInfo {
        size: 0,
        flags: 0,
        block_min: 1,
        block_preferred: 4096,
        block_max: super::MAX_PAYLOAD,
    };
    let mut sized = false;
    loop {
        let reply = read_option_reply(stream, OPT_GO)?;
        match reply.kind {
            REP_INFO => sized |= parse_info_reply(&reply.data, &mut info)?,
            REP_ACK if sized => return Ok(info),
            REP_ACK => return Err(HandshakeError::NoExportInfo),
            kind => {
                return Err(match reply.refusal() {
                    Some(words) if kind == REP_ERR_POLICY => HandshakeError::Fenced(words),
                    Some(words) => HandshakeError::Refused(words),
                    None => HandshakeError::UnexpectedReply(kind),
                });
            }
        }
    }
}
