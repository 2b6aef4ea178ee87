//! Connecting and listening over TCP, with errors that say which address and what to do.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Why a TCP address could not be reached or listened on.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("{addr:?} is not an address of the form HOST:PORT: {source}")]
    Resolve { addr: String, source: io::Error },
    #[error("{addr:?} names no address")]
    NoAddress { addr: String },
    #[error("cannot connect to {addr}: {source}")]
    Connect { addr: String, source: io::Error },
    #[error(
        "cannot listen on {addr}: the port is in use; choose another one, \
         or port 0 to let the system pick"
    )]
    PortInUse { addr: String },
    #[error("cannot listen on {addr}: {source}")]
    Listen { addr: String, source: io::Error },
}

fn resolve(addr: &str) -> Result<Vec<SocketAddr>, NetError> {
    let found: Vec<SocketAddr> = addr
        .to_socket_addrs()
        .map_err(|source| NetError::Resolve {
            addr: addr.to_owned(),
            source,
        })?
        .collect();
    if found.is_empty() {
        return Err(NetError::NoAddress {
            addr: addr.to_owned(),
        });
    }
    Ok(found)
}

/// Connects to `HOST:PORT`, trying each address the name has for at most `timeout`, and sets
/// [`tune`]'s options.
pub fn connect(addr: &str, timeout: Duration) -> Result<TcpStream, NetError> {
    let mut last = None;
    for candidate in resolve(addr)? {
        match TcpStream::connect_timeout(&candidate, timeout) {
            Ok(stream) => {
                tune(&stream);
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    let source = last.unwrap_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable));
    Err(NetError::Connect {
        addr: addr.to_owned(),
        source,
    })
}

/// Listens on `HOST:PORT` (port 0: the system picks one).
pub fn listen(addr: &str) -> Result<TcpListener, NetError> {
    let candidates = resolve(addr)?;
    TcpListener::bind(candidates.as_slice()).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => NetError::PortInUse {
            addr: addr.to_owned(),
        },
        _ => NetError::Listen {
            addr: addr.to_owned(),
            source,
        },
    })
}

/// No Nagle delay, and keep-alive probes so that a peer whose host vanished is noticed within
/// about 10 s. Best effort: a socket without these options still works.
pub fn tune(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(4))
        .with_interval(Duration::from_secs(2))
        .with_retries(3);
    let socket = SockRef::from(stream);
    if let Err(error) = socket
        .set_tcp_nodelay(true)
        .and(socket.set_tcp_keepalive(&keepalive))
    {
        tracing::debug!(%error, "socket options not set");
    }
}
