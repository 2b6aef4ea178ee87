//! A small NBD client: one connection, many requests in flight.
//!
//! [`NbdClient::connect`] negotiates; [`NbdClient::split`] gives a half that sends requests and a
//! half that receives replies, for two threads. Replies come in any order and are told apart by
//! the handle that the caller chose. The blocking methods on [`NbdClient`] itself (one request at
//! a time) serve tools and tests.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use zerocopy::IntoBytes;

use super::export::ExportName;
use super::handshake::{self, HandshakeError};
use super::transmission::{self, Command, Errno, FLAG_FUA, Request, StreamError};
use super::{ExportInfo, MAX_PAYLOAD};
use crate::net::{self, NetError};

/// Why a connection to the disk server failed.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("NBD handshake for export {export:?} at {addr}: {source}")]
    Handshake {
        addr: String,
        export: String,
        source: HandshakeError,
    },
    #[error("the server sent a reply to request {0}, which is not in flight")]
    UnknownHandle(u64),
    #[error("request {0} is already in flight")]
    HandleInUse(u64),
    #[error("a request of {0} bytes is longer than the {MAX_PAYLOAD} bytes of one request")]
    TooLong(usize),
    #[error("the disk server closed the connection")]
    Closed,
    #[error("the disk server refused the request: {0}")]
    Refused(Errno),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> NbdError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe => NbdError::Closed,
            _ => NbdError::Stream(StreamError::Io(error)),
        }
    }
}

/// One request. Offsets and lengths are in bytes; a length of 0 is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    Read {
        offset: u64,
        length: u32,
    },
    /// With `fua` the reply comes after the data are on stable storage.
    Write {
        offset: u64,
        data: &'a [u8],
        fua: bool,
    },
    /// The reply comes after every write that was answered before this request was sent is on
    /// stable storage.
    Flush,
    /// The contents are no longer needed; they read as anything until written.
    Trim {
        offset: u64,
        length: u32,
    },
    WriteZeroes {
        offset: u64,
        length: u32,
        fua: bool,
    },
}

impl Operation<'_> {
    fn request(&self, handle: u64) -> Result<Request, NbdError> {
        let fua_flag = |fua: bool| if fua { FLAG_FUA } else { 0 };
        let (command, flags, offset, length) = match *self {
            Operation::Read { offset, length } => (Command::Read, 0, offset, length),
            Operation::Write { offset, data, fua } => {
                let length =
                    u32::try_from(data.len()).map_err(|_| NbdError::TooLong(data.len()))?;
                (Command::Write, fua_flag(fua), offset, length)
            }
            Operation::Flush => (Command::Flush, 0, 0, 0),
            Operation::Trim { offset, length } => (Command::Trim, 0, offset, length),
            Operation::WriteZeroes {
                offset,
                length,
                fua,
            } => (Command::WriteZeroes, fua_flag(fua), offset, length),
        };
        let carries_data = matches!(command, Command::Read | Command::Write);
        if carries_data && length > MAX_PAYLOAD {
            return Err(NbdError::TooLong(length as usize));
        }
        Ok(Request {
            command,
            flags,
            handle,
            offset,
            length,
        })
    }
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdReply {
    pub handle: u64,
    /// The data of a READ (empty for everything else), or the server's error.
    pub result: Result<Bytes, Errno>,
}

/// Handle -> bytes of payload to expect with its reply.
type InFlight = Arc<Mutex<BTreeMap<u64, u32>>>;

fn lock(in_flight: &InFlight) -> MutexGuard<'_, BTreeMap<u64, u32>> {
    // A panic elsewhere cannot leave the map half changed: each change is one call.
    in_flight.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The half that sends requests.
pub struct NbdSender {
    stream: TcpStream,
    in_flight: InFlight,
}

/// The half that receives replies.
pub struct NbdReceiver {
    stream: BufReader<TcpStream>,
    in_flight: InFlight,
}

impl NbdSender {
    /// Sends `operation` under `handle`, which no request in flight may have. Blocks while the
    /// server's socket is full.
    pub fn send(&mut self, handle: u64, operation: Operation<'_>) -> Result<(), NbdError> {
        let request = operation.request(handle)?;
        let expected = if request.command == Command::Read {
            request.length
        } else {
            0
        };
        if lock(&self.in_flight).insert(handle, expected).is_some() {
            return Err(NbdError::HandleInUse(handle));
        }
        self.stream.write_all(request.to_header().as_bytes())?;
        if let Operation::Write { data, .. } = operation {
            self.stream.write_all(data)?;
        }
        Ok(())
    }

