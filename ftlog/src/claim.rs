//! The claimant's side of the test-and-set: ask until there is an answer.
//!
//! No answer means nothing. Only a "won" that fits the question is a win, and only a "lost" or a
//! refusal is a loss; silence, a broken connection and a timeout are all "unknown", and the same
//! question is asked again. The register gives the same claimant the same answer.

use crate::detector::Suspicion;
use crate::ids::ReplicaId;
use crate::replica::HaltReason;
use crate::view::View;

/// The question for the view register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    pub from_view: u64,
    pub claimant: ReplicaId,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimAnswer {
    Won(View),
    Lost(View),
    Refused(String),
    /// No answer in time, or none at all. Never a yes and never a no.
    Unknown,
}

#[derive(Debug)]
pub struct Claim {
    request: ClaimRequest,
    /// Why it is made.
    suspected: Suspicion,
    retry_ns: u64,
    ask_at_ns: u64,
    asked: u64,
}

impl Claim {
    /// A claim that asks at once and then every `retry_ns`.
    pub fn new(request: ClaimRequest, suspected: Suspicion, retry_ns: u64, now: u64) -> Self {
        Self {
            request,
            suspected,
            retry_ns,
            ask_at_ns: now,
            asked: 0,
        }
    }

    /// The question, when it is time to ask it (again).
    pub fn poll(&mut self, now: u64) -> Option<ClaimRequest> {
        if now < self.ask_at_ns {
            return None;
        }
        self.ask_at_ns = now.saturating_add(self.retry_ns);
        self.asked += 1;
        Some(self.request)
    }

    /// When [`Claim::poll`] will next ask.
    pub fn deadline_ns(&self) -> u64 {
        self.ask_at_ns
    }

    /// How often it was asked.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// What an answer decides: the view that is won, or why the claimant has to halt (a win that
    /// does not fit the question included). `None` if it decides nothing.
    pub fn answered(&self, answer: ClaimAnswer) -> Option<Result<View, HaltReason>> {
        let ClaimRequest {
            from_view,
            claimant,
        } = self.request;
        let suspected = self.suspected.clone();
        let reason = match answer {
            ClaimAnswer::Unknown => return None,
            ClaimAnswer::Won(view)
                if view.primary == claimant && Some(view.number) == from_view.checked_add(1) =>
            {
                return Some(Ok(view));
            }
            ClaimAnswer::Won(view) => HaltReason::Refused {
                suspected,
                reason: format!(
                    "the register answered a claim from view {from_view} by replica {claimant} \
                     with {view}"
                ),
            },
            ClaimAnswer::Lost(now) => HaltReason::Lost { suspected, now },
            ClaimAnswer::Refused(reason) => HaltReason::Refused { suspected, reason },
        };
        Some(Err(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_again_until_answered_and_believes_only_what_fits() {
        let request = ClaimRequest {
            from_view: 3,
            claimant: ReplicaId(1),
        };
        let mut claim = Claim::new(request, Suspicion::Closed, 100, 1000);
        assert_eq!(claim.poll(1000), Some(request));
        assert_eq!(claim.poll(1099), None);
        assert_eq!(claim.answered(ClaimAnswer::Unknown), None);
        assert_eq!(claim.poll(1100), Some(request));
        assert_eq!(claim.asked(), 2);
        let view = |number, primary| View {
            number,
            primary: ReplicaId(primary),
            backup: None,
        };
        let outcome = |view| claim.answered(ClaimAnswer::Won(view));
        assert_eq!(outcome(view(4, 1)), Some(Ok(view(4, 1))));
        for unfit in [view(5, 1), view(4, 2)] {
            assert!(matches!(
                outcome(unfit),
                Some(Err(HaltReason::Refused { .. }))
            ));
        }
        let lost = claim.answered(ClaimAnswer::Lost(view(4, 2)));
        let reason = HaltReason::Lost {
            suspected: Suspicion::Closed,
            now: view(4, 2),
        };
        assert_eq!(lost, Some(Err(reason)));
    }
}
