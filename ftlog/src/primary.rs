//! The primary's role: record, hold outputs, watch the backup, go on alone if the register agrees.
//!
//! Calls for the vCPU thread are [`Primary::stall`], [`Primary::append`], [`Primary::output`] and
//! [`Primary::progress_due`]; they only move bytes in memory. The log is flushed at once when an
//! output waits for it, otherwise when the batch is full or old enough.

mod channel;
mod claiming;

use std::collections::VecDeque;

use thiserror::Error;

use crate::claim::Claim;
use crate::codec::{
    Ack, Bye, Decoder, EncodeError, Header, KindBytes, LogEncoder, Message, encode,
};
use crate::config::Config;
use crate::detector::Detector;
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
            // With the output that switches the machine off everything ends.
            if primary.phase == Phase::Halted {
                break;
            }
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

    // For the driver's I/O; more in `channel` and `claiming`.

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

    /// See [`Replica::left`](crate::replica::Replica::left).
    pub fn left(&mut self, below: u64) {
        self.released = self.released.max(below);
        self.encoder.set_released(self.released);
    }

    /// See [`Replica::may_emit_until_ns`](crate::replica::Replica::may_emit_until_ns).
    pub fn may_emit_until_ns(&self) -> u64 {
        match self.phase {
            Phase::Protected => self.detector.deadline_ns(),
            // What a machine put out before it switched itself off still leaves.
            Phase::Alone | Phase::Halted => u64::MAX,
            _ => 0,
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

    fn halt(&mut self, reason: HaltReason) {
        self.phase = Phase::Halted;
        self.gate.discard();
        self.effects.halt(reason);
    }
}
