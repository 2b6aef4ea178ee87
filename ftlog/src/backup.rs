//! The backup's role: receive and acknowledge at once, replay, suppress, and take over if the
//! register agrees.
//!
//! The vCPU thread asks for [`Backup::next_entry`], runs the guest to exactly its position, and
//! says [`Backup::applied`] when it has done to the guest what the entry says. Outputs on the way
//! go to [`Backup::output`], which compares each with its mark. Where there is no next entry the
//! guest stands: it never runs past what the backup knows.
//!
//! Suppressed outputs are kept until the primary says that they have left; the ones that have not
//! are sent when the backup goes live, so that a client need not wait for a retransmission.
//!
//! A backup that has not replayed the beginning, that has diverged, or that was told that the
//! machine is off never claims.

use std::collections::VecDeque;

use thiserror::Error;

use crate::claim::{Claim, ClaimAnswer, ClaimRequest};
use crate::codec::{Ack, Bye, Decoder, Header, Hello, Message, encode};
use crate::config::Config;
use crate::detector::{Detector, Suspicion};
use crate::entry::{Entry, MarkKind};
use crate::ids::ReplicaId;
use crate::position::Position;
use crate::primary::{Primary, Takeover};
use crate::replay::{self, Divergence, Hashes, Made};
use crate::replica::{Effect, Effects, HaltReason, Phase, Released};
use crate::view::View;

/// The replay cannot go on. The machine has halted itself, or had before.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReplayError {
    #[error(transparent)]
    Diverged(#[from] Divergence),
    #[error("this replica is halted")]
    Halted,
}

/// An output that the primary may not have sent.
#[derive(Debug)]
struct Suppressed<T> {
    ordinal: u64,
    kind: MarkKind,
    output: T,
}

#[derive(Debug)]
pub struct Backup<T> {
    id: ReplicaId,
    view: View,
    header: Header,
    config: Config,
    phase: Phase,
    claim: Option<Claim>,
    connected: bool,
    decoder: Decoder,
    log: VecDeque<Entry>,
    received: u64,
    executed: u64,
    executed_at: Position,
    last_acked: Ack,
    last_sent_ns: u64,
    suppressed: VecDeque<Suppressed<T>>,
    next_ordinal: u64,
    released: u64,
    /// The primary said that the machine is off.
    over: bool,
    detector: Detector,
    effects: Effects<T>,
}

impl<T> Backup<T> {
    /// A backup that waits for its primary. `header` is its own: what it is ready to replay.
    ///
    /// # Panics
    /// If `id` is not the view's backup or the header is of another view.
    pub fn new(config: Config, id: ReplicaId, view: View, header: Header, now: u64) -> Self {
        assert_eq!(view.backup, Some(id), "a backup is its view's backup");
        assert_eq!(view.number, header.view, "the header is of the view");
        Self {
            id,
            view,
            phase: Phase::Waiting,
            claim: None,
            connected: false,
            decoder: Decoder::for_log(),
            log: VecDeque::new(),
            received: 0,
            executed: 0,
            executed_at: header.start,
            last_acked: Ack::default(),
            last_sent_ns: now,
            suppressed: VecDeque::new(),
            next_ordinal: 0,
            released: 0,
            over: false,
            detector: Detector::new(config.suspect_after_ns, now),
            effects: Effects::new(),
            header,
            config,
        }
    }

    // For the vCPU thread.

    /// What comes next in the log: run the guest to exactly its position. `None`: the guest must
    /// stand until more comes, or until this replica is live or halted.
    pub fn next_entry(&self) -> Option<&Entry> {
        if self.phase == Phase::Halted {
            None
        } else {
            self.log.front()
        }
    }

    /// The number of the next entry.
    pub fn next_seq(&self) -> u64 {
        self.executed
    }

    /// The guest has arrived at `at`, where the next entry is due: compares the two before the
    /// driver applies the entry. For any entry but a mark, which [`Backup::output`] takes.
    pub fn arrived(&mut self, now: u64, at: Position) -> Result<(), ReplayError> {
        let outcome = match self.next_entry() {
            None => return Err(ReplayError::Halted),
            Some(entry) => replay::check_arrival(self.executed, entry, at),
        };
        self.judge(now, outcome)
    }

    /// The guest has the state hashes `replayed` where the next entry, an [`Entry::Hash`], is due.
    pub fn hashed(&mut self, now: u64, replayed: Hashes) -> Result<(), ReplayError> {
        let outcome = match self.next_entry() {
            None => return Err(ReplayError::Halted),
            Some(entry) => replay::check_hashes(self.executed, entry, replayed),
        };
        self.judge(now, outcome)
    }

    /// The next entry has been applied, wholly: from now on it counts as executed.
    pub fn applied(&mut self) -> Result<(), ReplayError> {
        if self.phase == Phase::Halted {
            return Err(ReplayError::Halted);
        }
        let Some(entry) = self.log.pop_front() else {
            panic!("no entry to apply")
        };
        self.executed += 1;
        self.executed_at = entry.at();
        self.finish_if_over();
        Ok(())
    }

