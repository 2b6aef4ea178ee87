//! Listeners, threads, start and stop.

use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use wire::net::{self, NetError};
use wire::register::{ExportStatus, ServerInfo};

use crate::access::Access;
use crate::config::Config;
use crate::image::{Image, OpenError};
use crate::nbd::{self, Export, Figures};
use crate::register::{Register, connection};
use crate::store::{Store, StoreError};

/// Connections of each kind, at most.
const MAX_CONNECTIONS: usize = 256;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("no disk is configured; give --disk name=NAME,path=FILE at least once")]
    NoDisk,
    #[error("two disks are named {0:?}")]
    SameName(String),
    #[error(transparent)]
    Image(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    #[error("cannot tell the port that was bound: {0}")]
    Address(std::io::Error),
}

struct Shared {
    exports: Vec<Arc<Export>>,
    access: Arc<Access>,
    register: Register,
    nbd_addr: SocketAddr,
    stop: AtomicBool,
    /// Open connections, for closing them at the end.
    sockets: Mutex<BTreeMap<u64, TcpStream>>,
    next_socket: AtomicU64,
}

/// A running server; dropping it stops it.
pub struct Handle {
    shared: Arc<Shared>,
    register_addr: SocketAddr,
    acceptors: Vec<JoinHandle<()>>,
}

/// Opens everything, listens, and serves in threads of its own.
pub fn serve(config: &Config) -> Result<Handle, ServeError> {
    let exports = open_exports(config)?;
    let (store, state) = Store::open(&config.state)?;
    let access = Arc::new(Access::default());
    let images = exports.iter().map(|export| export.image.clone()).collect();
    let register = Register::start(
        store,
        state,
        access.clone(),
        images,
        config.snapshots.clone(),
    );
    let nbd_listener = net::listen(&config.nbd)?;
    let register_listener = net::listen(&config.register)?;
    let nbd_addr = nbd_listener.local_addr().map_err(ServeError::Address)?;
    let register_addr = register_listener
        .local_addr()
        .map_err(ServeError::Address)?;
    let shared = Arc::new(Shared {
        exports,
        access,
        register,
        nbd_addr,
        stop: AtomicBool::new(false),
        sockets: Mutex::default(),
        next_socket: AtomicU64::new(0),
    });
    let acceptors = vec![
        accept(shared.clone(), nbd_listener, "nbd", serve_nbd)?,
        accept(
            shared.clone(),
            register_listener,
            "register",
            serve_register,
        )?,
    ];
    Ok(Handle {
        shared,
        register_addr,
        acceptors,
    })
}

fn open_exports(config: &Config) -> Result<Vec<Arc<Export>>, ServeError> {
    let mut exports: Vec<Arc<Export>> = Vec::new();
    for disk in &config.disks {
        if exports.iter().any(|export| *export.name == *disk.name) {
            return Err(ServeError::SameName(disk.name.clone()));
        }
        let image = Arc::new(Image::open(disk)?);
        let name = Arc::from(disk.name.as_str());
        exports.push(Arc::new(Export {
            image,
            name,
            figures: Figures::default(),
        }));
    }
    if exports.is_empty() {
        Err(ServeError::NoDisk)
    } else {
        Ok(exports)
    }
}

impl Handle {
    pub fn nbd_addr(&self) -> SocketAddr {
        self.shared.nbd_addr
    }

    pub fn register_addr(&self) -> SocketAddr {
        self.register_addr
    }

    /// What `info` answers.
    pub fn info(&self) -> ServerInfo {
        self.shared.info()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for addr in [self.shared.nbd_addr, self.register_addr] {
            // A connection to itself ends the blocked accept.
            let _ = TcpStream::connect_timeout(&loopback(addr), Duration::from_secs(1));
        }
        for socket in self.shared.lock_sockets().values() {
            // Closed already: fine.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for acceptor in self.acceptors.drain(..) {
            // An acceptor that panicked has nothing left to clean up.
            let _ = acceptor.join();
        }
    }
}

