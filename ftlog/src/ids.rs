//! Names of virtual machines and replicas.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A virtual machine's identity: 128 bits, written as a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmId(pub [u8; 16]);

#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a VM id: expected 32 hexadecimal digits, with or without hyphens")]
pub struct BadVmId(String);

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for VmId {
    type Err = BadVmId;

    fn from_str(text: &str) -> Result<Self, BadVmId> {
        let bad = || BadVmId(text.chars().take(64).collect());
        let mut digits = text.chars().filter(|c| *c != '-').map(|c| c.to_digit(16));
        let mut id = [0u8; 16];
        for byte in &mut id {
            let (Some(Some(high)), Some(Some(low))) = (digits.next(), digits.next()) else {
                return Err(bad());
            };
            *byte = (high * 16 + low) as u8;
        }
        if digits.next().is_some() {
            Err(bad())
        } else {
            Ok(VmId(id))
        }
    }
}

impl TryFrom<String> for VmId {
    type Error = BadVmId;

    fn try_from(text: String) -> Result<Self, BadVmId> {
        text.parse()
    }
}

impl From<VmId> for String {
    fn from(id: VmId) -> String {
        id.to_string()
    }
}

/// One run of one replica process. Whoever starts a replica gives it a number that no earlier
/// replica of this VM had: a process that was fenced or has crashed must not come back under the
/// name by which it may have won a view.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct ReplicaId(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for ReplicaId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(ReplicaId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm_id_round_trips_and_rejects_junk() {
        let id = VmId(*b"0123456789abcdef");
        assert_eq!(id.to_string().parse::<VmId>().unwrap(), id);
        assert_eq!(id.to_string().replace('-', "").parse::<VmId>().unwrap(), id);
        for junk in ["", "12", "zz", &"0".repeat(33), &"0".repeat(31), "\u{e9}"] {
            assert!(junk.parse::<VmId>().is_err(), "{junk:?}");
        }
    }
}
