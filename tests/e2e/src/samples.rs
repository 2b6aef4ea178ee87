//! What the replicas said of themselves, ten times a second: for charts and for what can be seen
//! only while it happens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use wire::control::{ControlClient, Status};
use wire::register::ReplicaId;
use wire::running::ReplicaProcess;

use crate::machine::Machine;

const PERIOD: Duration = Duration::from_millis(100);
/// A replica that is stopped must not stop the sampling of the other one.
const ANSWER: Duration = Duration::from_millis(500);

/// One answer of one replica.
#[derive(Clone, Debug)]
pub struct Sample {
    pub unix_us: u64,
    pub replica: ReplicaId,
    pub status: Status,
}

/// A sampler that runs.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Vec<Sample>>>,
}

impl Sampler {
    pub fn start(machine: &Machine) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let replicas = machine.replicas().iter().cloned();
        let threads = replicas
            .map(|replica| {
                let stop = stop.clone();
                std::thread::spawn(move || sample(&replica, &stop))
            })
            .collect();
        Self { stop, threads }
    }

    /// All samples in the order of their times.
    pub fn stop(self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all: Vec<Sample> = (self.threads.into_iter())
            .filter_map(|thread| thread.join().ok())
            .flatten()
            .collect();
        all.sort_by_key(|sample| sample.unix_us);
        all
    }
}

fn sample(replica: &ReplicaProcess, stop: &AtomicBool) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut client = None;
    while !stop.load(Ordering::Relaxed) && replica.process.is_alive() {
        if client.is_none() {
            client = ControlClient::connect(&replica.control, ANSWER).ok();
        }
        match client.as_mut().map(ControlClient::status) {
            Some(Ok(status)) => samples.push(Sample {
                unix_us: unix_us(),
                replica: replica.id,
                status,
            }),
            _ => client = None,
        }
        std::thread::sleep(PERIOD);
    }
    samples
}

/// Bandwidth of the log between two samples of the primary.
#[derive(Clone, Debug)]
pub struct Bandwidth {
    pub from_unix_us: u64,
    pub to_unix_us: u64,
    /// Mbit/s by kind of entry.
    pub by_kind: BTreeMap<String, f64>,
}

impl Bandwidth {
    pub fn total(&self) -> f64 {
        self.by_kind.values().sum()
    }
}

/// The log's bandwidth over time, from the samples of `replica`.
pub fn bandwidth(samples: &[Sample], replica: ReplicaId) -> Vec<Bandwidth> {
    let own: Vec<&Sample> = samples.iter().filter(|s| s.replica == replica).collect();
    own.windows(2)
        .map(|pair| between(pair[0], pair[1]))
        .collect()
}

/// The mean bandwidth from one sample to another, by kind of entry.
pub fn between(from: &Sample, to: &Sample) -> Bandwidth {
    let us = to.unix_us.saturating_sub(from.unix_us).max(1) as f64;
    let kinds = to.status.log_bytes.iter().map(|(kind, bytes)| {
        let before = from.status.log_bytes.get(kind).copied().unwrap_or(0);
        // Bits in a microsecond are megabits in a second.
        (kind.clone(), bytes.saturating_sub(before) as f64 * 8.0 / us)
    });
    Bandwidth {
        from_unix_us: from.unix_us,
        to_unix_us: to.unix_us,
        by_kind: kinds.collect(),
    }
}

/// Microseconds since the Unix epoch, the clock of [`wire::control::Failover`].
pub fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}
