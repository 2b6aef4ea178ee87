//! Views: who is live, who follows, and which view may come after which.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::ReplicaId;

/// Who is live, and who follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// From 1; grows by one from view to view and never goes back.
    pub number: u64,
    pub primary: ReplicaId,
    pub backup: Option<ReplicaId>,
}

impl View {
    /// Whether `next` may follow this view: its number is the next one, its primary was primary or
    /// backup here, and its backup is somebody else. A view without a replica is no view, which is
    /// why `primary` is not optional.
    pub fn can_become(&self, next: &View) -> bool {
        let known = next.primary == self.primary || Some(next.primary) == self.backup;
        self.number.checked_add(1) == Some(next.number)
            && known
            && next.backup != Some(next.primary)
    }

    /// The view that `claimant` asks for when its peer is gone: alone. `None` if it has no part in
    /// this view.
    pub fn alone(&self, claimant: ReplicaId) -> Option<View> {
        let next = View {
            number: self.number.checked_add(1)?,
            primary: claimant,
            backup: None,
        };
        self.can_become(&next).then_some(next)
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.backup {
            Some(backup) => {
                write!(
                    f,
                    "view {} (primary {}, backup {backup})",
                    self.number, self.primary
                )
            }
            None => write!(
                f,
                "view {} (primary {}, no backup)",
                self.number, self.primary
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(number: u64, primary: u64, backup: u64) -> View {
        let backup = (backup != 0).then_some(ReplicaId(backup));
        View {
            number,
            primary: ReplicaId(primary),
            backup,
        }
    }

    /// The examples of the primary/backup course notes: (number, primary, backup), 0 for none.
    #[test]
    fn transitions() {
        let chain = [
            view(1, 1, 0),
            view(2, 1, 2),
            view(3, 1, 3),
            view(4, 3, 4),
            view(5, 4, 0),
        ];
        for pair in chain.windows(2) {
            assert!(pair[0].can_become(&pair[1]), "{} to {}", pair[0], pair[1]);
        }
        let invalid = [
            (view(1, 1, 2), view(2, 3, 4)),
            (view(1, 1, 0), view(2, 2, 1)),
            (view(2, 1, 0), view(1, 1, 2)),
            (view(1, 1, 2), view(3, 1, 2)),
            (view(1, 1, 2), view(2, 1, 1)),
        ];
        for (from, to) in invalid {
            assert!(!from.can_become(&to), "{from} to {to}");
        }
        assert_eq!(view(1, 1, 2).alone(ReplicaId(2)), Some(view(2, 2, 0)));
        assert_eq!(view(1, 1, 2).alone(ReplicaId(3)), None);
        assert_eq!(view(u64::MAX, 1, 2).alone(ReplicaId(1)), None);
    }
}
