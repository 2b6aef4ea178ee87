//! How many entries and bytes of each kind went into a log.

use serde::{Deserialize, Serialize};

use crate::entry::EntryKind;

/// Tags that a kind of entry can have.
const TAGS: usize = 16;

/// Entries and bytes by kind of entry. `overhead` is frame headers and what else is not an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindBytes {
    /// By the kind's tag.
    entries: [u64; TAGS],
    bytes: [u64; TAGS],
    /// Bytes of frame headers, hellos and heartbeats.
    pub overhead: u64,
    /// Frames with entries.
    pub frames: u64,
}

impl KindBytes {
    pub fn add(&mut self, kind: EntryKind, bytes: usize) {
        self.entries[kind as usize] += 1;
        self.bytes[kind as usize] += bytes as u64;
    }

    pub fn entries(&self, kind: EntryKind) -> u64 {
        self.entries[kind as usize]
    }

    pub fn bytes(&self, kind: EntryKind) -> u64 {
        self.bytes[kind as usize]
    }

    /// All bytes, overhead included.
    pub fn total_bytes(&self) -> u64 {
        self.bytes.iter().sum::<u64>() + self.overhead
    }

    pub fn total_entries(&self) -> u64 {
        self.entries.iter().sum()
    }

    /// (kind, entries, bytes) of every kind, those at zero included.
    pub fn iter(&self) -> impl Iterator<Item = (EntryKind, u64, u64)> + '_ {
        EntryKind::ALL
            .into_iter()
            .map(|kind| (kind, self.entries(kind), self.bytes(kind)))
    }
}
