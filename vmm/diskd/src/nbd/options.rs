//! The handshake: what the client may ask for before it has chosen an export.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use wire::nbd::handshake::{self, *};
use wire::nbd::{ExportInfo, ExportName, MAX_PAYLOAD, flags};

use super::{Chosen, ConnectionError, Export};
use crate::access::{Access, Identity};

/// Options that one client may send, at most.
const MAX_OPTIONS: u32 = 1024;

/// Why an export cannot be opened: the reply's kind and its words.
struct Refusal(u32, String);

fn choose(
    name: &str,
    exports: &[Arc<Export>],
    access: &Access,
) -> Result<(Chosen, ExportInfo), Refusal> {
    let parsed: ExportName = name
        .parse()
        .map_err(|error| Refusal(REP_ERR_UNKNOWN, format!("{error}")))?;
    let found = exports.iter().find(|export| *export.name == *parsed.disk);
    let Some(export) = found else {
        let words = format!("this server has no disk {:?}", parsed.disk);
        return Err(Refusal(REP_ERR_UNKNOWN, words));
    };
    let identity = Arc::new(match parsed.view {
        Some(tag) => Identity::Replica {
            tag,
            session: access.session(),
        },
        None => Identity::Plain,
    });
    access
        .check(&identity, &export.name, false)
        .map_err(|denied| Refusal(REP_ERR_POLICY, denied.to_string()))?;
    let writable = !export.image.read_only() && access.check(&identity, &export.name, true).is_ok();
    let info = ExportInfo {
        size: export.image.size(),
        flags: export_flags(writable, &identity),
        block_min: 1,
        block_preferred: 4096,
        block_max: MAX_PAYLOAD,
    };
    Ok((
        Chosen {
            export: export.clone(),
            identity,
        },
        info,
    ))
}

fn export_flags(writable: bool, identity: &Identity) -> u16 {
    let mut offered = flags::HAS_FLAGS | flags::SEND_FLUSH | flags::SEND_FUA;
    if *identity == Identity::Plain {
        // One file serves every connection, so a flush on one covers the writes of all. A
        // replica writes on its latest connection only.
        offered |= flags::CAN_MULTI_CONN;
    }
    let more = if writable {
        flags::SEND_TRIM | flags::SEND_WRITE_ZEROES
    } else {
        flags::READ_ONLY
    };
    offered | more
}

/// Talks until the client has chosen an export. `None`: the client has left.
pub(super) fn haggle(
    stream: &mut TcpStream,
    exports: &[Arc<Export>],
    access: &Access,
) -> Result<Option<Chosen>, ConnectionError> {
    let no_zeroes = handshake::greet(stream)?;
    for _ in 0..MAX_OPTIONS {
        let OptionRequest { option, data } = match handshake::read_option(stream) {
            Ok(request) => request,
            Err(HandshakeError::Io(error)) if left(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match option {
            OPT_GO | OPT_INFO => {
                let done = inform(stream, option, &data, exports, access)?;
                if let (OPT_GO, Some(chosen)) = (option, done) {
                    return Ok(Some(chosen));
                }
            }
            OPT_EXPORT_NAME => {
                return export_name(stream, &data, no_zeroes, exports, access).map(Some);
            }
            OPT_LIST => list(stream, &data, exports)?,
            OPT_ABORT => {
                // The client may be gone already; it leaves either way.
                let _ = reply(stream, option, REP_ACK, &[]);
                return Ok(None);
            }
            _ => reply(
                stream,
                option,
                REP_ERR_UNSUP,
                b"this server does not know the option",
            )?,
        }
    }
    Err(ConnectionError::TooManyOptions(MAX_OPTIONS))
}

pub(super) fn left(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset)
}

fn reply(
    stream: &mut impl Write,
    option: u32,
    kind: u32,
    data: &[u8],
) -> Result<(), ConnectionError> {
    Ok(stream.write_all(&option_reply_bytes(option, kind, data))?)
}

/// INFO and GO.
fn inform(
    stream: &mut impl Write,
    option: u32,
    data: &[u8],
    exports: &[Arc<Export>],
    access: &Access,
) -> Result<Option<Chosen>, ConnectionError> {
    let request = match parse_info_request(option, data) {
        Ok(request) => request,
        Err(error) => {
            reply(
                stream,
                option,
                REP_ERR_INVALID,
                error.to_string().as_bytes(),
            )?;
            return Ok(None);
        }
    };
    let (chosen, info) = match choose(&request.name, exports, access) {
        Ok(found) => found,
        Err(Refusal(kind, words)) => {
            reply(stream, option, kind, words.as_bytes())?;
            return Ok(None);
        }
    };
    let mut answer = option_reply_bytes(option, REP_INFO, &info_export_bytes(&info));
    if request.wants.contains(&INFO_BLOCK_SIZE) {
        answer.extend(option_reply_bytes(
            option,
            REP_INFO,
            &info_block_size_bytes(&info),
        ));
    }
    if request.wants.contains(&INFO_NAME) {
        let name = [&INFO_NAME.to_be_bytes()[..], request.name.as_bytes()].concat();
        answer.extend(option_reply_bytes(option, REP_INFO, &name));
    }
    answer.extend(option_reply_bytes(option, REP_ACK, &[]));
    stream.write_all(&answer)?;
    Ok(Some(chosen))
}

/// EXPORT_NAME: the old way to choose, which has no way to say no but to hang up.
fn export_name(
    stream: &mut (impl Read + Write),
    data: &[u8],
    no_zeroes: bool,
    exports: &[Arc<Export>],
    access: &Access,
) -> Result<Chosen, ConnectionError> {
    let name = String::from_utf8_lossy(data);
    let (chosen, info) = choose(&name, exports, access)
        .map_err(|Refusal(_, words)| HandshakeError::Refused(words))?;
    let mut answer = info.size.to_be_bytes().to_vec();
    answer.extend(info.flags.to_be_bytes());
    if !no_zeroes {
        answer.extend([0; 124]);
    }
    stream.write_all(&answer)?;
    Ok(chosen)
}

fn list(
    stream: &mut impl Write,
    data: &[u8],
    exports: &[Arc<Export>],
) -> Result<(), ConnectionError> {
    if !data.is_empty() {
        return reply(stream, OPT_LIST, REP_ERR_INVALID, b"LIST carries no data");
    }
    for export in exports {
        let name = export.name.as_bytes();
        let entry = [&(name.len() as u32).to_be_bytes()[..], name].concat();
        reply(stream, OPT_LIST, REP_SERVER, &entry)?;
    }
    reply(stream, OPT_LIST, REP_ACK, &[])
}
