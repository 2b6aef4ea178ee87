//! What other threads see of the vCPU: its position and clock, a moment ago.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::link::lock;
use crate::machine::Machine;

/// A shared view; clones are the same one.
#[derive(Clone, Default)]
pub struct VcpuView(Arc<Seen>);

#[derive(Default)]
struct Seen {
    count: AtomicU64,
    rip: AtomicU64,
    clock_ns: AtomicU64,
    hashes: AtomicU64,
    stretches: AtomicU64,
    stretch_pages: AtomicU64,
    stretch_interrupts: AtomicU64,
    exits: Mutex<Exits>,
}

/// The exits by kind, and when they were last looked at.
#[derive(Default)]
struct Exits {
    counts: Vec<(&'static str, u64)>,
    seen: Option<Instant>,
}

/// How often exits are looked at.
const EXITS_EVERY: Duration = Duration::from_millis(50);

impl VcpuView {
    /// Shows where the machine stands. The numbers are each right, not necessarily together.
    pub fn show(&self, machine: &Machine) {
        let position = machine.position();
        self.0.count.store(position.count, Ordering::Relaxed);
        self.0.rip.store(position.rip, Ordering::Relaxed);
        self.0.clock_ns.store(machine.now(), Ordering::Relaxed);
        if machine.goes_adrift() {
            self.show_exits(machine);
        }
    }

    fn show_exits(&self, machine: &Machine) {
        let mut exits = lock(&self.0.exits);
        if exits.seen.is_none_or(|seen| seen.elapsed() >= EXITS_EVERY) {
            exits.counts = machine.exit_counts();
            exits.seen = Some(Instant::now());
        }
    }

    /// A state hash of the log agreed with the replay's.
    pub fn hash_agreed(&self) {
        self.0.hashes.fetch_add(1, Ordering::Relaxed);
    }

    /// A stretch was closed or taken over, with so many pages and interrupts.
    pub fn stretch(&self, pages: u64, interrupts: u32) {
        self.0.stretches.fetch_add(1, Ordering::Relaxed);
        self.0.stretch_pages.fetch_add(pages, Ordering::Relaxed);
        self.0
            .stretch_interrupts
            .fetch_add(u64::from(interrupts), Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    pub fn rip(&self) -> u64 {
        self.0.rip.load(Ordering::Relaxed)
    }

    pub fn clock_ns(&self) -> u64 {
        self.0.clock_ns.load(Ordering::Relaxed)
    }

    /// The guest's exits by kind.
    pub fn exits(&self) -> BTreeMap<String, u64> {
        let exits = lock(&self.0.exits);
        let named = exits.counts.iter();
        named.map(|(kind, n)| ((*kind).to_owned(), *n)).collect()
    }

    pub fn hashes(&self) -> u64 {
        self.0.hashes.load(Ordering::Relaxed)
    }

    /// Stretches that were closed or taken over; their pages; interrupts taken in them.
    pub fn stretches(&self) -> (u64, u64, u64) {
        let seen = &self.0;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (
            read(&seen.stretches),
            read(&seen.stretch_pages),
            read(&seen.stretch_interrupts),
        )
    }
}