    /// Requests sent and not yet answered.
    pub fn in_flight(&self) -> usize {
        lock(&self.in_flight).len()
    }

    /// A handle that closes the connection from any thread, which ends a blocked `recv`.
    pub fn closer(&self) -> Result<NbdCloser, NbdError> {
        Ok(NbdCloser {
            stream: self.stream.try_clone()?,
        })
    }

    /// Says goodbye: the server finishes what it has and closes.
    pub fn disconnect(mut self) -> Result<(), NbdError> {
        let request = Request {
            command: Command::Disconnect,
            flags: 0,
            handle: 0,
            offset: 0,
            length: 0,
        };
        Ok(self.stream.write_all(request.to_header().as_bytes())?)
    }
}

/// Closes a connection from any thread.
pub struct NbdCloser {
    stream: TcpStream,
}

impl NbdCloser {
    pub fn close(&self) {
        // An error means that it is closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl NbdReceiver {
    /// Waits for the next reply. [`NbdError::Closed`] when the server closed the connection;
    /// what was in flight then is unknown.
    pub fn recv(&mut self) -> Result<NbdReply, NbdError> {
        let (handle, result) = match transmission::read_reply_header(&mut self.stream) {
            Ok(reply) => reply,
            Err(StreamError::Io(error)) => return Err(error.into()),
            Err(error) => return Err(error.into()),
        };
        let expected = lock(&self.in_flight)
            .remove(&handle)
            .ok_or(NbdError::UnknownHandle(handle))?;
        if let Err(errno) = result {
            return Ok(NbdReply {
                handle,
                result: Err(errno),
            });
        }
        let mut data = vec![0; expected as usize];
        self.stream.read_exact(&mut data)?;
        Ok(NbdReply {
            handle,
            result: Ok(Bytes::from(data)),
        })
    }
}

/// A connection in the transmission phase.
pub struct NbdClient {
    info: ExportInfo,
    sender: NbdSender,
    receiver: NbdReceiver,
    next_handle: u64,
}

impl NbdClient {
    /// Connects to `addr` (`HOST:PORT`) and opens `export`. `timeout` bounds each step of the
    /// connection and the handshake; requests themselves are not bounded.
    pub fn connect(
        addr: &str,
        export: &ExportName,
        timeout: Duration,
    ) -> Result<NbdClient, NbdError> {
        let mut stream = net::connect(addr, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let export = export.to_string();
        let info =
            handshake::negotiate(&mut stream, &export).map_err(|source| NbdError::Handshake {
                addr: addr.to_owned(),
                export,
                source,
            })?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)?;
        let in_flight = InFlight::default();
        let reader = BufReader::with_capacity(64 << 10, stream.try_clone()?);
        Ok(NbdClient {
            info,
            sender: NbdSender {
                stream,
                in_flight: in_flight.clone(),
            },
            receiver: NbdReceiver {
                stream: reader,
                in_flight,
            },
            next_handle: 0,
        })
    }

    /// What the server said of the export.
    pub fn info(&self) -> ExportInfo {
        self.info
    }

    /// The two halves, for two threads.
    pub fn split(self) -> (NbdSender, NbdReceiver) {
        (self.sender, self.receiver)
    }

    fn call(&mut self, operation: Operation<'_>) -> Result<Bytes, NbdError> {
        self.next_handle += 1;
        self.sender.send(self.next_handle, operation)?;
        self.receiver.recv()?.result.map_err(NbdError::Refused)
    }

    /// Reads `length` bytes at `offset`.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Bytes, NbdError> {
        self.call(Operation::Read { offset, length })
    }

    /// Writes `data` at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> Result<(), NbdError> {
        self.call(Operation::Write { offset, data, fua }).map(drop)
    }

    /// Puts completed writes on stable storage.
    pub fn flush(&mut self) -> Result<(), NbdError> {
        self.call(Operation::Flush).map(drop)
    }

    /// Gives up the contents of a range.
    pub fn trim(&mut self, offset: u64, length: u32) -> Result<(), NbdError> {
        self.call(Operation::Trim { offset, length }).map(drop)
    }

    /// Writes zeroes.
    pub fn write_zeroes(&mut self, offset: u64, length: u32) -> Result<(), NbdError> {
        self.call(Operation::WriteZeroes {
            offset,
            length,
            fua: false,
        })
        .map(drop)
    }
}