/// Where to reach a listener from this host: one on all addresses is on loopback too.
fn loopback(mut addr: SocketAddr) -> SocketAddr {
    if addr.ip().is_unspecified() {
        let ip: std::net::IpAddr = match addr {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        addr.set_ip(ip);
    }
    addr
}

type Serve = fn(&Shared, TcpStream);

fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    name: &'static str,
    serve: Serve,
) -> Result<JoinHandle<()>, ServeError> {
    let work = move || {
        let mut workers: Vec<JoinHandle<()>> = Vec::new();
        loop {
            let accepted = listener.accept();
            if shared.stop.load(Ordering::SeqCst) {
                break;
            }
            workers.retain(|worker| !worker.is_finished());
            match accepted {
                Ok(_) if workers.len() >= MAX_CONNECTIONS => {
                    tracing::warn!(name, "{MAX_CONNECTIONS} connections are open; one refused");
                }
                Ok((stream, peer)) => {
                    tracing::debug!(name, %peer, "connected");
                    workers.extend(start(&shared, stream, name, serve));
                }
                Err(error) => {
                    tracing::warn!(name, %error, "accept failed");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
        for worker in workers {
            // A worker that panicked has lost its connection; nothing else depends on it.
            let _ = worker.join();
        }
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(ServeError::Thread)
}

/// Serves one connection in its own thread. `None`: it could not be started and is closed.
fn start(
    shared: &Arc<Shared>,
    stream: TcpStream,
    name: &'static str,
    serve: Serve,
) -> Option<JoinHandle<()>> {
    net::tune(&stream);
    let id = shared.next_socket.fetch_add(1, Ordering::Relaxed);
    let twin = stream
        .try_clone()
        .inspect_err(|error| tracing::warn!(name, %error, "no socket"));
    shared.lock_sockets().insert(id, twin.ok()?);
    let worker = shared.clone();
    let spawned = std::thread::Builder::new()
        .name(format!("{name}-conn"))
        .spawn(move || {
            // If the server began to stop before the socket was listed, nobody else closes it.
            if !worker.stop.load(Ordering::SeqCst) {
                serve(&worker, stream);
            }
            worker.forget(id);
        });
    spawned
        .inspect_err(|error| {
            tracing::warn!(name, %error, "no thread for a connection");
            shared.forget(id);
        })
        .ok()
}

impl Shared {
    fn lock_sockets(&self) -> MutexGuard<'_, BTreeMap<u64, TcpStream>> {
        // Single insertions and removals: a panic elsewhere leaves the map whole.
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget(&self, id: u64) {
        if let Some(socket) = self.lock_sockets().remove(&id) {
            // This twin would keep the connection open for the peer.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn info(&self) -> ServerInfo {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        let exports = self.exports.iter().map(|export| ExportStatus {
            name: export.name.to_string(),
            size: export.image.size(),
            read_only: export.image.read_only(),
            connections: read(&export.figures.connections),
            reads: read(&export.figures.reads),
            writes: read(&export.figures.writes),
            flushes: read(&export.figures.flushes),
            fenced: read(&export.figures.fenced),
        });
        ServerInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            nbd: self.nbd_addr.to_string(),
            exports: exports.collect(),
            records: self.register.records(),
        }
    }
}

fn serve_nbd(shared: &Shared, stream: TcpStream) {
    match nbd::serve(stream, &shared.exports, &shared.access) {
        Ok(()) => {}
        Err(nbd::ConnectionError::Denied(denied)) => {
            tracing::info!(%denied, "NBD connection fenced");
        }
        Err(error) => tracing::info!(%error, "NBD connection ended"),
    }
}

fn serve_register(shared: &Shared, stream: TcpStream) {
    if let Err(error) = connection::serve(stream, &shared.register, &|| shared.info()) {
        tracing::debug!(%error, "register connection ended");
    }
}
