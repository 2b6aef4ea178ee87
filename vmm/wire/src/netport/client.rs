//! A replica's end of a switch port: one connection, a sending and a receiving half.

use std::io::{BufReader, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::{
    FromSwitch, Hello, Message, ToSwitch, VERSION, WireError, control_bytes, frame_header,
    read_message,
};
use crate::net::{self, NetError};

/// Why the port of a switch cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetportError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("the switch refused the connection: {0}")]
    Refused(String),
    #[error("the switch speaks version {0} of the port protocol, this is version {VERSION}")]
    Version(u32),
    #[error("the switch began with {0}")]
    NoWelcome(String),
    #[error("the switch closed the connection")]
    Closed,
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl From<std::io::Error> for NetportError {
    fn from(error: std::io::Error) -> NetportError {
        NetportError::Wire(WireError::Io(error))
    }
}

/// A connection that has been welcomed.
pub struct NetportClient {
    sender: NetportSender,
    receiver: NetportReceiver,
}

impl NetportClient {
    /// Connects to `addr` (`HOST:PORT`) and says hello. `timeout` bounds each step until the
    /// welcome.
    pub fn connect(
        addr: &str,
        hello: &Hello,
        timeout: Duration,
    ) -> Result<NetportClient, NetportError> {
        let mut stream = net::connect(addr, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(&control_bytes(&ToSwitch::Hello(hello.clone()))?)?;
        let mut reader = BufReader::with_capacity(128 << 10, stream.try_clone()?);
        match read_message(&mut reader)? {
            Some(Message::Control(FromSwitch::Welcome { version: VERSION })) => {}
            Some(Message::Control(FromSwitch::Welcome { version })) => {
                return Err(NetportError::Version(version));
            }
            Some(Message::Control(FromSwitch::Refused { reason })) => {
                return Err(NetportError::Refused(reason));
            }
            Some(other) => return Err(NetportError::NoWelcome(format!("{other:?}"))),
            None => return Err(NetportError::Closed),
        }
        stream.set_read_timeout(None)?;
        Ok(NetportClient {
            sender: NetportSender { stream },
            receiver: NetportReceiver { stream: reader },
        })
    }

    /// The two halves, for two threads.
    pub fn split(self) -> (NetportSender, NetportReceiver) {
        (self.sender, self.receiver)
    }
}

/// The half that sends. Calls block while the switch's socket is full.
pub struct NetportSender {
    stream: TcpStream,
}

impl NetportSender {
    /// One Ethernet frame from the guest.
    pub fn frame(&mut self, frame: &[u8]) -> Result<(), NetportError> {
        let header = frame_header(frame)?;
        let total = header.len() + frame.len();
        let sent = self
            .stream
            .write_vectored(&[IoSlice::new(&header), IoSlice::new(frame)])?;
        if sent < total {
            let whole = [&header[..], frame].concat();
            self.stream.write_all(&whole[sent..])?;
        }
        Ok(())
    }

    /// This replica has won `view`; the switch answers [`FromSwitch::Live`] or
    /// [`FromSwitch::Fenced`].
    pub fn go_live(&mut self, view: u64) -> Result<(), NetportError> {
        self.control(&ToSwitch::GoLive { view })
    }

    /// The first `frames` inbound frames of this connection need never be given again.
    pub fn consumed(&mut self, frames: u64) -> Result<(), NetportError> {
        self.control(&ToSwitch::Consumed { frames })
    }

    /// A handle that closes the connection from any thread, which ends a blocked `recv`.
    pub fn closer(&self) -> Result<NetportCloser, NetportError> {
        Ok(NetportCloser {
            stream: self.stream.try_clone()?,
        })
    }

    fn control(&mut self, message: &ToSwitch) -> Result<(), NetportError> {
        Ok(self.stream.write_all(&control_bytes(message)?)?)
    }
}

/// Closes a connection from any thread.
pub struct NetportCloser {
    stream: TcpStream,
}

impl NetportCloser {
    pub fn close(&self) {
        // An error means that it is closed already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// The half that receives.
pub struct NetportReceiver {
    stream: BufReader<TcpStream>,
}

impl NetportReceiver {
    /// Waits for the next frame or control message; [`NetportError::Closed`] at the end.
    pub fn recv(&mut self) -> Result<Message<FromSwitch>, NetportError> {
        match read_message(&mut self.stream)? {
            Some(Message::Control(FromSwitch::Refused { reason })) => {
                Err(NetportError::Refused(reason))
            }
            Some(message) => Ok(message),
            None => Err(NetportError::Closed),
        }
    }
}
