//! The primary's role: record, hold outputs, watch the backup, go on alone if the register agrees.
//!
//! Calls for the vCPU thread are [`Primary::stall`], [`Primary::append`], [`Primary::output`] and
//! [`Primary::progress_due`]; they only move bytes in memory. The log is flushed at once when an
//! output waits for it, otherwise when the batch is full or old enough.

use std::collections::VecDeque;

use bytes::Bytes;
use thiserror::Error;

use crate::claim::{Claim, ClaimAnswer, ClaimOutcome, ClaimRequest};
use crate::codec::{
    Ack, Bye, Decoder, EncodeError, Header, Hello, KindBytes, LogEncoder, Message, encode,
};
use crate::config::Config;
use crate::detector::{Detector, Suspicion};
use crate::entry::{Entry, EntryKind, MarkKind, digest};
use crate::gate::{Held, OutputGate};
use crate::ids::ReplicaId;
use crate::pace::{FULL_SHARE, Pace};
use crate::position::Position;
use crate::replica::{Effect, Effects, HaltReason, Phase, Released};
use crate::view::View;

/// Why the vCPU must not run now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// The backup has not come yet.
    WaitingForBackup,
    /// Too much log or output is not acknowledged.
    LogFull,
    /// The backup's execution is too far behind.
    BackupBehind,
    /// For ever.
    Halted,
}

#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AppendError {
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("this replica is halted")]
    Halted,
}

/// What a backup hands to the primary that it becomes.
pub(crate) struct Takeover<T> {
    pub id: ReplicaId,
    pub view: View,
    pub header: Header,
    pub config: Config,
    pub next_ordinal: u64,
    /// Outputs that the old primary may not have sent.
    pub unsent: Vec<Released<T>>,
    pub effects: Effects<T>,
}

#[derive(Debug)]
pub struct Primary<T> {
    id: ReplicaId,
    view: View,
    header: Header,
    config: Config,
    phase: Phase,
    suspected: Option<Suspicion>,
    claim: Option<Claim>,
    started: bool,
    /// The hello was sent on the channel that is there.
    connected: bool,
    decoder: Decoder,
    encoder: LogEncoder,
    /// Since when entries wait to be sent; `None` if there are none.
    unsent_since_ns: Option<u64>,
    flush_now: bool,
    sent_seq: u64,
    /// (entries up to here, bytes) of frames that are not acknowledged.
    unacked: VecDeque<(u64, usize)>,
    unacked_bytes: usize,
    last_ack: Ack,
    /// Sequence numbers of the network frames that are not acknowledged.
    net_unacked: VecDeque<u64>,
    net_received: u64,
    gate: OutputGate<T>,
    next_ordinal: u64,
    released: u64,
    last_append_ns: u64,
    last_sent_ns: u64,
    detector: Detector,
    pace: Pace,
    effects: Effects<T>,
}

impl<T> Primary<T> {
    /// A primary at its start, in a view that the register already has. With a backup in the view
    /// it waits for it; without one it starts at once.
    ///
    /// # Panics
    /// If `id` is not the view's primary or the header is of another view.
    pub fn new(config: Config, id: ReplicaId, view: View, header: Header, now: u64) -> Self {
        assert_eq!(view.primary, id, "a primary is its view's primary");
        assert_eq!(view.number, header.view, "the header is of the view");
        let phase = if view.backup.is_some() {
            Phase::Starting
        } else {
            Phase::Alone
        };
        let mut primary = Self::in_phase(config, id, view, header, phase, 0, now);
        if phase == Phase::Alone {
            primary.start();
        }
        primary
    }

    /// A backup that has won and consumed its log goes on as this.
    pub(crate) fn take_over(takeover: Takeover<T>, now: u64) -> Self {
        let Takeover {
            id,
            view,
            header,
            config,
            next_ordinal,
            unsent,
            effects,
        } = takeover;
        let mut primary = Self::in_phase(config, id, view, header, Phase::Alone, next_ordinal, now);
        primary.started = true;
        primary.effects = effects;
        primary.effects.push(Effect::Live(view));
        for released in unsent {
            primary.leave(now, released);
        }
        primary
    }

