//! The transmission phase of one connection.
//!
//! The reader carries out what the page cache answers at once, in order: reads and plain writes.
//! What may wait for the device (FLUSH, FUA, TRIM, WRITE_ZEROES) goes to two helper threads, so
//! that a flush does not hold up the requests behind it. A bounded queue between them pushes
//! back on a client that sends faster than the disk takes it.

use std::io::{BufReader, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wire::nbd::transmission::{FLAG_FUA, FLAG_NO_HOLE, StreamError, reply_header};
use wire::nbd::{Command, Errno, MAX_PAYLOAD, transmission::Request};
use zerocopy::IntoBytes;

use super::{Chosen, ConnectionError, count};
use crate::access::{Access, Denied};

const HELPERS: usize = 2;
const QUEUE: usize = 8;
/// How long a client that was hung up on may take to close.
const LINGER: Duration = Duration::from_secs(2);

/// A request and, for a write, its data.
struct Job {
    request: Request,
    data: Vec<u8>,
}

/// What became of a request.
enum Outcome {
    Done(Vec<u8>),
    Failed(Errno),
    /// The view has ended: answer, then close.
    Ended(Denied),
}

/// What the threads of one connection share.
struct Connection<'a> {
    chosen: &'a Chosen,
    access: &'a Arc<Access>,
    writer: Mutex<TcpStream>,
}

/// Serves requests until the client says goodbye, leaves, or is fenced.
pub(super) fn serve(
    mut reader: BufReader<TcpStream>,
    writer: TcpStream,
    chosen: &Chosen,
    access: &Arc<Access>,
) -> Result<(), ConnectionError> {
    let connection = Connection {
        chosen,
        access,
        writer: Mutex::new(writer),
    };
    std::thread::scope(|scope| {
        let (queue, jobs) = sync_channel::<Job>(QUEUE);
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..HELPERS {
            let (connection, jobs) = (&connection, jobs.clone());
            let helper = std::thread::Builder::new().name("nbd-helper".to_owned());
            helper.spawn_scoped(scope, move || connection.help(&jobs))?;
        }
        let ended = connection.read_requests(&mut reader, &queue);
        // The helpers finish what is queued, then see that the queue has ended.
        drop(queue);
        if let Err(ConnectionError::Denied(_)) = ended {
            connection.hang_up();
            drain(&mut reader);
        }
        ended
    })
}

