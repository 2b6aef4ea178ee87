//! The 8259A pair: eight lines each, the slave's output on the master's line 2, with the PIIX's
//! edge/level control registers (ELCR) at 4D0h and 4D1h.
//!
//! Source: Intel 8259A data sheet (231468). Two simplifications, as in other machine models: an
//! edge stays latched in IRR when the line falls before it is acknowledged, and the slave's output
//! is a level for the master (the chip drops and raises it around each acknowledge).

mod chip;
#[cfg(test)]
mod tests;

use chip::Chip;
use serde::{Deserialize, Serialize};

use crate::irq;

/// Lines that ELCR can make level-triggered; 0, 1, 2, 8 and 13 are edges by wiring (PIIX3, 2.5.7).
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];
/// The master's line that the slave drives.
const CASCADE: u8 = 2;

/// The interrupt controllers of the board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

impl Pic {
    /// Both chips before their initialisation: all lines masked, PCI's lines level-triggered.
    pub fn new() -> Self {
        let [low, high] = irq::LEVEL_TRIGGERED.to_le_bytes();
        Self {
            master: Chip::new(low, 1 << CASCADE),
            slave: Chip::new(high, 0),
        }
    }

    /// Sets the level of line 0 to 15.
    pub fn set_line(&mut self, line: u8, level: bool) {
        debug_assert!(line < 16);
        if line < 8 {
            self.master.set_line(line, level);
        } else {
            self.slave.set_line(line & 7, level);
            self.sync_cascade();
        }
    }

    /// Sets all lines, one bit each; bit 2, the cascade's, is ignored.
    pub fn set_lines(&mut self, lines: u16) {
        let [low, high] = lines.to_le_bytes();
        let low = low & !(1 << CASCADE);
        let changed = u16::from_le_bytes([
            (low ^ self.master.lines()) & !(1 << CASCADE),
            high ^ self.slave.lines(),
        ]);
        for line in (0..16).filter(|line| changed >> line & 1 != 0) {
            self.set_line(line, lines >> line & 1 != 0);
        }
    }

    /// A falling and a rising edge on a line, which ends high.
    pub fn pulse(&mut self, line: u8) {
        self.set_line(line, false);
        self.set_line(line, true);
    }

    /// Whether a rising edge on this line would change anything for the CPU now: it is not masked,
    /// on either chip, and does not ask already.
    pub fn would_notice(&self, line: u8) -> bool {
        if line < 8 {
            self.master.would_notice(line)
        } else {
            self.slave.would_notice(line & 7) && self.master.is_unmasked(CASCADE)
        }
    }

    /// The INTR output.
    pub fn interrupt_pending(&self) -> bool {
        self.master.request().is_some()
    }

    /// The INTA cycles: the vector of the highest request. With none left (its line fell), the
    /// vector of line 7 of the chip that was asked, and no in-service bit.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.request() {
            Some(CASCADE) => {
                let vector = self.slave.acknowledge();
                self.master.in_service(CASCADE);
                vector
            }
            _ => self.master.acknowledge(),
        };
        self.sync_cascade();
        vector
    }

    /// Reads one of 20h, 21h, A0h, A1h, 4D0h, 4D1h.
    pub fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            // A poll of the master that answers 2 leaves the slave for the driver to poll.
            0x20 | 0x21 => self.master.read(port & 1 != 0),
            0xa0 | 0xa1 => self.slave.read(port & 1 != 0),
            0x4d0 => self.master.elcr(),
            0x4d1 => self.slave.elcr(),
            _ => 0xff,
        };
        self.sync_cascade();
        value
    }

    /// Writes one of 20h, 21h, A0h, A1h, 4D0h, 4D1h.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            0x20 | 0x21 => self.master.write(port & 1 != 0, value),
            0xa0 | 0xa1 => self.slave.write(port & 1 != 0, value),
            0x4d0 => self.master.set_elcr(value & ELCR_WRITABLE[0]),
            0x4d1 => self.slave.set_elcr(value & ELCR_WRITABLE[1]),
            _ => {}
        }
        self.sync_cascade();
    }

    /// Whether a restored state is one that this code can have saved.
    pub fn is_valid(&self) -> bool {
        self.master.is_valid() && self.slave.is_valid()
    }

    fn sync_cascade(&mut self) {
        let level = self.slave.request().is_some();
        self.master.set_cascade(CASCADE, level);
    }
}