    fn in_phase(
        config: Config,
        id: ReplicaId,
        view: View,
        header: Header,
        phase: Phase,
        next_ordinal: u64,
        now: u64,
    ) -> Self {
        Self {
            id,
            view,
            phase,
            suspected: None,
            claim: None,
            started: false,
            connected: false,
            decoder: Decoder::for_acks(),
            encoder: LogEncoder::new(&header),
            unsent_since_ns: None,
            flush_now: false,
            sent_seq: 0,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            last_ack: Ack::default(),
            net_unacked: VecDeque::new(),
            net_received: 0,
            gate: if phase == Phase::Alone {
                OutputGate::opened()
            } else {
                OutputGate::new()
            },
            next_ordinal,
            released: next_ordinal,
            last_append_ns: now,
            last_sent_ns: now,
            detector: Detector::new(config.start_wait_ns, now),
            pace: Pace::new(&config, now),
            effects: Effects::new(),
            header,
            config,
        }
    }

    // For the vCPU thread.

    /// Why the vCPU must not run now; `None` if it may. Ask before each stretch of execution.
    pub fn stall(&self, now: u64) -> Option<Stall> {
        match self.phase {
            Phase::Halted => Some(Stall::Halted),
            _ if !self.started => Some(Stall::WaitingForBackup),
            Phase::Alone => None,
            _ if self.buffered_bytes() >= self.config.log_buffer_bytes => Some(Stall::LogFull),
            Phase::Protected if self.pace.is_over_limit(now) => Some(Stall::BackupBehind),
            _ => None,
        }
    }

    /// The share of the time, in thousandths, that the vCPU may run.
    pub fn share(&self) -> u32 {
        if self.phase == Phase::Protected {
            self.pace.share()
        } else {
            FULL_SHARE
        }
    }

    /// Whether an [`Entry::Progress`] is due, without which the backup would stand.
    pub fn progress_due(&self, now: u64) -> bool {
        self.phase == Phase::Protected
            && now.saturating_sub(self.last_append_ns) >= self.config.progress_ns
    }

    /// Appends what happened to the guest. The entry may not be a mark: [`Primary::output`] makes
    /// those. Returns the entry's number; alone, entries are neither kept nor numbered.
    ///
    /// What cannot be logged must not be done to the guest: on an error, do not.
    pub fn append(&mut self, now: u64, entry: &Entry) -> Result<u64, AppendError> {
        assert!(
            !matches!(entry, Entry::Mark { .. }),
            "output() makes the marks"
        );
        self.log(now, entry)
    }

    /// The guest made an output: logs its mark and holds it until it may leave. `bytes` is what its
    /// digest is over; `executed_before` is from [`crate::ReadHazards`], otherwise 0. Returns the
    /// output's ordinal.
    pub fn output(
        &mut self,
        now: u64,
        at: Position,
        kind: MarkKind,
        bytes: &[u8],
        executed_before: u64,
        output: T,
    ) -> Result<u64, AppendError> {
        let ordinal = self.next_ordinal;
        let mark_seq = self.log(
            now,
            &Entry::Mark {
                at,
                ordinal,
                kind,
                digest: digest(bytes),
            },
        )?;
        self.next_ordinal += 1;
        self.flush_now = true;
        let (bytes, since_ns) = (bytes.len(), now);
        self.gate.hold(Held {
            mark_seq,
            executed_before,
            ordinal,
            kind,
            bytes,
            since_ns,
            output,
        });
        self.release(now);
        Ok(ordinal)
    }

    fn log(&mut self, now: u64, entry: &Entry) -> Result<u64, AppendError> {
        match self.phase {
            Phase::Halted => return Err(AppendError::Halted),
            // While the register is asked the log has no reader: if it is won there is no backup,
            // if it is lost there is no primary. The numbers go on, for the gate's order.
            Phase::Alone | Phase::Claiming => {
                let seq = self.sent_seq.max(self.encoder.next_seq());
                self.sent_seq = seq + 1;
                self.count_net(entry, seq);
                return Ok(seq);
            }
            _ => {}
        }
        let seq = self.encoder.push(entry)?;
        self.last_append_ns = now;
        self.unsent_since_ns.get_or_insert(now);
        self.count_net(entry, seq);
        self.pace.appended(seq, now);
        if self.encoder.pending_bytes() >= self.config.batch_bytes {
            self.flush_now = true;
        }
        Ok(seq)
    }

