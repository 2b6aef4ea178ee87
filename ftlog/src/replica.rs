//! One replica: the role machine that a driver owns, and what it tells the driver to do.
//!
//! ```text
//!            welcome               peer suspected            won
//!  Starting ---------> Protected -----------------> Claiming ----> Alone
//!     | never came                                   ^   | lost, refused
//!     +----------------------------------------------+   v
//!                                                      Halted   (from anywhere; for ever)
//!            hello                 peer suspected            won            log consumed
//!  Waiting  ---------> Replaying -----------------> Claiming ----> Draining ------------> Alone
//! ```
//!
//! The driver keeps the machine behind a mutex. After each call that can cause something it takes
//! the effects **while it still holds the lock** and puts them, in order, on the queues of those
//! that carry them out: the order of the bytes on the channel is that of the calls.
//!
//! The vCPU thread of a primary, for each stretch of execution:
//!
//! 1. [`Primary::stall`]: if it must not run, wait until something was received or answered.
//! 2. What has come from outside (frames, completions, input, a timer that is due): first
//!    [`Primary::append`] the event at the present position, then do it to the guest.
//! 3. Run. What the guest puts out goes to [`Primary::output`]; the driver keeps no copy, the
//!    output comes back as [`Effect::Release`].
//! 4. [`Primary::progress_due`]: append an [`crate::Entry::Progress`] at the present position.
//! 5. [`Replica::tick`] and the effects. Nobody else flushes what this thread has appended before
//!    the next deadline.
//!
//! Of a backup: [`Backup::next_entry`]; run to exactly its position, giving each output on the way
//! to [`Backup::output`]; there [`Backup::arrived`], apply the entry ([`Backup::hashed`] for a
//! state hash), [`Backup::applied`], [`Replica::settle`]. Without a next entry wait, and look again
//! at the role: the backup may have become a primary.
//!
//! The I/O thread feeds [`Replica::received`], [`Replica::closed`], [`Replica::register_answered`],
//! [`Replica::fenced`], and calls [`Replica::tick`] at [`Replica::deadline_ns`]. After each it
//! wakes the vCPU thread if that waits.
//!
//! Three rules for the disk, which the simulator has taught:
//!
//! - A request is in flight once. Send it again only when the connection on which it was sent is
//!   known to be dead (another view, another run of the server), never on a mere timeout.
//! - Take completions only from the present connection.
//! - A refusal because the view is over is neither success nor failure of the request.

use std::collections::VecDeque;
use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::backup::Backup;
use crate::claim::{ClaimAnswer, ClaimRequest};
use crate::codec::Mismatch;
use crate::detector::Suspicion;
use crate::entry::MarkKind;
use crate::primary::Primary;
use crate::replay::Divergence;
use crate::view::View;

/// What the driver has to do.
#[derive(Debug)]
pub enum Effect<T> {
    /// Send these bytes on the channel, after all earlier ones.
    Send(Bytes),
    /// Close the channel, after what was sent before. Nothing more will be sent on it.
    CloseChannel,
    /// Ask the view register, and give the answer to `register_answered`. May come again while an
    /// answer is outstanding; asking once at a time is enough.
    Claim(ClaimRequest),
    /// This output leaves now.
    Release(Released<T>),
    /// The guest may run (a primary at its start).
    Start,
    /// The peer is suspected. For the record; a claim follows by itself.
    Suspected(Suspicion),
    /// The claim is won. A backup has yet to consume its log; if it executes disk reads itself, it
    /// now has to do so under this view, those under way included.
    Claimed(View),
    /// This replica is alone and live in this view. Connect to the disk server under this view and
    /// re-issue every request that was issued and has not completed (connections of the old view
    /// are fenced, a primary's own too), and take no more completions from the old connections: a
    /// newer write of the guest could overtake the copy. Announce the MAC address. A primary otherwise simply goes
    /// on. A backup has consumed its log: it stops suppressing output and lets the clock follow the
    /// host; outputs that the old primary may not have sent follow as [`Effect::Release`].
    Live(View),
    /// Stop the guest for good. Nothing may leave any more. Always the last effect.
    Halt(HaltReason),
}

