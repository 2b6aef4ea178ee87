//! The server side of a control API: listens, reads requests, hands them to a [`Handler`].
//!
//! One thread listens and one serves each connection; a bound on the connections keeps a client
//! that opens many from using up the process.

use std::io::BufReader;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::client::ControlStream;
use super::{ControlAddr, MAX_REQUEST, Request, Response};
use crate::line::{self, LineError};
use crate::net::{self, NetError};

/// Connections served at a time; more are told so and closed.
const MAX_CONNECTIONS: usize = 64;

/// Carries out control requests. Called from several threads.
pub trait Handler: Send + Sync + 'static {
    /// The answer to one request. [`Request::Console`] answered with [`Response::Done`] is
    /// followed by [`Handler::console`].
    fn handle(&self, request: Request) -> Response;

    /// Takes a connection over as the guest's console, until it ends. What the client sent
    /// already is in the reader's buffer.
    fn console(&self, stream: BufReader<ControlStream>);
}

/// Why a control socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ControlListenError {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("cannot listen on the control socket {path:?}: another process serves it")]
    InUse { path: PathBuf },
    #[error("cannot listen on the control socket {path:?}: {source}")]
    Unix {
        path: PathBuf,
        source: std::io::Error,
    },
}

enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// A running control API; dropping it stops listening and removes the Unix socket.
pub struct ControlServer {
    addr: ControlAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Removes a socket that nobody listens on any more (left by a process that was killed).
fn remove_stale(path: &Path) -> Result<(), ControlListenError> {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ControlListenError::InUse {
            path: path.to_owned(),
        });
    }
    std::fs::remove_file(path).map_err(|source| ControlListenError::Unix {
        path: path.to_owned(),
        source,
    })
}

/// Binds with mode 0600 from the first moment on: the socket appears under its name only after
/// its mode is set.
fn bind_unix(path: &Path) -> Result<UnixListener, ControlListenError> {
    remove_stale(path)?;
    let fail = |source| ControlListenError::Unix {
        path: path.to_owned(),
        source,
    };
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(format!(".{}", std::process::id()));
    let hidden = PathBuf::from(hidden);
    let listener = UnixListener::bind(&hidden).map_err(fail)?;
    let visible = std::fs::set_permissions(&hidden, PermissionsExt::from_mode(0o600))
        .and_then(|()| std::fs::hard_link(&hidden, path));
    let removed = std::fs::remove_file(&hidden);
    visible.and(removed).map_err(fail)?;
    Ok(listener)
}

/// Listens on `addr` and serves `handler` until the returned server is dropped.
pub fn serve(
    addr: &ControlAddr,
    handler: Arc<dyn Handler>,
) -> Result<ControlServer, ControlListenError> {
    let (listener, bound) = match addr {
        ControlAddr::Unix(path) => (Listener::Unix(bind_unix(path)?, path.clone()), addr.clone()),
        ControlAddr::Tcp(tcp) => {
            let listener = net::listen(tcp)?;
            let bound = match listener.local_addr() {
                Ok(local) => ControlAddr::Tcp(local.to_string()),
                Err(_) => addr.clone(),
            };
            (Listener::Tcp(listener), bound)
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let thread = std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || accept_all(&listener, &handler, &seen))
        .map_err(|source| NetError::Listen {
            addr: bound.to_string(),
            source,
        })?;
    Ok(ControlServer {
        addr: bound,
        stop,
        thread: Some(thread),
    })
}

impl ControlServer {
    /// Where it listens; the port is the real one.
    pub fn addr(&self) -> &ControlAddr {
        &self.addr
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // A connection to itself ends the accept; if that fails nobody accepts any more.
        let woken = match &self.addr {
            ControlAddr::Unix(path) => UnixStream::connect(path).is_ok(),
            ControlAddr::Tcp(addr) => net::connect(addr, std::time::Duration::from_secs(1)).is_ok(),
        };
        if let Some(thread) = self.thread.take()
            && woken
        {
            // The thread does not panic; if it did there is nothing left to clean up.
            let _ = thread.join();
        }
    }
}

fn accept_all(listener: &Listener, handler: &Arc<dyn Handler>, stop: &AtomicBool) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let accepted = match listener {
            Listener::Unix(unix, _) => unix.accept().map(|(stream, _)| ControlStream::Unix(stream)),
            Listener::Tcp(tcp) => tcp.accept().map(|(stream, _)| ControlStream::Tcp(stream)),
        };
        if stop.load(Ordering::SeqCst) {
            break;
        }
        match accepted {
            Ok(stream) => start(stream, handler, &open),
            Err(error) => {
                tracing::warn!(%error, "control: accept failed");
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }
    if let Listener::Unix(_, path) = listener {
        // Best effort: a socket left behind is recognised as stale.
        let _ = std::fs::remove_file(path);
    }
}

/// Counts a connection as long as it lives.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn start(mut stream: ControlStream, handler: &Arc<dyn Handler>, open: &Arc<AtomicUsize>) {
    let count = open.fetch_add(1, Ordering::SeqCst);
    let guard = Open(open.clone());
    if count >= MAX_CONNECTIONS {
        let message = format!("{MAX_CONNECTIONS} control connections are open; close one");
        // Nothing more can be done for a client that does not read its refusal.
        let _ = line::write_message(&mut stream, &Response::Error { message });
        return;
    }
    let handler = handler.clone();
    let spawned = std::thread::Builder::new()
        .name("control-conn".to_owned())
        .spawn(move || {
            let _guard = guard;
            if let Err(error) = converse(stream, handler.as_ref()) {
                tracing::debug!(%error, "control connection ended");
            }
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "control: no thread for a connection");
    }
}

fn converse(stream: ControlStream, handler: &dyn Handler) -> Result<(), LineError> {
    let mut reader = BufReader::new(stream);
    loop {
        let request = match line::read_message::<Request>(&mut reader, MAX_REQUEST) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(LineError::Json(error)) => {
                let message = format!("not a valid request: {error}");
                line::write_message(reader.get_mut(), &Response::Error { message })?;
                continue;
            }
            Err(error) => {
                let message = error.to_string();
                line::write_message(reader.get_mut(), &Response::Error { message })?;
                return Err(error);
            }
        };
        let wants_console = request == Request::Console;
        let response = handler.handle(request);
        let accepted = response == Response::Done;
        line::write_message(reader.get_mut(), &response)?;
        if wants_console && accepted {
            handler.console(reader);
            return Ok(());
        }
    }
}