    /// The guest made an output: compares it with its mark, which must be the next entry, and
    /// suppresses it.
    pub fn output(
        &mut self,
        now: u64,
        at: Position,
        kind: MarkKind,
        bytes: &[u8],
        output: T,
    ) -> Result<(), ReplayError> {
        if self.phase == Phase::Halted {
            return Err(ReplayError::Halted);
        }
        let ordinal = self.next_ordinal;
        let made = Made {
            at,
            ordinal,
            kind,
            bytes,
        };
        let outcome = replay::check_output(self.executed, self.log.front(), made);
        self.judge(now, outcome)?;
        self.next_ordinal += 1;
        if ordinal >= self.released {
            self.suppressed.push_back(Suppressed {
                ordinal,
                kind,
                output,
            });
        }
        self.applied()
    }

    /// The driver found the replay to be wrong in a way of its own.
    pub fn diverged(&mut self, now: u64, divergence: Divergence) {
        if self.phase != Phase::Halted {
            let _ = self.judge(now, Err(divergence));
        }
    }

    fn judge(&mut self, now: u64, outcome: Result<(), Divergence>) -> Result<(), ReplayError> {
        if let Err(divergence) = &outcome {
            let reason = HaltReason::Diverged(divergence.clone());
            if self.phase == Phase::Replaying {
                self.send(
                    now,
                    &Message::Refuse {
                        reason: reason.to_string(),
                    },
                );
            }
            self.halt(reason);
        }
        Ok(outcome?)
    }

    // For the driver's I/O.

    pub fn connected(&mut self) {
        if self.phase == Phase::Waiting {
            self.connected = true;
            self.decoder = Decoder::for_log();
        }
    }

    pub fn closed(&mut self, now: u64) {
        match self.phase {
            Phase::Waiting => self.connected = false,
            Phase::Replaying if !self.over => self.suspect(now, Suspicion::Closed),
            _ => {}
        }
    }

    /// The disk server refused this replica's connection because its view is over.
    pub fn fenced(&mut self, now: u64) {
        if self.phase == Phase::Replaying && !self.over {
            self.suspect(now, Suspicion::Fenced);
        }
    }

    /// Bytes came. Entries are acknowledged here, before any of them is executed.
    pub fn received(&mut self, now: u64, bytes: &[u8]) {
        if !self.is_listening() {
            return;
        }
        self.detector.heard(now);
        self.decoder.feed(bytes);
        while self.is_listening() {
            match self.decoder.next() {
                Ok(Some(message)) => self.message(now, message),
                Ok(None) => break,
                Err(error) => self.nonsense(now, error.to_string()),
            }
        }
        if self.phase == Phase::Replaying && self.received > self.last_acked.received {
            self.acknowledge(now);
        }
    }

    fn is_listening(&self) -> bool {
        match self.phase {
            Phase::Waiting => self.connected,
            Phase::Replaying => !self.over,
            _ => false,
        }
    }

    fn message(&mut self, now: u64, message: Message) {
        match (self.phase, message) {
            (Phase::Waiting, Message::Hello(hello)) => self.greeted(now, &hello),
            (
                Phase::Replaying,
                Message::Entries {
                    released, entries, ..
                },
            ) => {
                self.received += entries.len() as u64;
                self.log.extend(entries);
                self.note_released(released);
            }
            (Phase::Replaying, Message::Heartbeat { next_seq, released }) => {
                if next_seq != self.received {
                    let received = self.received;
                    let what = format!("{next_seq} entries were sent and {received} received");
                    return self.nonsense(now, what);
                }
                self.note_released(released);
            }
            (Phase::Replaying, Message::Bye(Bye::PoweredOff)) => {
                self.over = true;
                self.finish_if_over();
            }
            (_, Message::Refuse { reason }) => self.halt(HaltReason::TurnedAway(reason)),
            (_, message) => {
                let what = format!("a message that does not belong here: {message:?}");
                self.nonsense(now, what);
            }
        }
    }

    fn greeted(&mut self, now: u64, hello: &Hello) {
        let mismatch = self.header.check_compatible(&hello.header).err();
        if let Some(mismatch) = mismatch {
            let reason = mismatch.to_string();
            self.send(now, &Message::Refuse { reason });
            return self.halt(HaltReason::Mismatch(mismatch));
        }
        if hello.replica != self.view.primary {
            let reason = format!(
                "replica {} is not the primary of {}",
                hello.replica, self.view
            );
            return self.nonsense(now, reason);
        }
        let hello = Hello {
            replica: self.id,
            header: self.header.clone(),
        };
        self.send(now, &Message::Welcome(Box::new(hello)));
        self.phase = Phase::Replaying;
        self.detector = Detector::new(self.config.suspect_after_ns, now);
    }

    /// What came cannot be from a sound primary. Before the handshake that is some stranger, who is
    /// turned away; after it the primary is suspected.
    fn nonsense(&mut self, now: u64, what: String) {
        if self.phase == Phase::Waiting {
            self.connected = false;
            self.send(now, &Message::Refuse { reason: what });
            self.effects.push(Effect::CloseChannel);
        } else {
            self.suspect(now, Suspicion::Nonsense(what));
        }
    }

