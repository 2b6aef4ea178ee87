//! Views and names as they travel on the wire.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One VMM of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for ReplicaId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<ReplicaId, ParseIntError> {
        text.parse().map(ReplicaId)
    }
}

/// Who is live, and who follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// From 1; never goes back.
    pub number: u64,
    pub primary: ReplicaId,
    pub backup: Option<ReplicaId>,
}

/// Checks the name of a disk or virtual machine: 1 to 64 letters, digits, `.`, `_` or `-`, not
/// beginning with a dot. The error is a sentence that names `what`.
pub fn check_name(what: &str, name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 {
        return Err(format!(
            "the {what} name {name:?} must have 1 to 64 characters"
        ));
    }
    if name.starts_with('.') || !name.chars().all(plain) {
        return Err(format!(
            "the {what} name {name:?} may have only letters, digits, '.', '_' and '-', \
             and not begin with a dot"
        ));
    }
    Ok(())
}
