//! A `passt` process behind the switch: TCP and UDP between the guest and this host's sockets,
//! without privileges, and connections of the guest to the world.
//!
//! One socket pair carries frames in QEMU's stream protocol (32-bit big-endian length, frame).
//! `passt` (Debian 12's) resets a client's connection when the guest has not acknowledged its data
//! for 16 s, or not answered its beginning for 10 s, measured by `tests/passt.rs`; [`super::user`]
//! never does, and is the default for that reason.

use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use wire::netport::MAX_FRAME;

use super::{Forwarded, Sink, Started};
use crate::config::{Forward, Subnet};
use crate::server::Fabric;

/// Frames that wait for `passt`, at most; more are dropped.
const QUEUE: usize = 4096;

/// The last entry of the queue; no frame is empty.
const END: Bytes = Bytes::new();

/// Why `passt` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    #[error("cannot run passt (Debian package \"passt\"): {0}; --net user needs no program")]
    Spawn(io::Error),
    #[error("cannot set up a socket for passt: {0}")]
    Socket(#[from] io::Error),
    #[error("no free port on {host}: {source}")]
    Port { host: SocketAddr, source: io::Error },
    #[error("passt ended at once ({status}): {words}")]
    Ended { status: String, words: String },
    #[error("passt forwards IPv4 addresses only here, and {0} is none")]
    Ipv6(SocketAddr),
}

struct Passt {
    queue: SyncSender<Bytes>,
    socket: UnixStream,
    child: Mutex<Child>,
    stopping: Arc<AtomicBool>,
}

impl Sink for Passt {
    fn send(&self, frame: &Bytes) {
        match self.queue.try_send(frame.clone()) {
            // A full queue drops, as any network does; TCP sends it again.
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }

    fn ready(&self) {}

    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Ends both threads; passt ends by itself when its socket does, the kill makes sure. A
        // full queue needs no end mark: its thread is writing, which fails now.
        let _ = self.socket.shutdown(Shutdown::Both);
        let _ = self.queue.try_send(END);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = child.kill().and_then(|()| child.wait()) {
            tracing::debug!(%error, "passt had ended");
        }
    }
}

/// The port that a forward asks for, or a free one. Another process may take it before passt
/// does; passt then says so.
fn pick(forward: &Forward) -> Result<SocketAddr, PasstError> {
    let host = forward.host;
    if !host.is_ipv4() {
        return Err(PasstError::Ipv6(host));
    }
    let found = TcpListener::bind(host).and_then(|listener| listener.local_addr());
    found.map_err(|source| PasstError::Port { host, source })
}

fn command(forwarded: &[Forwarded], subnet: Subnet) -> Command {
    let mut command = Command::new("passt");
    command.args([
        "--foreground",
        "--stderr",
        "--quiet",
        "--ipv4-only",
        "--no-map-gw",
    ]);
    // The socket is its standard input: descriptors above 2 are closed on the way.
    command.args(["--fd", "0", "--mtu", "1500"]);
    command.args(["--address", &subnet.guest.to_string()]);
    command.args(["--netmask", &subnet.netmask().to_string()]);
    command.args(["--gateway", &subnet.gateway.to_string()]);
    for forward in forwarded {
        let (host, guest) = (forward.host, forward.guest_port);
        command.args([
            "--tcp-ports",
            &format!("{}/{}:{guest}", host.ip(), host.port()),
        ]);
    }
    command
}

/// Starts `passt` and the two threads that talk to it.
pub fn start(
    forwards: &[Forward],
    subnet: Subnet,
    fabric: &Arc<Fabric>,
) -> Result<Started, PasstError> {
    let mut forwarded = Vec::new();
    for forward in forwards {
        forwarded.push(Forwarded {
            guest_port: forward.guest_port,
            host: pick(forward)?,
        });
    }
    let (mine, its) = UnixStream::pair()?;
    let mut child = command(&forwarded, subnet)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(its)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(PasstError::Spawn)?;
    if let Err(error) = wait_until_up(&mut child, &forwarded) {
        // Ended already, or of no use: either way it must not be left behind.
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    let (queue, frames) = sync_channel(QUEUE);
    let stopping = Arc::new(AtomicBool::new(false));
    let writer = mine.try_clone()?;
    let reader = BufReader::with_capacity(128 << 10, mine.try_clone()?);
    let fabric = fabric.clone();
    let seen = stopping.clone();
    let threads = vec![
        std::thread::Builder::new()
            .name("passt-out".to_owned())
            .spawn(move || send_all(writer, &frames))?,
        std::thread::Builder::new()
            .name("passt-in".to_owned())
            .spawn(move || {
                if let Err(error) = receive_all(reader, &fabric)
                    && !seen.load(Ordering::SeqCst)
                {
                    tracing::error!(%error, "passt has ended; the guest has no network");
                }
            })?,
    ];
    let child = Mutex::new(child);
    let sink = Arc::new(Passt {
        queue,
        socket: mine,
        child,
        stopping,
    });
    Ok(Started {
        sink,
        forwards: forwarded,
        threads,
    })
}

/// Waits until passt listens on the forwarded ports, or has ended.
fn wait_until_up(child: &mut Child, forwarded: &[Forwarded]) -> Result<(), PasstError> {
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
    loop {
        if let Some(status) = child.try_wait()? {
            let mut words = String::new();
            if let Some(stderr) = &mut child.stderr {
                // What it said is a help to the reader; without it the status must do.
                let _ = stderr.take(4096).read_to_string(&mut words);
            }
            let words = words.trim().to_owned();
            return Err(PasstError::Ended {
                status: status.to_string(),
                words,
            });
        }
        // A port that cannot be bound any more is one that passt has.
        let up = forwarded.iter().all(|f| TcpListener::bind(f.host).is_err());
        if up || std::time::Instant::now() > patience {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn send_all(mut socket: UnixStream, frames: &Receiver<Bytes>) {
    while let Ok(frame) = frames.recv() {
        if frame == END {
            return;
        }
        let length = (frame.len() as u32).to_be_bytes();
        if let Err(error) = socket.write_all(&[&length[..], &frame].concat()) {
            tracing::debug!(%error, "passt takes no more frames");
            return;
        }
    }
}

fn receive_all(mut socket: BufReader<UnixStream>, fabric: &Fabric) -> io::Result<()> {
    let mut length = [0; 4];
    loop {
        socket.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME {
            return Err(io::Error::other(format!("a frame of {length} bytes")));
        }
        let mut frame = vec![0; length];
        socket.read_exact(&mut frame)?;
        // Not read while the switch is full: passt then waits too.
        if !fabric.wait_for_room() {
            return Ok(());
        }
        fabric.inbound(&Bytes::from(frame));
    }
}
