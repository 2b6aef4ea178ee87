//! The failure detector: suspects a peer that was silent for too long or is gone.
//!
//! Suspicion decides nothing; it only makes a replica ask the view register. Every message counts
//! as a sign of life, the log and ack traffic as much as a heartbeat.

use std::fmt;

use crate::codec::DecodeError;

/// Why a peer is suspected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspicion {
    /// Nothing was heard for this long.
    Silent { for_ns: u64 },
    /// The channel was closed or broke.
    Closed,
    /// What it sends cannot be a sound peer's.
    Nonsense(String),
    /// It said that it leaves, and why.
    Left(String),
    /// It never came.
    NeverCame,
    /// The disk server refuses this replica's view: the view has moved on.
    Fenced,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Suspicion::Silent { for_ns } => write!(f, "silent for {} ms", for_ns / 1_000_000),
            Suspicion::Closed => f.write_str("the channel was closed"),
            Suspicion::Nonsense(what) => write!(f, "it sent nonsense: {what}"),
            Suspicion::Left(why) => write!(f, "it left: {why}"),
            Suspicion::NeverCame => f.write_str("it never came"),
            Suspicion::Fenced => f.write_str("the disk server refuses this replica's view"),
        }
    }
}

impl From<DecodeError> for Suspicion {
    fn from(error: DecodeError) -> Self {
        Suspicion::Nonsense(error.to_string())
    }
}

/// Watches one peer from the moment it is made.
#[derive(Debug)]
pub struct Detector {
    suspect_after_ns: u64,
    heard_at_ns: u64,
}

impl Detector {
    pub fn new(suspect_after_ns: u64, now: u64) -> Self {
        Self {
            suspect_after_ns,
            heard_at_ns: now,
        }
    }

    /// A sign of life.
    pub fn heard(&mut self, now: u64) {
        self.heard_at_ns = self.heard_at_ns.max(now);
    }

    /// Whether the peer was silent for too long.
    pub fn check(&self, now: u64) -> Option<Suspicion> {
        let for_ns = self.silent_ns(now);
        (for_ns >= self.suspect_after_ns).then_some(Suspicion::Silent { for_ns })
    }

    /// For how long nothing was heard.
    pub fn silent_ns(&self, now: u64) -> u64 {
        now.saturating_sub(self.heard_at_ns)
    }

    /// When silence becomes suspicious.
    pub fn deadline_ns(&self) -> u64 {
        self.heard_at_ns.saturating_add(self.suspect_after_ns)
    }
}
