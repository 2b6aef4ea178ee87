//! The logging channel: a TCP connection from the primary to the backup.
//!
//! One thread writes what the protocol wants sent, another reads. The primary connects, and again
//! as long as the handshake has not been done; the backup listens.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use ftlog::replica::Phase;

use super::protocol::Protocol;
use crate::link::{lock, spawn};

/// For the thread that writes.
#[derive(Debug)]
pub enum ToChannel {
    Bytes(Bytes),
    Close,
}

/// Where this replica's end is.
#[derive(Debug)]
pub enum End {
    /// The primary connects to the backup's `HOST:PORT`.
    Connect(String),
    /// The backup listens.
    Listen(TcpListener),
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
const READ_BUFFER: usize = 256 << 10;

/// The connection that is there now.
type Current = Arc<Mutex<Option<TcpStream>>>;

/// Starts the channel's threads. `silence` bounds a write: a peer that takes nothing for so long is
/// suspected anyway. `record` gets a copy of everything that is sent.
pub fn start(
    end: End,
    protocol: Protocol,
    to_channel: Receiver<ToChannel>,
    silence: Duration,
    record: Option<File>,
) -> io::Result<()> {
    let current = Current::default();
    let writer_current = Arc::clone(&current);
    spawn("log-send", move || {
        write(&to_channel, &writer_current, record)
    })?;
    spawn("log-receive", move || match end {
        End::Connect(addr) => connect(&addr, &protocol, &current, silence),
        End::Listen(listener) => accept(&listener, &protocol, &current, silence),
    })
}

fn connect(addr: &str, protocol: &Protocol, current: &Current, silence: Duration) {
    let mut told = false;
    while protocol.phase() == Phase::Starting {
        match wire::net::connect(addr, CONNECT_TIMEOUT) {
            Ok(stream) => converse(stream, protocol, current, silence),
            Err(why) => {
                if !told {
                    tracing::info!(%why, "waiting for the backup");
                    told = true;
                }
                std::thread::sleep(RECONNECT_PAUSE);
            }
        }
    }
}

fn accept(listener: &TcpListener, protocol: &Protocol, current: &Current, silence: Duration) {
    while protocol.phase() == Phase::Waiting {
        match listener.accept() {
            Ok((stream, peer)) => {
                tracing::info!(%peer, "a primary connects");
                wire::net::tune(&stream);
                converse(stream, protocol, current, silence);
            }
            Err(why) => {
                tracing::warn!(%why, "accept");
                std::thread::sleep(RECONNECT_PAUSE);
            }
        }
    }
}

/// Reads until the connection ends.
fn converse(mut stream: TcpStream, protocol: &Protocol, current: &Current, silence: Duration) {
    let writer = stream
        .set_write_timeout(Some(silence))
        .and_then(|()| stream.try_clone());
    match writer {
        Ok(writer) => *lock(current) = Some(writer),
        Err(why) => return tracing::warn!(%why, "logging channel"),
    }
    protocol.connected();
    let mut buffer = vec![0; READ_BUFFER];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => protocol.received(&buffer[..length]),
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => {
                tracing::debug!(%why, "logging channel");
                break;
            }
        }
    }
    *lock(current) = None;
    protocol.closed();
}

fn write(to_channel: &Receiver<ToChannel>, current: &Current, mut record: Option<File>) {
    for message in to_channel {
        let stream = lock(current)
            .as_ref()
            .and_then(|stream| stream.try_clone().ok());
        match message {
            ToChannel::Bytes(bytes) => {
                keep(&mut record, &bytes);
                if let Some(mut stream) = stream
                    && let Err(why) = stream.write_all(&bytes)
                {
                    tracing::debug!(%why, "logging channel");
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
            ToChannel::Close => {
                if let Some(stream) = stream {
                    // An error means that it is closed already.
                    let _ = stream.shutdown(Shutdown::Both);
                }
            }
        }
    }
}

fn keep(record: &mut Option<File>, bytes: &[u8]) {
    if let Some(file) = record
        && let Err(why) = file.write_all(bytes)
    {
        tracing::warn!(%why, "the log file cannot be written; going on without it");
        *record = None;
    }
}
