//! Saving and restoring a board. A restored state comes from a file, so what the code relies on is
//! checked before it is a [`Board`].

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Board;
use crate::virtio::VirtioPci;

impl Board {
    /// Whether a restored state is one that this code can have saved, as far as the code relies on
    /// it.
    fn is_valid(&self) -> bool {
        self.pic.is_valid()
            && self.pit.is_valid()
            && self.rtc.is_valid()
            && self.pci.is_valid()
            && self.virtio.iter().all(VirtioPci::is_valid)
    }
}

impl Serialize for Board {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for Board {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let board = Self::deserialize(deserializer)?;
        if board.is_valid() {
            Ok(board)
        } else {
            Err(serde::de::Error::custom(
                "device state with values out of range",
            ))
        }
    }
}