    fn count_net(&mut self, entry: &Entry, seq: u64) {
        if entry.kind() == EntryKind::NetReceive {
            self.net_received += 1;
            if self.phase != Phase::Alone {
                self.net_unacked.push_back(seq);
            }
        }
    }

    // For the driver's I/O.

    pub fn connected(&mut self, now: u64) {
        if self.phase != Phase::Starting {
            return;
        }
        self.connected = true;
        self.decoder = Decoder::for_acks();
        let hello = Hello {
            replica: self.id,
            header: self.header.clone(),
        };
        self.send(now, encode(&Message::Hello(Box::new(hello))));
    }

    pub fn closed(&mut self, now: u64) {
        match self.phase {
            Phase::Starting => self.connected = false,
            Phase::Protected => self.suspect(now, Suspicion::Closed),
            _ => {}
        }
    }

    /// The disk server refused a request because the view of its connection, which is this
    /// machine's present one, is over.
    pub fn fenced(&mut self, now: u64) {
        match self.phase {
            Phase::Starting | Phase::Protected => self.suspect(now, Suspicion::Fenced),
            Phase::Alone => {
                let reason = "somebody has ended this replica's view".into();
                self.halt(HaltReason::Refused {
                    suspected: Suspicion::Fenced,
                    reason,
                });
            }
            _ => {}
        }
    }

    pub fn received(&mut self, now: u64, bytes: &[u8]) {
        if !self.is_listening() {
            return;
        }
        // A replica that was itself stopped for too long must not act on what piled up meanwhile:
        // another may be live. So silence is judged before the bytes that end it are looked at.
        if let Some(suspicion) = self.silence(now) {
            return self.suspect(now, suspicion);
        }
        self.decoder.feed(bytes);
        while self.is_listening() {
            match self.decoder.next() {
                Ok(Some(message)) => self.message(now, message),
                Ok(None) => return,
                Err(error) => return self.suspect(now, error.into()),
            }
        }
    }

    fn is_listening(&self) -> bool {
        self.phase == Phase::Protected || self.phase == Phase::Starting && self.connected
    }

    fn silence(&self, now: u64) -> Option<Suspicion> {
        let suspicion = self.detector.check(now)?;
        Some(if self.phase == Phase::Starting {
            Suspicion::NeverCame
        } else {
            suspicion
        })
    }

    fn message(&mut self, now: u64, message: Message) {
        match (self.phase, message) {
            (Phase::Starting, Message::Welcome(hello)) => self.welcomed(now, &hello),
            (Phase::Starting, Message::Refuse { reason }) => {
                self.halt(HaltReason::TurnedAway(reason));
            }
            (Phase::Protected, Message::Refuse { reason }) => {
                self.suspect(now, Suspicion::Left(reason));
            }
            (Phase::Protected, Message::Ack(ack)) => self.acknowledged(now, ack),
            (_, message) => {
                let what = format!("a message that does not belong here: {message:?}");
                self.suspect(now, Suspicion::Nonsense(what));
            }
        }
    }

    fn welcomed(&mut self, now: u64, hello: &Hello) {
        if let Err(mismatch) = self.header.check_compatible(&hello.header) {
            let reason = mismatch.to_string();
            self.send(now, encode(&Message::Refuse { reason }));
            return self.halt(HaltReason::Mismatch(mismatch));
        }
        if Some(hello.replica) != self.view.backup {
            let reason = format!(
                "replica {} is not the backup of {}",
                hello.replica, self.view
            );
            self.send(
                now,
                encode(&Message::Refuse {
                    reason: reason.clone(),
                }),
            );
            return self.suspect(now, Suspicion::Nonsense(reason));
        }
        self.phase = Phase::Protected;
        self.detector = Detector::new(self.config.suspect_after_ns, now);
        self.start();
    }

