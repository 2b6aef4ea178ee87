//! The primary's side of the logging channel: hello, entries and heartbeats out, acks in.

use bytes::Bytes;

use super::Primary;
use crate::codec::{Ack, Decoder, Hello, Message, encode};
use crate::detector::{Detector, Suspicion};
use crate::replica::{Effect, HaltReason, Phase};

impl<T> Primary<T> {
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

    pub(super) fn is_listening(&self) -> bool {
        self.phase == Phase::Protected || self.phase == Phase::Starting && self.connected
    }

    pub(super) fn message(&mut self, now: u64, message: Message) {
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

    pub(super) fn welcomed(&mut self, now: u64, hello: &Hello) {
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

    pub(super) fn acknowledged(&mut self, now: u64, ack: Ack) {
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

    pub(super) fn keep_alive(&mut self, now: u64) {
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

    pub(super) fn flush(&mut self, now: u64) {
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

    pub(super) fn send(&mut self, now: u64, bytes: Bytes) {
        self.last_sent_ns = self.last_sent_ns.max(now);
        self.effects.push(Effect::Send(bytes));
    }
}
