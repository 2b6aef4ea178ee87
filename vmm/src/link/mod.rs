//! The replica's connections to the outside: disk server, switch, console.
//!
//! Each link has threads of its own, connects again by itself when its server was restarted, and
//! hands whatever comes in to the vCPU's thread as an [`Arrival`]. Nothing here touches the guest:
//! data wait in the arrival (the bounce buffer of the design's rule 3) until the vCPU's thread puts
//! them in at a logged position.

mod console;
mod disk;
mod net;

pub use console::{Console, ConsoleLine};
pub use disk::DiskLink;
pub use net::{NetLink, NetSpec};

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use wire::nbd::Errno;

/// What came in from outside.
#[derive(Debug)]
pub enum Arrival {
    /// A frame for the guest; `number` counts the frames of switch connection `connection`.
    Frame {
        connection: u64,
        number: u64,
        frame: Bytes,
    },
    /// The disk server answered.
    Disk(DiskAnswer),
    /// Somebody typed at a console.
    Typed(ConsoleLine, Bytes),
    /// A server refuses this replica, as one of `view`, because a later view is live.
    Fenced {
        by: &'static str,
        view: u64,
        reason: String,
    },
    /// Something else changed that the vCPU's thread looks at: it only needs to wake up.
    Wake,
}

/// A finished disk request.
#[derive(Debug)]
pub struct DiskAnswer {
    pub id: u64,
    /// The data of a read, empty otherwise.
    pub result: Result<Bytes, Errno>,
}

/// How many arrivals may wait; beyond, the links' readers block and so the servers' sockets fill.
const ARRIVALS_MAX: usize = 4096;

/// Where the links put arrivals, and the vCPU's thread takes them.
pub fn arrivals() -> (Sender<Arrival>, Receiver<Arrival>) {
    crossbeam_channel::bounded(ARRIVALS_MAX)
}

/// How a link waits between attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
/// The bound on each step of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Starts a named thread. All of a replica's threads are started here.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
}

/// A flag that ends a link's threads.
#[derive(Clone, Default)]
struct Closed(Arc<std::sync::atomic::AtomicBool>);

impl Closed {
    fn set(&self) {
        self.0.store(true, std::sync::atomic::Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Acquire)
    }
}

/// Locks a mutex whose contents are whole after each call, even if a thread died in one.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