    fn acknowledged(&mut self, now: u64, ack: Ack) {
        let last = self.last_ack;
        if ack.received > self.sent_seq
            || ack.received < last.received
            || ack.executed < last.executed
        {
            let sent = self.sent_seq;
            let what = format!("{ack:?} after {last:?}, with {sent} entries sent");
            return self.suspect(now, Suspicion::Nonsense(what));
        }
        self.last_ack = ack;
        self.detector.heard(now);
        self.pace.executed(ack.executed);
        while let Some(&(seq, bytes)) = self.unacked.front()
            && seq <= ack.received
        {
            self.unacked.pop_front();
            self.unacked_bytes -= bytes;
        }
        while self
            .net_unacked
            .front()
            .is_some_and(|seq| *seq < ack.received)
        {
            self.net_unacked.pop_front();
        }
        self.gate.acknowledged(ack.received, ack.executed);
        self.release(now);
    }

    pub fn register_answered(&mut self, now: u64, answer: ClaimAnswer) {
        if self.phase != Phase::Claiming {
            return;
        }
        let (Some(claim), Some(suspected)) = (&self.claim, self.suspected.clone()) else {
            unreachable!("a claiming replica has a claim and its reason");
        };
        match claim.answered(answer) {
            None => {}
            Some(ClaimOutcome::Lost(view)) => self.halt(HaltReason::Lost {
                suspected,
                now: view,
            }),
            Some(ClaimOutcome::Refused(reason)) => {
                self.halt(HaltReason::Refused { suspected, reason });
            }
            Some(ClaimOutcome::Won(view)) => {
                self.phase = Phase::Alone;
                self.view = view;
                self.unacked.clear();
                self.unacked_bytes = 0;
                self.net_unacked.clear();
                self.effects.push(Effect::Claimed(view));
                self.effects.push(Effect::Live(view));
                if !self.started {
                    self.start();
                }
                self.gate.open();
                self.release(now);
            }
        }
    }

    pub fn tick(&mut self, now: u64) {
        match self.phase {
            Phase::Starting | Phase::Protected => {
                if let Some(suspicion) = self.silence(now) {
                    return self.suspect(now, suspicion);
                }
                if self.phase == Phase::Protected {
                    self.pace.tick(now);
                    self.keep_alive(now);
                }
            }
            Phase::Claiming => self.ask(now),
            _ => {}
        }
    }

    /// When [`Primary::tick`] is next due.
    pub fn deadline_ns(&self) -> Option<u64> {
        match self.phase {
            Phase::Starting => Some(self.detector.deadline_ns()),
            Phase::Protected => {
                let flush = self
                    .unsent_since_ns
                    .map(|since| since + self.config.flush_after_ns);
                let heartbeat = self.last_sent_ns + self.config.heartbeat_ns;
                let pace = self.pace.deadline_ns();
                let due = [
                    Some(self.detector.deadline_ns()),
                    Some(heartbeat),
                    flush,
                    pace,
                ];
                due.into_iter().flatten().min()
            }
            Phase::Claiming => self.claim.as_ref().map(Claim::deadline_ns),
            _ => None,
        }
    }

    /// What is to be done next, until `None`. Sends what outputs wait for first.
    pub fn next_effect(&mut self) -> Option<Effect<T>> {
        if self.flush_now && self.phase == Phase::Protected {
            self.flush(self.last_append_ns);
        }
        self.effects.pop()
    }

    // For status and statistics.

    pub fn phase(&self) -> Phase {
        self.phase
    }

    pub fn view(&self) -> View {
        self.view
    }

    /// How far the backup's execution is behind; 0 without one.
    pub fn lag_ns(&self, now: u64) -> u64 {
        if self.phase == Phase::Protected {
            self.pace.lag_ns(now)
        } else {
            0
        }
    }

    /// The backup's last ack.
    pub fn last_ack(&self) -> Ack {
        self.last_ack
    }

    /// Entries and bytes of the log by kind.
    pub fn stats(&self) -> &KindBytes {
        self.encoder.stats()
    }