    fn note_released(&mut self, released: u64) {
        self.released = self.released.max(released);
        while self
            .suppressed
            .front()
            .is_some_and(|output| output.ordinal < self.released)
        {
            self.suppressed.pop_front();
        }
    }

    pub fn register_answered(&mut self, answer: ClaimAnswer) {
        if self.phase != Phase::Claiming {
            return;
        }
        let Some(claim) = &self.claim else {
            unreachable!("a claiming replica has a claim");
        };
        match claim.answered(answer) {
            None => {}
            Some(Err(reason)) => self.halt(reason),
            Some(Ok(view)) => {
                self.phase = Phase::Draining;
                self.view = view;
                self.effects.push(Effect::Claimed(view));
            }
        }
    }

    pub fn tick(&mut self, now: u64) {
        match self.phase {
            Phase::Replaying if !self.over => {
                if let Some(suspicion) = self.detector.check(now) {
                    return self.suspect(now, suspicion);
                }
                if now >= self.ack_due_ns() {
                    self.acknowledge(now);
                }
            }
            Phase::Claiming => self.ask(now),
            _ => {}
        }
    }

    fn ack_due_ns(&self) -> u64 {
        let news = self.executed != self.last_acked.executed;
        let wait_ns = if news {
            self.config.ack_interval_ns
        } else {
            self.config.heartbeat_ns
        };
        self.last_sent_ns
            .saturating_add(wait_ns.min(self.config.heartbeat_ns))
    }

    /// When [`Backup::tick`] is next due.
    pub fn deadline_ns(&self) -> Option<u64> {
        match self.phase {
            Phase::Replaying if !self.over => {
                Some(self.ack_due_ns().min(self.detector.deadline_ns()))
            }
            Phase::Claiming => self.claim.as_ref().map(Claim::deadline_ns),
            _ => None,
        }
    }

    /// What is to be done next, until `None`.
    pub fn next_effect(&mut self) -> Option<Effect<T>> {
        self.effects.pop()
    }

    // For status and statistics.

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn view(&self) -> View {
        self.view
    }

    /// Entries received and not executed.
    pub fn backlog(&self) -> usize {
        self.log.len()
    }

    /// How far it is.
    pub fn progress(&self) -> Ack {
        Ack {
            received: self.received,
            executed: self.executed,
            executed_count: self.executed_at.count,
        }
    }

    // Inside.

    /// The primary that this backup becomes, once it has won and its log is consumed. Disk writes
    /// are not among the outputs that it sends again: the device knows which requests are pending,
    /// and the driver re-issues those.
    pub(crate) fn take_over(&mut self, now: u64) -> Option<Primary<T>> {
        if self.phase != Phase::Draining || !self.log.is_empty() {
            return None;
        }
        let header = Header {
            view: self.view.number,
            ..self.header.clone()
        };
        let outputs = std::mem::take(&mut self.suppressed).into_iter();
        let unsent = outputs
            .filter(|output| output.kind != MarkKind::DiskWrite)
            .map(|output| {
                let Suppressed {
                    ordinal,
                    kind,
                    output,
                } = output;
                Released {
                    ordinal,
                    kind,
                    output,
                    held_ns: 0,
                }
            });
        let takeover = Takeover {
            id: self.id,
            view: self.view,
            header,
            config: self.config.clone(),
            next_ordinal: self.next_ordinal,
            unsent: unsent.collect(),
            effects: std::mem::replace(&mut self.effects, Effects::new()),
        };
        Some(Primary::take_over(takeover, now))
    }

    /// The machine is off and all of its life is replayed.
    fn finish_if_over(&mut self) {
        if self.over && self.log.is_empty() && self.phase == Phase::Replaying {
            self.phase = Phase::Halted;
            self.effects.finish(HaltReason::PoweredOff);
        }
    }

    fn acknowledge(&mut self, now: u64) {
        self.last_acked = self.progress();
        self.send(now, &Message::Ack(self.last_acked));
    }

    fn send(&mut self, now: u64, message: &Message) {
        self.last_sent_ns = now;
        self.effects.push(Effect::Send(encode(message)));
    }

    fn suspect(&mut self, now: u64, suspicion: Suspicion) {
        assert_eq!(self.phase, Phase::Replaying);
        self.phase = Phase::Claiming;
        self.effects.push(Effect::Suspected(suspicion.clone()));
        self.effects.push(Effect::CloseChannel);
        let request = ClaimRequest {
            from_view: self.view.number,
            claimant: self.id,
        };
        let retry_ns = self.config.claim_retry_ns;
        self.claim = Some(Claim::new(request, suspicion, retry_ns, now));
        self.ask(now);
    }

    fn ask(&mut self, now: u64) {
        if let Some(request) = self.claim.as_mut().and_then(|claim| claim.poll(now)) {
            self.effects.push(Effect::Claim(request));
        }
    }

    fn halt(&mut self, reason: HaltReason) {
        self.phase = Phase::Halted;
        self.log.clear();
        self.suppressed.clear();
        self.effects.halt(reason);
    }
}
