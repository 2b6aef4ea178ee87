//! The NBD server's side of one connection: options, then requests.

mod options;
mod requests;

use std::io::{self, BufReader};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wire::nbd::handshake::HandshakeError;
use wire::nbd::transmission::StreamError;

use crate::access::{Access, Identity};
use crate::image::Image;

/// How long a client may take for each step of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// One export's image and its figures.
pub struct Export {
    pub image: Arc<Image>,
    /// The image's name, shared so that a permit for it costs no allocation.
    pub name: Arc<str>,
    pub figures: Figures,
}

/// Counts since the server started (`connections`: now).
#[derive(Default)]
pub struct Figures {
    pub connections: AtomicU64,
    pub reads: AtomicU64,
    pub writes: AtomicU64,
    pub flushes: AtomicU64,
    pub fenced: AtomicU64,
}

/// Adds one to a figure.
pub(crate) fn count(figure: &AtomicU64) {
    figure.fetch_add(1, Ordering::Relaxed);
}

/// Why a connection ended other than by the client's goodbye.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("handshake: {0}")]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the client asked for {0} options without choosing an export")]
    TooManyOptions(u32),
    #[error("a write of {0} bytes is longer than the server's limit")]
    TooLong(u32),
    #[error("refused: {0}")]
    Denied(crate::access::Denied),
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> ConnectionError {
        ConnectionError::Stream(StreamError::Io(error))
    }
}

/// What the handshake has chosen.
struct Chosen {
    export: Arc<Export>,
    identity: Arc<Identity>,
}

/// Serves one client from greeting to goodbye.
pub fn serve(
    mut stream: TcpStream,
    exports: &[Arc<Export>],
    access: &Arc<Access>,
) -> Result<(), ConnectionError> {
    stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
    stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let Some(chosen) = options::haggle(&mut stream, exports, access)? else {
        return Ok(());
    };
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    chosen
        .export
        .figures
        .connections
        .fetch_add(1, Ordering::Relaxed);
    let reader = BufReader::with_capacity(256 << 10, stream.try_clone()?);
    let ended = requests::serve(reader, stream, &chosen, access);
    chosen
        .export
        .figures
        .connections
        .fetch_sub(1, Ordering::Relaxed);
    ended
}
