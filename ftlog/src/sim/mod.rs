//! A seeded simulator that runs the real machines and the real codec against everything that can
//! go wrong between two replicas, a disk server and clients.
//!
//! A run is decided by its seed alone. It has a primary and a backup, each with a driver and the
//! toy guest ([`guest`]), a disk server with the view register ([`disk`]), and clients that count
//! on what they were told ([`client`]). Messages are delayed, cut into pieces, lost, and held up
//! one way; replicas crash, stand still and go on, the backup is slow, the channel breaks in the
//! middle of a frame, the disk server crashes with its record half written, claims and their
//! answers get lost ([`world::Fault`]). After some time everything heals except what has crashed.
//!
//! Checked all along: at most one replica is live in a view, and only in the register's; no output
//! leaves before its ack unless its replica is alone; whatever replica sends an output, it is the
//! same one; every replayed entry and state hash agrees; no block is overwritten by an older
//! write; the register never goes back; nothing comes from a halted replica; what a client was
//! told is in every later live replica's history and on the disk. In the end, if a candidate is
//! left, clients are served again.
//!
//! [`Mutation`] breaks one rule in the drivers or the server around the machines; the tests show
//! that each is caught, which is the proof that the checks can fail.

pub mod client;
pub mod disk;
pub mod driver;
pub mod guest;
pub mod rng;
mod vcpu;
pub mod world;

#[cfg(test)]
mod tests;

use std::fmt;

pub use world::Report;

/// A rule to break. Everything is sound with `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// Outputs leave without waiting for their ack.
    ReleaseAtOnce,
    /// A claim without an answer in time is taken for won.
    TimeoutIsWin,
    /// A lost claim is taken for won.
    LoserLives,
    /// A claim without an answer in time is taken for lost.
    TimeoutIsLoss,
    /// The disk server does not fence older views.
    NoFencing,
    /// The register answers before its record is on stable storage.
    NoPersist,
    /// The new primary goes live without consuming its log.
    SkipLog,
    /// The backup runs on where its log ends.
    RunPast,
    /// Pending disk requests are not issued again on going live.
    NoReissue,
    /// Completions from the connection of an older view are taken, besides those of the requests'
    /// second copies. The server's answers are slow, so that there are such completions.
    StaleCompletions,
    /// Reads that the backup executes itself are not protected from writes.
    NoHazards,
    /// The backup takes over the pages of a stretch as they come, not when it is closed.
    PagesAtOnce,
    /// The backup executes where a stretch is to be taken over.
    RunIntoStretch,
}

impl Mutation {
    /// All that break something.
    pub const ALL: [Mutation; 13] = [
        Mutation::ReleaseAtOnce,
        Mutation::TimeoutIsWin,
        Mutation::LoserLives,
        Mutation::TimeoutIsLoss,
        Mutation::NoFencing,
        Mutation::NoPersist,
        Mutation::SkipLog,
        Mutation::RunPast,
        Mutation::NoReissue,
        Mutation::StaleCompletions,
        Mutation::NoHazards,
        Mutation::PagesAtOnce,
        Mutation::RunIntoStretch,
    ];
}

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub mutation: Mutation,
    /// Check only what clients, the disk and the replicas' hashes show, and not what an observer of
    /// the machines' insides sees.
    pub consequences_only: bool,
    /// Print what happens.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mutation: Mutation::None,
            consequences_only: false,
            trace: false,
        }
    }
}

/// A rule was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub seed: u64,
    pub mutation: Mutation,
    /// Simulated nanoseconds.
    pub at_ns: u64,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}, at {:.3} ms: {}\nrepeat: cargo run --release -p ftlog --example simulate -- \
             --start {} --seeds 1 --trace{}",
            self.seed,
            self.at_ns as f64 / 1e6,
            self.what,
            self.seed,
            match self.mutation {
                Mutation::None => String::new(),
                mutation => format!(" --mutation {mutation:?}"),
            }
        )
    }
}

impl std::error::Error for Violation {}

/// Runs one seed to its end.
pub fn run(seed: u64, options: Options) -> Result<Report, Violation> {
    world::World::new(seed, options).run()
}
