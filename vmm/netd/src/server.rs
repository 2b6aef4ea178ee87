//! The switch's listeners and threads, start and stop.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use wire::net::{self, NetError};

use crate::config::Config;
use crate::outside::{self, Forwarded, OutsideError, Sink};
use crate::port;
use crate::switch::{MAX_PORTS, MachineStatus, Next, PortId, Switch};

/// Why the switch cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Outside(#[from] OutsideError),
    #[error("cannot start the switch: {0}")]
    Io(#[from] std::io::Error),
}

struct Inner {
    switch: Switch,
    /// Threads that wait for a change; waking nobody would cost a system call for each frame.
    waiting: usize,
}

/// The switch and those who wait for it.
pub struct Fabric {
    inner: Mutex<Inner>,
    changed: Condvar,
    sink: OnceLock<Arc<dyn Sink>>,
    stop: AtomicBool,
}

impl Fabric {
    fn new() -> Fabric {
        Fabric {
            inner: Mutex::new(Inner {
                switch: Switch::default(),
                waiting: 0,
            }),
            changed: Condvar::new(),
            sink: OnceLock::new(),
            stop: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The switch's own invariants are kept by each of its calls.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, inner: &Inner) {
        if inner.waiting > 0 {
            self.changed.notify_all();
        }
    }

    fn wait<'a>(&self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        inner.waiting += 1;
        let mut inner = self
            .changed
            .wait(inner)
            .unwrap_or_else(PoisonError::into_inner);
        inner.waiting -= 1;
        inner
    }

    /// Changes who is connected, live, or done with what.
    pub fn change<T>(&self, change: impl FnOnce(&mut Switch) -> T) -> T {
        let (result, ready) = {
            let mut inner = self.lock();
            let result = change(&mut inner.switch);
            self.wake(&inner);
            (result, inner.switch.ready())
        };
        if ready && let Some(sink) = self.sink.get() {
            sink.ready();
        }
        result
    }

    /// A frame from a replica. It is given to the outside under the lock: once a later view is
    /// announced, no frame of an older one can still be on its way there.
    pub fn from_replica(&self, id: PortId, frame: &Bytes) {
        let mut inner = self.lock();
        let route = inner.switch.from_replica(id, frame);
        if route.machines {
            self.wake(&inner);
        }
        if route.outside
            && let Some(sink) = self.sink.get()
        {
            sink.send(frame);
        }
    }

    /// A frame from the outside.
    pub fn inbound(&self, frame: &Bytes) {
        let mut inner = self.lock();
        if inner.switch.inbound(frame) {
            self.wake(&inner);
        }
    }

    /// Whether an inbound frame would reach a live replica now.
    pub fn ready(&self) -> bool {
        self.lock().switch.ready()
    }

    /// Waits until an inbound frame would be kept; false if the switch ends.
    pub fn wait_for_room(&self) -> bool {
        let mut inner = self.lock();
        while !inner.switch.has_room() && !self.stop.load(Ordering::SeqCst) {
            inner = self.wait(inner);
        }
        !self.stop.load(Ordering::SeqCst)
    }

    /// Waits for what port `id` must send. `None`: the port is gone, or the switch ends.
    pub fn wait_for(&self, id: PortId, max: usize) -> Option<Next> {
        let mut inner = self.lock();
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            match inner.switch.next_for(id, max)? {
                Next::Nothing => inner = self.wait(inner),
                next => return Some(next),
            }
        }
    }

    fn end(&self) {
        self.stop.store(true, Ordering::SeqCst);
        // Under the lock, so that nobody is between the question and the wait.
        let _inner = self.lock();
        self.changed.notify_all();
    }
}

struct Shared {
    fabric: Arc<Fabric>,
    /// Open connections, for closing them at the end.
    sockets: Mutex<BTreeMap<u64, TcpStream>>,
    next_socket: AtomicU64,
}

