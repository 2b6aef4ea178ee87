//! The claimant's side of the test-and-set: ask until there is an answer.
//!
//! No answer means nothing. Only a "won" that fits the question is a win, and only a "lost" or a
//! refusal is a loss; silence, a broken connection and a timeout are all "unknown", and the same
//! question is asked again. The register gives the same claimant the same answer.

use crate::ids::ReplicaId;
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

/// How a claim ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOutcome {
    Won(View),
    Lost(View),
    /// The register will not have it, or answered nonsense.
    Refused(String),
}

#[derive(Debug)]
pub struct Claim {
    request: ClaimRequest,
    retry_ns: u64,
    ask_at_ns: u64,
    asked: u64,
}

impl Claim {
    /// A claim that asks at once and then every `retry_ns`.
    pub fn new(request: ClaimRequest, retry_ns: u64, now: u64) -> Self {
        Self {
            request,
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

    /// What an answer decides; `None` if it decides nothing.
    pub fn answered(&self, answer: ClaimAnswer) -> Option<ClaimOutcome> {
        let ClaimRequest {
            from_view,
            claimant,
        } = self.request;
        match answer {
            ClaimAnswer::Won(view)
                if view.primary == claimant && Some(view.number) == from_view.checked_add(1) =>
            {
                Some(ClaimOutcome::Won(view))
            }
            ClaimAnswer::Won(view) => Some(ClaimOutcome::Refused(format!(
                "the register answered a claim from view {from_view} by replica {claimant} with \
                 {view}"
            ))),
            ClaimAnswer::Lost(view) => Some(ClaimOutcome::Lost(view)),
            ClaimAnswer::Refused(reason) => Some(ClaimOutcome::Refused(reason)),
            ClaimAnswer::Unknown => None,
        }
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
        let mut claim = Claim::new(request, 100, 1000);
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
        assert_eq!(outcome(view(4, 1)), Some(ClaimOutcome::Won(view(4, 1))));
        assert!(matches!(
            outcome(view(5, 1)),
            Some(ClaimOutcome::Refused(_))
        ));
        assert!(matches!(
            outcome(view(4, 2)),
            Some(ClaimOutcome::Refused(_))
        ));
        let lost = claim.answered(ClaimAnswer::Lost(view(4, 2)));
        assert_eq!(lost, Some(ClaimOutcome::Lost(view(4, 2))));
    }
}