impl Connection<'_> {
    fn help(&self, jobs: &Mutex<Receiver<Job>>) {
        loop {
            let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = next else { return };
            if let Err(error) = self.run(&job) {
                tracing::debug!(%error, "NBD connection ended by a helper");
                self.hang_up();
            }
        }
    }

    /// Tells the client that no answer follows the last one. It then closes, and the reader
    /// sees that.
    fn hang_up(&self) {
        // An error means that the client was faster.
        let _ = self.lock_writer().shutdown(Shutdown::Write);
    }

    fn read_requests(
        &self,
        reader: &mut BufReader<TcpStream>,
        queue: &SyncSender<Job>,
    ) -> Result<(), ConnectionError> {
        loop {
            let request = match Request::read(reader) {
                Ok(request) => request,
                Err(StreamError::Io(error)) if super::options::left(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let data = match request.command {
                Command::Disconnect => return Ok(()),
                Command::Write if request.length > MAX_PAYLOAD => {
                    self.reply(request.handle, Err(Errno::INVAL))?;
                    return Err(ConnectionError::TooLong(request.length));
                }
                Command::Write => read_payload(reader, request.length)?,
                _ => Vec::new(),
            };
            let job = Job { request, data };
            let quick = matches!(request.command, Command::Read | Command::Write)
                && request.flags & FLAG_FUA == 0;
            if quick {
                self.run(&job)?;
            } else if queue.send(job).is_err() {
                return Ok(());
            }
        }
    }

    /// Carries out one request and answers it. An error ends the connection.
    fn run(&self, job: &Job) -> Result<(), ConnectionError> {
        let handle = job.request.handle;
        match self.execute(job) {
            Outcome::Done(data) => self.reply(handle, Ok(&data)),
            Outcome::Failed(errno) => self.reply(handle, Err(errno)),
            Outcome::Ended(denied) => {
                count(&self.chosen.export.figures.fenced);
                self.reply(handle, Err(Errno::SHUTDOWN))?;
                Err(ConnectionError::Denied(denied))
            }
        }
    }

    fn execute(&self, Job { request, data }: &Job) -> Outcome {
        let export = &self.chosen.export;
        let write = match request.command {
            Command::Read | Command::Flush => false,
            Command::Write | Command::Trim | Command::WriteZeroes => true,
            Command::Disconnect | Command::Unknown(_) => return Outcome::Failed(Errno::INVAL),
        };
        if write && export.image.read_only() {
            return Outcome::Failed(Errno::PERM);
        }
        if let Err(errno) = check(
            request,
            export.image.contains(request.offset, request.length),
        ) {
            return Outcome::Failed(errno);
        }
        // From here until the permit is dropped the register cannot finish fencing this view.
        let permit = match self
            .access
            .begin(&self.chosen.identity, &export.name, write)
        {
            Ok(permit) => permit,
            Err(denied) if denied.is_final() => return Outcome::Ended(denied),
            Err(_) => return Outcome::Failed(Errno::PERM),
        };
        let result = self.touch(request, data);
        drop(permit);
        match result {
            Ok(data) => Outcome::Done(data),
            Err(error) => {
                let image = export.image.path();
                tracing::warn!(?image, command = ?request.command, %error, "request failed");
                Outcome::Failed(Errno::from(&error))
            }
        }
    }

    /// The image's part of a request.
    fn touch(&self, request: &Request, data: &[u8]) -> std::io::Result<Vec<u8>> {
        let (image, figures) = (&self.chosen.export.image, &self.chosen.export.figures);
        let Request {
            offset,
            length,
            flags,
            ..
        } = *request;
        match request.command {
            Command::Read => {
                count(&figures.reads);
                let mut buffer = vec![0; length as usize];
                image.read(&mut buffer, offset)?;
                return Ok(buffer);
            }
            Command::Write => {
                count(&figures.writes);
                image.write(data, offset)?;
            }
            Command::Trim => image.trim(offset, length)?,
            Command::WriteZeroes => image.zero(offset, length, flags & FLAG_NO_HOLE != 0)?,
            Command::Flush => {
                count(&figures.flushes);
                image.flush()?;
            }
            // `execute` has refused these.
            Command::Disconnect | Command::Unknown(_) => {}
        }
        if flags & FLAG_FUA != 0 {
            image.flush()?;
        }
        Ok(Vec::new())
    }

    fn lock_writer(&self) -> std::sync::MutexGuard<'_, TcpStream> {
        // A reply that was cut short by a panic ends the connection, which the peer notices.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reply(&self, handle: u64, result: Result<&[u8], Errno>) -> Result<(), ConnectionError> {
        let header = reply_header(handle, result.err());
        let header = header.as_bytes();
        let data = result.unwrap_or_default();
        let mut writer = self.lock_writer();
        let sent = writer.write_vectored(&[IoSlice::new(header), IoSlice::new(data)])?;
        if sent < header.len() {
            writer.write_all(&header[sent..])?;
        }
        writer.write_all(&data[sent.saturating_sub(header.len())..])?;
        Ok(())
    }
}

/// Throws away what the client still sends, for a while: closing a socket with unread data resets
/// the connection, and the client would lose the answer that says why.
fn drain(reader: &mut BufReader<TcpStream>) {
    let end = Instant::now() + LINGER;
    let mut scrap = [0; 16 << 10];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || reader.get_ref().set_read_timeout(Some(left)).is_err() {
            return;
        }
        match reader.read(&mut scrap) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Flags and bounds, as the protocol asks: nothing is touched if they are wrong.
fn check(request: &Request, inside: bool) -> Result<(), Errno> {
    let allowed = match request.command {
        Command::WriteZeroes => FLAG_FUA | FLAG_NO_HOLE,
        _ => FLAG_FUA,
    };
    if request.flags & !allowed != 0 {
        return Err(Errno::INVAL);
    }
    match request.command {
        Command::Flush if request.offset != 0 || request.length != 0 => Err(Errno::INVAL),
        Command::Read if request.length > MAX_PAYLOAD => Err(Errno::INVAL),
        Command::Write | Command::WriteZeroes if !inside => Err(Errno::NOSPC),
        Command::Read | Command::Trim if !inside => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// Reads a write's data. Memory grows with what has arrived, not with what was announced.
fn read_payload(reader: &mut impl Read, length: u32) -> std::io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(length.min(1 << 20) as usize);
    reader.take(u64::from(length)).read_to_end(&mut data)?;
    if data.len() < length as usize {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
    }
    Ok(data)
}