/// An output that may leave.
#[derive(Debug)]
pub struct Released<T> {
    pub ordinal: u64,
    pub kind: MarkKind,
    pub output: T,
    /// How long it waited for the backup, local nanoseconds.
    pub held_ns: u64,
}

/// Why a replica stopped for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HaltReason {
    /// Another replica is live: this one must not be.
    Lost { suspected: Suspicion, now: View },
    /// The view register will not have this replica.
    Refused {
        suspected: Suspicion,
        reason: String,
    },
    /// The two replicas do not fit together.
    Mismatch(Mismatch),
    /// The peer found something wrong with this replica, in its words.
    TurnedAway(String),
    /// The replay took another path than the primary.
    Diverged(Divergence),
    /// The virtual machine is off.
    PoweredOff,
}

impl fmt::Display for HaltReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HaltReason::Lost { suspected, now } => write!(
                f,
                "another replica is live in {now}; this one had suspected its peer ({suspected}) \
                 and asked too late"
            ),
            HaltReason::Refused { suspected, reason } => write!(
                f,
                "the view register refuses this replica, which had suspected its peer \
                 ({suspected}): {reason}"
            ),
            HaltReason::Mismatch(mismatch) => write!(f, "the replicas do not match: {mismatch}"),
            HaltReason::TurnedAway(reason) => {
                write!(f, "the peer turns this replica away: {reason}")
            }
            HaltReason::Diverged(divergence) => write!(f, "the replay diverged: {divergence}"),
            HaltReason::PoweredOff => f.write_str("the virtual machine is off"),
        }
    }
}

/// Where a replica is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A primary before its backup has come.
    Starting,
    /// A primary with a backup.
    Protected,
    /// A backup before its primary has come.
    Waiting,
    /// A backup that follows its primary.
    Replaying,
    /// The peer is suspected and the register was asked.
    Claiming,
    /// A backup that has won and consumes the rest of its log.
    Draining,
    /// Live without a backup.
    Alone,
    Halted,
}

/// The effects of one machine, with the rule that nothing follows a halt.
#[derive(Debug)]
pub(crate) struct Effects<T> {
    queue: VecDeque<Effect<T>>,
    halted: bool,
}

impl<T> Effects<T> {
    pub fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            halted: false,
        }
    }

    pub fn push(&mut self, effect: Effect<T>) {
        assert!(!self.halted, "a halted replica does nothing more");
        self.queue.push_back(effect);
    }

    /// Halts: outputs and questions that were not yet taken are dropped.
    pub fn halt(&mut self, reason: HaltReason) {
        assert!(!self.halted, "a replica halts once");
        self.queue.retain(|effect| {
            !matches!(
                effect,
                Effect::Release(_) | Effect::Claim(_) | Effect::Start
            )
        });
        self.finish(reason);
    }

    /// Ends with everything done that was to be done.
    pub fn finish(&mut self, reason: HaltReason) {
        self.queue.push_back(Effect::CloseChannel);
        self.queue.push_back(Effect::Halt(reason));
        self.halted = true;
    }

    pub fn pop(&mut self) -> Option<Effect<T>> {
        self.queue.pop_front()
    }
}

/// A replica in either role. `T` is the driver's own form of an output.
#[derive(Debug)]
pub enum Replica<T> {
    Primary(Box<Primary<T>>),
    Backup(Box<Backup<T>>),
}

impl<T> Replica<T> {
    /// A channel to the peer is there, for the first time or, before the handshake is done, again.
    pub fn connected(&mut self, now: u64) {
        match self {
            Replica::Primary(primary) => primary.connected(now),
            Replica::Backup(backup) => backup.connected(),
        }
    }

