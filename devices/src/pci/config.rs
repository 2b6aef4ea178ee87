//! A type 0 configuration space: 256 bytes and which of their bits can be written.

use serde::{Deserialize, Serialize};

pub const COMMAND: u8 = 0x04;
pub const STATUS: u8 = 0x06;
pub const BAR0: u8 = 0x10;
pub const CAPABILITIES: u8 = 0x34;
/// The line; the pin is in the next byte.
pub const INTERRUPT_LINE: u8 = 0x3c;

pub const COMMAND_MEMORY: u16 = 1 << 1;
pub const COMMAND_MASTER: u16 = 1 << 2;
pub const COMMAND_NO_INTX: u16 = 1 << 10;
pub const STATUS_INTERRUPT: u16 = 1 << 3;
pub const STATUS_CAPABILITIES: u16 = 1 << 4;

const SIZE: usize = 256;

/// What identifies a function.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    pub revision: u8,
    /// Class, subclass, programming interface.
    pub class: [u8; 3],
    pub subsystem: (u16, u16),
}

/// The configuration space of one function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpace {
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    /// 1 bits can be written by the guest.
    #[serde(with = "serde_bytes")]
    writable: Vec<u8>,
}

impl ConfigSpace {
    pub fn new(id: &Identity) -> Self {
        let mut space = Self {
            bytes: vec![0; SIZE],
            writable: vec![0; SIZE],
        };
        space.set(0x00, &id.vendor.to_le_bytes());
        space.set(0x02, &id.device.to_le_bytes());
        let [class, subclass, interface] = id.class;
        space.set(0x08, &[id.revision, interface, subclass, class]);
        space.set(0x2c, &id.subsystem.0.to_le_bytes());
        space.set(0x2e, &id.subsystem.1.to_le_bytes());
        // Cache line size, latency timer and the interrupt line are notes of the software's.
        space.allow(0x0c, &[0xff, 0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    pub fn is_valid(&self) -> bool {
        self.bytes.len() == SIZE && self.writable.len() == SIZE
    }

    /// Sets bytes, whether the guest could or not. `at + data.len()` is at most 256.
    pub fn set(&mut self, at: u8, data: &[u8]) {
        let at = usize::from(at);
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    /// Makes bits writable. `at + bits.len()` is at most 256.
    pub fn allow(&mut self, at: u8, bits: &[u8]) {
        for (mask, bits) in self.writable[usize::from(at)..].iter_mut().zip(bits) {
            *mask |= bits;
        }
    }

    pub fn byte(&self, at: u8) -> u8 {
        self.bytes[usize::from(at)]
    }

    pub fn u16(&self, at: u8) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at.wrapping_add(1))])
    }

    pub fn u32(&self, at: u8) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at.wrapping_add(2))) << 16
    }

    /// A guest's read of 1, 2 or 4 bytes inside an aligned doubleword.
    pub fn read(&self, at: u8, size: u8) -> u32 {
        (0..size).fold(0, |value, index| {
            value | u32::from(self.byte(at.wrapping_add(index))) << (8 * index)
        })
    }

    /// A guest's write of 1, 2 or 4 bytes inside an aligned doubleword.
    pub fn write(&mut self, at: u8, size: u8, value: u32) {
        for index in 0..size {
            let at = usize::from(at.wrapping_add(index));
            let (mask, new) = (self.writable[at], (value >> (8 * index)) as u8);
            self.bytes[at] = self.bytes[at] & !mask | new & mask;
        }
    }
}
