//! A client of an `ft-vmm`'s control API.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{ControlAddr, MAX_ANSWER, Request, Response, Status};
use crate::line::{self, LineError};
use crate::net;

/// Why a control request got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot reach the control socket {addr}: {reason}")]
    Connect { addr: String, reason: String },
    #[error("the control connection ended without an answer")]
    Closed,
    #[error("the replica answered: {0}")]
    Replica(String),
    #[error("the replica answered something else: {0}")]
    Unexpected(String),
    #[error(transparent)]
    Line(#[from] LineError),
}

/// A control connection of either kind.
pub enum ControlStream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl ControlStream {
    pub fn try_clone(&self) -> io::Result<ControlStream> {
        Ok(match self {
            ControlStream::Unix(stream) => ControlStream::Unix(stream.try_clone()?),
            ControlStream::Tcp(stream) => ControlStream::Tcp(stream.try_clone()?),
        })
    }

    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            ControlStream::Unix(stream) => stream.set_read_timeout(timeout),
            ControlStream::Tcp(stream) => stream.set_read_timeout(timeout),
        }
    }

    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            ControlStream::Unix(stream) => stream.set_write_timeout(timeout),
            ControlStream::Tcp(stream) => stream.set_write_timeout(timeout),
        }
    }

    /// Closes both directions, which ends a read that blocks in another thread.
    pub fn close(&self) {
        // An error means that it is closed already.
        let _ = match self {
            ControlStream::Unix(stream) => stream.shutdown(std::net::Shutdown::Both),
            ControlStream::Tcp(stream) => stream.shutdown(std::net::Shutdown::Both),
        };
    }
}

impl Read for ControlStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            ControlStream::Unix(stream) => stream.read(buffer),
            ControlStream::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for ControlStream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            ControlStream::Unix(stream) => stream.write(data),
            ControlStream::Tcp(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection to a replica's control API.
pub struct ControlClient {
    stream: BufReader<ControlStream>,
}

impl ControlClient {
    /// `timeout` bounds the connection and every wait for an answer.
    pub fn connect(addr: &ControlAddr, timeout: Duration) -> Result<ControlClient, ControlError> {
        let fail = |reason: String| ControlError::Connect {
            addr: addr.to_string(),
            reason,
        };
        let stream = match addr {
            ControlAddr::Unix(path) => ControlStream::Unix(
                UnixStream::connect(path).map_err(|error| fail(error.to_string()))?,
            ),
            ControlAddr::Tcp(tcp) => ControlStream::Tcp(
                net::connect(tcp, timeout).map_err(|error| fail(error.to_string()))?,
            ),
        };
        stream
            .set_read_timeout(Some(timeout))
            .map_err(|error| fail(error.to_string()))?;
        stream
            .set_write_timeout(Some(timeout))
            .map_err(|error| fail(error.to_string()))?;
        Ok(ControlClient {
            stream: BufReader::new(stream),
        })
    }

    /// One request and its answer; [`Response::Error`] becomes [`ControlError::Replica`].
    pub fn call(&mut self, request: &Request) -> Result<Response, ControlError> {
        line::write_message(self.stream.get_mut(), request)?;
        match line::read_message(&mut self.stream, MAX_ANSWER)? {
            Some(Response::Error { message }) => Err(ControlError::Replica(message)),
            Some(response) => Ok(response),
            None => Err(ControlError::Closed),
        }
    }

    pub fn status(&mut self) -> Result<Status, ControlError> {
        match self.call(&Request::Status)? {
            Response::Status(status) => Ok(*status),
            other => Err(ControlError::Unexpected(format!("{other:?}"))),
        }
    }

    /// Makes the process abort at once. No answer is expected.
    pub fn kill(mut self) -> Result<(), ControlError> {
        Ok(line::write_message(self.stream.get_mut(), &Request::Kill)?)
    }

    /// Turns this connection into the guest's console: what is read is the guest's output, what
    /// is written its input. Timeouts are off from here on.
    pub fn console(mut self) -> Result<BufReader<ControlStream>, ControlError> {
        match self.call(&Request::Console)? {
            Response::Done => {}
            other => return Err(ControlError::Unexpected(format!("{other:?}"))),
        }
        let stream = self.stream.get_ref();
        stream
            .set_read_timeout(None)
            .and(stream.set_write_timeout(None))
            .map_err(LineError::Io)?;
        Ok(self.stream)
    }
}