    /// The channel was closed or broke.
    pub fn closed(&mut self, now: u64) {
        match self {
            Replica::Primary(primary) => primary.closed(now),
            Replica::Backup(backup) => backup.closed(now),
        }
    }

    /// The disk server refused a request because the view of its connection is over. Only for
    /// connections under the present view: one from before a won claim says nothing new. The
    /// request has neither succeeded nor failed; it stays pending.
    pub fn fenced(&mut self, now: u64) {
        match self {
            Replica::Primary(primary) => primary.fenced(now),
            Replica::Backup(backup) => backup.fenced(now),
        }
    }

    /// Bytes came on the channel, in pieces of any size.
    pub fn received(&mut self, now: u64, bytes: &[u8]) {
        match self {
            Replica::Primary(primary) => primary.received(now, bytes),
            Replica::Backup(backup) => backup.received(now, bytes),
        }
    }

    /// What came of an [`Effect::Claim`].
    pub fn register_answered(&mut self, now: u64, answer: ClaimAnswer) {
        match self {
            Replica::Primary(primary) => primary.register_answered(now, answer),
            Replica::Backup(backup) => backup.register_answered(answer),
        }
        self.settle(now);
    }

    /// Time has passed. To be called at [`Replica::deadline_ns`], and harmless at any other time.
    pub fn tick(&mut self, now: u64) {
        match self {
            Replica::Primary(primary) => primary.tick(now),
            Replica::Backup(backup) => backup.tick(now),
        }
        self.settle(now);
    }

    /// When [`Replica::tick`] is next due; `None` if never.
    pub fn deadline_ns(&self) -> Option<u64> {
        match self {
            Replica::Primary(primary) => primary.deadline_ns(),
            Replica::Backup(backup) => backup.deadline_ns(),
        }
    }

    /// The released outputs with numbers below this have been handed to the outside: should this
    /// replica fail now, the backup need not send them again.
    pub fn left(&mut self, below: u64) {
        if let Replica::Primary(primary) = self {
            primary.left(below);
        }
    }

    /// Until when released outputs may leave, unless there is news: a replica that finds itself later
    /// than that may have been stopped, and another may be live. `u64::MAX`: no other can be.
    pub fn may_emit_until_ns(&self) -> u64 {
        match self {
            Replica::Primary(primary) => primary.may_emit_until_ns(),
            Replica::Backup(_) => 0,
        }
    }

    /// What is to be done next, until `None`.
    pub fn next_effect(&mut self) -> Option<Effect<T>> {
        match self {
            Replica::Primary(primary) => primary.next_effect(),
            Replica::Backup(backup) => backup.next_effect(),
        }
    }

    pub fn phase(&self) -> Phase {
        match self {
            Replica::Primary(primary) => primary.phase(),
            Replica::Backup(backup) => backup.phase(),
        }
    }

    pub fn view(&self) -> View {
        match self {
            Replica::Primary(primary) => primary.view(),
            Replica::Backup(backup) => backup.view(),
        }
    }

    /// The machine that records, once this replica is or has become primary.
    pub fn primary(&mut self) -> Option<&mut Primary<T>> {
        match self {
            Replica::Primary(primary) => Some(primary),
            Replica::Backup(_) => None,
        }
    }

    /// The machine that replays, until its log is consumed and it has become primary.
    pub fn backup(&mut self) -> Option<&mut Backup<T>> {
        match self {
            Replica::Backup(backup) => Some(backup),
            Replica::Primary(_) => None,
        }
    }

    /// Makes a backup that has won and consumed its log a primary. The other calls do it by
    /// themselves; call it after calls on [`Replica::backup`], which consume the log.
    pub fn settle(&mut self, now: u64) {
        if let Replica::Backup(backup) = self
            && let Some(primary) = backup.take_over(now)
        {
            *self = Replica::Primary(Box::new(primary));
        }
    }
}

#[cfg(test)]
mod tests;