    /// Bytes of log and of held outputs that are not acknowledged.
    pub fn buffered_bytes(&self) -> usize {
        self.unacked_bytes + self.encoder.pending_bytes() + self.gate.bytes()
    }

    /// Outputs that wait for the backup.
    pub fn held_outputs(&self) -> usize {
        self.gate.len()
    }

    /// How many of the network frames that this replica has taken as primary survive it: the backup
    /// has them, or there is none to have them.
    pub fn net_received_safe(&self) -> u64 {
        self.net_received - self.net_unacked.len() as u64
    }

    // Inside.

    fn start(&mut self) {
        self.started = true;
        self.effects.push(Effect::Start);
    }

    fn release(&mut self, now: u64) {
        // Once the backup is suspected nothing leaves until the register has answered.
        if !matches!(self.phase, Phase::Protected | Phase::Alone) {
            return;
        }
        while let Some(held) = self.gate.pop() {
            let Held {
                ordinal,
                kind,
                output,
                since_ns,
                ..
            } = held;
            let held_ns = now.saturating_sub(since_ns);
            self.released = ordinal + 1;
            self.encoder.set_released(self.released);
            self.leave(
                now,
                Released {
                    ordinal,
                    kind,
                    output,
                    held_ns,
                },
            );
        }
    }

    fn leave(&mut self, now: u64, released: Released<T>) {
        let is_power = released.kind == MarkKind::Power;
        self.effects.push(Effect::Release(released));
        if is_power {
            self.powered_off(now);
        }
    }

    /// The output that switches the machine off has left.
    fn powered_off(&mut self, now: u64) {
        if self.phase == Phase::Protected {
            self.flush(now);
            self.send(now, encode(&Message::Bye(Bye::PoweredOff)));
        }
        self.phase = Phase::Halted;
        self.gate.discard();
        self.effects.finish(HaltReason::PoweredOff);
    }

    fn keep_alive(&mut self, now: u64) {
        let waited = self.unsent_since_ns.map(|since| now.saturating_sub(since));
        if waited.is_some_and(|waited| waited >= self.config.flush_after_ns) {
            self.flush(now);
        }
        if now.saturating_sub(self.last_sent_ns) >= self.config.heartbeat_ns {
            let (next_seq, released) = (self.sent_seq, self.released);
            let heartbeat = encode(&Message::Heartbeat { next_seq, released });
            self.encoder.count_overhead(heartbeat.len());
            self.send(now, heartbeat);
        }
    }

    fn flush(&mut self, now: u64) {
        let frames: Vec<Bytes> = self.encoder.take_frames().collect();
        self.flush_now = false;
        self.unsent_since_ns = None;
        self.sent_seq = self.encoder.next_seq();
        for frame in frames {
            self.unacked.push_back((self.sent_seq, frame.len()));
            self.unacked_bytes += frame.len();
            self.send(now, frame);
        }
    }

    fn send(&mut self, now: u64, bytes: Bytes) {
        self.last_sent_ns = self.last_sent_ns.max(now);
        self.effects.push(Effect::Send(bytes));
    }

    fn suspect(&mut self, now: u64, suspicion: Suspicion) {
        assert!(matches!(self.phase, Phase::Starting | Phase::Protected));
        self.phase = Phase::Claiming;
        self.suspected = Some(suspicion.clone());
        self.sent_seq = self.encoder.next_seq();
        self.effects.push(Effect::Suspected(suspicion));
        self.effects.push(Effect::CloseChannel);
        let request = ClaimRequest {
            from_view: self.view.number,
            claimant: self.id,
        };
        self.claim = Some(Claim::new(request, self.config.claim_retry_ns, now));
        self.ask(now);
    }

    fn ask(&mut self, now: u64) {
        if let Some(request) = self.claim.as_mut().and_then(|claim| claim.poll(now)) {
            self.effects.push(Effect::Claim(request));
        }
    }

    fn halt(&mut self, reason: HaltReason) {
        self.phase = Phase::Halted;
        self.gate.discard();
        self.effects.halt(reason);
    }
}
