//! TCP forwarding by this process: a small TCP stack on the guest's side, sockets on the host's.
//!
//! A client's connection to a forwarded port is accepted here and continued as a second TCP
//! connection to the guest. Since the guest's peer is this process, nobody gives up while the
//! guest is silent: the stack keeps what is unacknowledged and never times out. (`passt` resets
//! a connection after 10 to 16 s of silence, which the wait for a view register may take.) While no
//! replica is live the stack sends nothing at all, so what it has to say is said once, at the
//! moment when the next replica goes live.
//!
//! The guest also gets its address from here by DHCP, and answers to ARP and ping of the gateway.

mod device;
mod dhcp;
mod flow;
mod stack;

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use nix::sys::eventfd::{EfdFlags, EventFd};
use wire::net::{self, NetError};

use super::{Forwarded, Sink, Started};
use crate::config::{Forward, Subnet};
use crate::server::Fabric;

/// Frames from the guest that wait for the stack, at most. More are dropped, as by any network;
/// the guest's TCP sends them again.
const MAX_WAITING: usize = 16 << 10;

/// Why user-mode forwarding cannot start.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("forward {forward}: {source}")]
    Listen { forward: Forward, source: NetError },
    #[error("cannot start user-mode networking: {0}")]
    Io(#[from] std::io::Error),
}

/// What the switch and the stack's thread share.
struct Queue {
    frames: Mutex<VecDeque<Bytes>>,
    wake: EventFd,
    /// The stack wants to send and the switch was not ready.
    blocked: AtomicBool,
    stop: AtomicBool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Bytes>> {
        // Single pushes and takes: a panic elsewhere leaves the queue whole.
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It can only fail when the counter is at its maximum, and then the reader wakes anyway.
        let _ = self.wake.write(1);
    }

    fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Everything that waits; clears the wake-up.
    fn take(&self) -> VecDeque<Bytes> {
        // Fails when nobody has written, which is fine.
        let _ = self.wake.read();
        std::mem::take(&mut *self.lock())
    }
}

impl Sink for Queue {
    fn send(&self, frame: &Bytes) {
        let mut frames = self.lock();
        if frames.len() >= MAX_WAITING {
            return;
        }
        frames.push_back(frame.clone());
        let first = frames.len() == 1;
        drop(frames);
        if first {
            self.wake();
        }
    }

    fn ready(&self) {
        if self.blocked.swap(false, Ordering::SeqCst) {
            self.wake();
        }
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake();
    }
}

/// A listening port of the host.
struct Listener {
    socket: TcpListener,
    guest_port: u16,
}

/// Listens on the forwarded ports and starts the stack's thread.
pub fn start(
    forwards: &[Forward],
    subnet: Subnet,
    fabric: &Arc<Fabric>,
) -> Result<Started, UserError> {
    let (mut listeners, mut forwarded) = (Vec::new(), Vec::new());
    for forward in forwards {
        let socket =
            net::listen(&forward.host.to_string()).map_err(|source| UserError::Listen {
                forward: *forward,
                source,
            })?;
        socket.set_nonblocking(true)?;
        let host: SocketAddr = socket.local_addr()?;
        forwarded.push(Forwarded {
            guest_port: forward.guest_port,
            host,
        });
        listeners.push(Listener {
            socket,
            guest_port: forward.guest_port,
        });
    }
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let queue = Arc::new(Queue {
        frames: Mutex::default(),
        wake: EventFd::from_value_and_flags(0, flags).map_err(std::io::Error::from)?,
        blocked: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    });
    let stack = stack::Stack::new(listeners, subnet, queue.clone(), fabric.clone());
    let thread = std::thread::Builder::new()
        .name("user-net".to_owned())
        .spawn(move || stack.run())?;
    Ok(Started {
        sink: queue,
        forwards: forwarded,
        threads: vec![thread],
    })
}
