//! The primary suspects its backup and asks the view register to go on alone.

use super::Primary;
use crate::claim::{Claim, ClaimAnswer, ClaimRequest};
use crate::detector::Suspicion;
use crate::replica::{Effect, HaltReason, Phase};

impl<T> Primary<T> {
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

    pub(super) fn silence(&self, now: u64) -> Option<Suspicion> {
        let suspicion = self.detector.check(now)?;
        Some(if self.phase == Phase::Starting {
            Suspicion::NeverCame
        } else {
            suspicion
        })
    }

    pub(super) fn suspect(&mut self, now: u64, suspicion: Suspicion) {
        assert!(matches!(self.phase, Phase::Starting | Phase::Protected));
        self.phase = Phase::Claiming;
        self.sent_seq = self.encoder.next_seq();
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

    pub(super) fn ask(&mut self, now: u64) {
        if let Some(request) = self.claim.as_mut().and_then(|claim| claim.poll(now)) {
            self.effects.push(Effect::Claim(request));
        }
    }

    pub fn register_answered(&mut self, now: u64, answer: ClaimAnswer) {
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
}
