//! A TCP proxy between two programs of a machine: it can be cut, silently or not, and sees what
//! passes.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

/// How the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Open = 0,
    /// Nothing passes, and nobody is told.
    Silent = 1,
    /// Connections are closed.
    Closed = 2,
}

const STEP: Duration = Duration::from_millis(10);

/// Sees bytes from the client to the server before they are passed on.
type Tap = Box<dyn FnMut(&[u8]) + Send>;

struct Shared {
    target: String,
    link: AtomicU8,
    tap: Mutex<Option<Tap>>,
}

impl Shared {
    fn is(&self, link: Link) -> bool {
        self.link.load(Ordering::SeqCst) == link as u8
    }
}

/// A proxy; it lives as long as the process.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// A proxy on loopback for the server at `target`.
    pub fn start(target: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            link: AtomicU8::new(Link::Open as u8),
            tap: Mutex::new(None),
        });
        let accepting = shared.clone();
        std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || {
                for client in listener.incoming().flatten() {
                    // A connection that cannot be made is one that the client sees closed.
                    let _ = serve(&accepting, client);
                }
            })
            .context("a thread for the proxy")?;
        Ok(Self { address, shared })
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    pub fn set(&self, link: Link) {
        self.shared.link.store(link as u8, Ordering::SeqCst);
    }

    /// From here on `tap` is shown what clients send.
    pub fn watch(&self, tap: impl FnMut(&[u8]) + Send + 'static) {
        *lock(&self.shared.tap) = Some(Box::new(tap));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(shared: &Arc<Shared>, client: TcpStream) -> Result<()> {
    if !shared.is(Link::Open) {
        return Ok(());
    }
    let server = TcpStream::connect(&shared.target)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let up = (client.try_clone()?, server.try_clone()?, shared.clone());
    let down = (server, client, shared.clone());
    std::thread::spawn(move || pump(up.0, up.1, &up.2, true));
    std::thread::spawn(move || pump(down.0, down.1, &down.2, false));
    Ok(())
}

/// Passes bytes on until either end closes or the proxy does.
fn pump(mut from: TcpStream, mut to: TcpStream, shared: &Shared, tapped: bool) {
    let mut buffer = vec![0; 64 << 10];
    // So that a closed link is noticed on an idle connection.
    let _ = from.set_read_timeout(Some(STEP));
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(why) if matches!(why.kind(), std::io::ErrorKind::WouldBlock) => 0,
            Err(_) => break,
        };
        while shared.is(Link::Silent) {
            std::thread::sleep(STEP);
        }
        if shared.is(Link::Closed) {
            break;
        }
        if tapped
            && length > 0
            && let Some(tap) = lock(&shared.tap).as_mut()
        {
            tap(&buffer[..length]);
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // An error means that it is closed already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