/// A running switch; dropping it stops it, and its `passt`.
pub struct Handle {
    shared: Arc<Shared>,
    replicas: SocketAddr,
    forwards: Vec<Forwarded>,
    threads: Vec<JoinHandle<()>>,
}

/// Listens, sets the outside up, and serves in threads of its own.
pub fn serve(config: &Config) -> Result<Handle, ServeError> {
    let listener = net::listen(&config.replicas)?;
    let replicas = listener.local_addr()?;
    let fabric = Arc::new(Fabric::new());
    let started = outside::start(config, &fabric)?;
    // Set once, here, before anybody else has the fabric's listener.
    let _ = fabric.sink.set(started.sink);
    let shared = Arc::new(Shared {
        fabric,
        sockets: Mutex::default(),
        next_socket: AtomicU64::new(0),
    });
    let mut threads = started.threads;
    let accepting = shared.clone();
    threads.push(
        std::thread::Builder::new()
            .name("replicas".to_owned())
            .spawn(move || accept_all(&listener, &accepting))?,
    );
    Ok(Handle {
        shared,
        replicas,
        forwards: started.forwards,
        threads,
    })
}

impl Handle {
    pub fn replicas(&self) -> SocketAddr {
        self.replicas
    }

    pub fn forwards(&self) -> &[Forwarded] {
        &self.forwards
    }

    /// Every machine's figures.
    pub fn status(&self) -> Vec<MachineStatus> {
        self.shared.fabric.lock().switch.status()
    }

    /// Frames refused because their sender was not live.
    pub fn refused(&self) -> u64 {
        self.shared.fabric.lock().switch.refused()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.fabric.end();
        if let Some(sink) = self.shared.fabric.sink.get() {
            sink.stop();
        }
        // A connection to itself ends the blocked accept.
        let _ = TcpStream::connect_timeout(&reachable(self.replicas), Duration::from_secs(1));
        for socket in self.shared.lock_sockets().values() {
            // Closed already: fine.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to clean up.
            let _ = thread.join();
        }
    }
}

/// Where to reach a listener from this host: one on all addresses is on loopback too.
fn reachable(mut addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    addr
}

impl Shared {
    fn lock_sockets(&self) -> MutexGuard<'_, BTreeMap<u64, TcpStream>> {
        // Single insertions and removals: a panic elsewhere leaves the map whole.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.fabric.stop.load(Ordering::SeqCst)
    }
}

fn accept_all(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut workers: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let accepted = listener.accept();
        if shared.stopping() {
            break;
        }
        workers.retain(|worker| !worker.is_finished());
        match accepted {
            // The switch itself takes fewer; these may still be on their way out.
            Ok(_) if workers.len() >= 2 * MAX_PORTS => {
                tracing::warn!("too many connections of replicas; one refused");
            }
            Ok((stream, _)) => workers.extend(start(stream, shared)),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    for worker in workers {
        // A worker that panicked has lost its connection; nothing else depends on it.
        let _ = worker.join();
    }
}

fn start(stream: TcpStream, shared: &Arc<Shared>) -> Option<JoinHandle<()>> {
    net::tune(&stream);
    let id = shared.next_socket.fetch_add(1, Ordering::Relaxed);
    let twin = stream
        .try_clone()
        .inspect_err(|error| tracing::warn!(%error, "no socket"))
        .ok()?;
    shared.lock_sockets().insert(id, twin);
    let worker = shared.clone();
    let spawned = std::thread::Builder::new()
        .name("port".to_owned())
        .spawn(move || {
            // If the switch began to stop before the socket was listed, nobody else closes it.
            if !worker.stopping()
                && let Err(error) = port::serve(stream, &worker.fabric)
            {
                tracing::info!(%error, "a replica's connection ended");
            }
            worker.lock_sockets().remove(&id);
        });
    spawned
        .inspect_err(|error| tracing::warn!(%error, "no thread for a replica"))
        .ok()
}
