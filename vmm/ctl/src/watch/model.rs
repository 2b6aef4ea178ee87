//! What the picture is made of: the last answers of the replicas, what changed between them, and
//! what happened.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use wire::control::{Failover, Protection, Role};
use wire::register::ReplicaId;

use crate::status::{Overview, ReplicaStatus};

/// Rates are taken over this many answers (a second of them).
const WINDOW: usize = 9;
/// Values of a curve.
const CURVE: usize = 240;
/// Lines that are kept of what happened.
const EVENTS: usize = 64;

#[derive(Default)]
pub struct Model {
    pub overview: Option<Overview>,
    /// Log bandwidth, kbit/s, oldest first.
    pub bandwidth: VecDeque<u64>,
    /// Lag, microseconds.
    pub lag: VecDeque<u64>,
    /// What happened, oldest first: microseconds since 1970, and words.
    pub events: VecDeque<(u64, String)>,
    past: VecDeque<Past>,
    known: BTreeMap<ReplicaId, (Role, Protection)>,
    failovers: BTreeMap<ReplicaId, Failover>,
}

/// Counters of one moment.
struct Past {
    at: Instant,
    counts: BTreeMap<ReplicaId, u64>,
    bytes: BTreeMap<String, u64>,
}

impl Model {
    pub fn update(&mut self, overview: Overview) {
        let now = unix_us();
        for replica in &overview.replicas {
            self.note_state(now, replica);
            if let Some(failover) = replica.details.as_ref().and_then(|d| d.last_failover) {
                self.note_failover(replica.replica, failover);
            }
        }
        while self.events.len() > EVENTS {
            self.events.pop_front();
        }
        push(
            &mut self.bandwidth,
            (overview.log_mbit_per_s * 1000.0) as u64,
        );
        push(&mut self.lag, (overview.lag_ms * 1000.0) as u64);
        let counts = overview
            .replicas
            .iter()
            .filter(|replica| replica.details.is_some())
            .map(|replica| (replica.replica, replica.position.count))
            .collect();
        let bytes = live(&overview)
            .and_then(|replica| replica.details.as_ref())
            .map(|details| details.log_bytes.clone())
            .unwrap_or_default();
        let at = Instant::now();
        self.past.push_back(Past { at, counts, bytes });
        while self.past.len() > WINDOW {
            self.past.pop_front();
        }
        self.overview = Some(overview);
    }

    /// What the engine counts, a second.
    pub fn counts_per_s(&self, id: ReplicaId) -> f64 {
        self.rate(|past| past.counts.get(&id).copied())
    }

    /// Kinds of entries with bytes in all and bytes a second now, the busiest first.
    pub fn kinds(&self) -> Vec<(String, u64, f64)> {
        let Some(last) = self.past.back() else {
            return Vec::new();
        };
        let mut kinds: Vec<_> = last
            .bytes
            .iter()
            .filter(|(_, bytes)| **bytes > 0)
            .map(|(kind, bytes)| {
                let rate = self.rate(|past| past.bytes.get(kind).copied());
                (kind.clone(), *bytes, rate)
            })
            .collect();
        kinds.sort_by(|a, b| b.2.total_cmp(&a.2).then(b.1.cmp(&a.1)));
        kinds
    }

    /// A counter's growth per second over the window.
    fn rate(&self, counter: impl Fn(&Past) -> Option<u64>) -> f64 {
        let (Some(first), Some(last)) = (self.past.front(), self.past.back()) else {
            return 0.0;
        };
        let (Some(from), Some(to)) = (counter(first), counter(last)) else {
            return 0.0;
        };
        let seconds = (last.at - first.at).as_secs_f64();
        if seconds > 0.0 {
            to.saturating_sub(from) as f64 / seconds
        } else {
            0.0
        }
    }

    fn note_state(&mut self, now: u64, replica: &ReplicaStatus) {
        let state = (replica.role, replica.state.clone());
        let before = self.known.insert(replica.replica, state.clone());
        let id = replica.replica;
        match before {
            None => self.note(now, format!("replica {id}: {}, {}", state.0, state.1)),
            Some(before) if before != state => {
                let words = match (state.0, &state.1) {
                    (Role::Halted, why) => format!("replica {id} ({}): {why}", before.0),
                    (role, words) => format!("replica {id} is {role} now: {words}"),
                };
                self.note(now, words);
            }
            Some(_) => {}
        }
    }

    /// Each step of a failover once, as it becomes known, with its distance from the suspicion.
    fn note_failover(&mut self, id: ReplicaId, failover: Failover) {
        let before = self.failovers.insert(id, failover).unwrap_or_default();
        let start = failover.suspected_unix_us;
        let restarted = before.suspected_unix_us != start;
        let steps = [
            (
                "suspects the other",
                before.suspected_unix_us,
                failover.suspected_unix_us,
            ),
            (
                "has claimed the view",
                before.claimed_unix_us,
                failover.claimed_unix_us,
            ),
            (
                "has consumed the log",
                before.log_consumed_unix_us,
                failover.log_consumed_unix_us,
            ),
            ("is live", before.live_unix_us, failover.live_unix_us),
            (
                "sends its first frame",
                before.first_output_unix_us,
                failover.first_output_unix_us,
            ),
        ];
        for (words, old, new) in steps {
            let Some(at) = new else { continue };
            if old == new && !restarted {
                continue;
            }
            let after = start.map_or(0, |start| at.saturating_sub(start));
            let text = match after {
                0 => format!("replica {id} {words}"),
                after => format!("replica {id} {words} (+{:.1} ms)", after as f64 / 1000.0),
            };
            self.note(at, text);
        }
    }

    fn note(&mut self, at: u64, text: String) {
        // Steps of a failover are told a little after they were made.
        let place = self.events.partition_point(|(other, _)| *other <= at);
        self.events.insert(place, (at, text));
    }
}

/// The replica that answers for the guest.
pub fn live(overview: &Overview) -> Option<&ReplicaStatus> {
    overview
        .replicas
        .iter()
        .filter(|replica| replica.is_live())
        .max_by_key(|replica| replica.details.as_ref().map_or(0, |d| d.view.number))
}

fn push(curve: &mut VecDeque<u64>, value: u64) {
    curve.push_back(value);
    if curve.len() > CURVE {
        curve.pop_front();
    }
}

fn unix_us() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
