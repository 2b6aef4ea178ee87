//! A load of several clients on one Redis server. Each keeps one TCP
//! connection, never reconnects in silence, and records every operation with
//! its times and its answer.
//!
//! ```no_run
//! # use tests::{check, client};
//! let options = client::Options::new("127.0.0.1:6379".parse().unwrap(), 1);
//! let load = client::Load::start(options)?;
//! std::thread::sleep(std::time::Duration::from_secs(1));
//! let record = load.stop();
//! let verdict = check::check(&record.history);
//! assert!(verdict.is_good() && record.reconnects == 0, "{verdict}");
//! # Ok::<(), client::StartError>(())
//! ```

pub(crate) mod plan;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::history::History;
use worker::Worker;

/// What to do to the server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The server.
    pub address: SocketAddr,
    /// How many clients, each a thread with a connection; at least 1.
    pub clients: u32,
    /// Decides every operation. Two loads on the same data need different
    /// prefixes, not only different seeds.
    pub seed: u64,
    /// All keys begin with it; they must not exist yet.
    pub prefix: String,
    /// The longest pipeline, in operations; 1 for none.
    pub pipeline: usize,
    /// Length of the values of SET in bytes, at least (they hold a unique number).
    pub value_bytes: usize,
    /// Pause between a client's requests.
    pub pause: Duration,
    /// A wait longer than this counts as a broken connection.
    pub timeout: Duration,
}

impl Options {
    /// Four clients with pipelines of up to 8 operations and no pauses.
    pub fn new(address: SocketAddr, seed: u64) -> Self {
        Self {
            address,
            clients: 4,
            seed,
            prefix: format!("load{seed}:"),
            pipeline: 8,
            value_bytes: 32,
            pause: Duration::ZERO,
            timeout: Duration::from_secs(60),
        }
    }
}

/// The server could not be reached at the start.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect to Redis at {address}: {cause}")]
pub struct StartError {
    /// The server.
    pub address: SocketAddr,
    /// What the client library said.
    pub cause: redis::RedisError,
}

/// How the load is going.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Live {
    /// Operations answered since the start.
    pub answered: u64,
    /// Operations whose connection broke before their answer.
    pub unanswered: u64,
    /// Connections made beyond the first of each client.
    pub reconnects: u64,
    /// Answers per second since the last call.
    pub answers_per_s: f64,
    /// How long the longest wait for an answer that is still going on is, in ms.
    pub waiting_ms: f64,
    /// The longest wait so far, in ms, finished or not.
    pub longest_wait_ms: f64,
    /// When the last answer came, in ns since the start; 0 before the first.
    pub last_answer_ns: u64,
}

/// What a load leaves behind.
#[derive(Debug)]
pub struct Record {
    /// Every operation; the last ones read each key once more.
    pub history: History,
    /// Connections made beyond the first of each client.
    pub reconnects: u64,
    /// Why the keys could not be read once more at the end, if so: losses at
    /// the very end would go unseen.
    pub final_read_error: Option<String>,
}

/// Counters that workers write and [`Load::live`] reads.
struct Shared {
    started: Instant,
    stop: AtomicBool,
    answered: AtomicU64,
    unanswered: AtomicU64,
    reconnects: AtomicU64,
    longest_wait_ns: AtomicU64,
    last_answer_ns: AtomicU64,
    /// For each client, since when it waits for an answer; [`NOT_WAITING`] if not.
    waiting_since: Vec<AtomicU64>,
}

const NOT_WAITING: u64 = u64::MAX;

impl Shared {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Worker>>,
    last_seen: Mutex<(Instant, u64)>,
}

impl Load {
    /// Connects all clients and starts them.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let clients = options.clients.max(1);
        let shared = Arc::new(Shared {
            started: Instant::now(),
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            unanswered: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            longest_wait_ns: AtomicU64::new(0),
            last_answer_ns: AtomicU64::new(0),
            waiting_since: (0..clients).map(|_| AtomicU64::new(NOT_WAITING)).collect(),
        });
        let options = Arc::new(options);
        let connected: Vec<Worker> = (0..clients)
            .map(|client| Worker::connect(client, options.clone(), shared.clone()))
            .collect::<Result<_, _>>()
            .map_err(|cause| StartError {
                address: options.address,
                cause,
            })?;
        let workers = connected
            .into_iter()
            .map(|worker| thread::spawn(move || worker.run()))
            .collect();
        let last_seen = Mutex::new((shared.started, 0));
        Ok(Self {
            shared,
            workers,
            last_seen,
        })
    }

    /// The zero of the history's times.
    pub fn started(&self) -> Instant {
        self.shared.started
    }

    /// Counters of this moment.
    pub fn live(&self) -> Live {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let now = Instant::now();
        let now_ns = self.shared.now_ns();
        let waits = self.shared.waiting_since.iter();
        let waiting_ns = waits
            .map(|since| now_ns.saturating_sub(read(since)))
            .max()
            .unwrap_or(0);
        let answered = read(&self.shared.answered);
        let answers_per_s = match self.last_seen.lock() {
            Ok(mut seen) => {
                let (then, count) = std::mem::replace(&mut *seen, (now, answered));
                (answered - count) as f64 / (now - then).as_secs_f64().max(1e-9)
            }
            Err(_) => 0.0,
        };
        let longest_ns = read(&self.shared.longest_wait_ns).max(waiting_ns);
        Live {
            answered,
            unanswered: read(&self.shared.unanswered),
            reconnects: read(&self.shared.reconnects),
            answers_per_s,
            waiting_ms: waiting_ns as f64 / 1e6,
            longest_wait_ms: longest_ns as f64 / 1e6,
            last_answer_ns: read(&self.shared.last_answer_ns),
        }
    }

    /// Lets every client finish its request, reads each key once more over the
    /// first client's connection, and returns the whole record. Takes as long
    /// as the server needs for the answers, at most the options' timeout a
    /// request.
    pub fn stop(self) -> Record {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut workers: Vec<Worker> = self
            .workers
            .into_iter()
            .map(|handle| match handle.join() {
                Ok(worker) => worker,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect();
        let mut keys: Vec<String> = workers
            .iter()
            .flat_map(|w| w.events.iter().map(|e| e.key.clone()))
            .collect();
        keys.sort();
        keys.dedup();
        let final_read_error = workers[0].read_once_more(keys).err().map(|e| e.to_string());
        let events = workers.into_iter().flat_map(|w| w.events).collect();
        Record {
            history: History { events },
            reconnects: self.shared.reconnects.load(Ordering::Relaxed),
            final_read_error,
        }
    }
}

#[cfg(test)]
mod tests;
