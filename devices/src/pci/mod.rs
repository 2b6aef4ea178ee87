//! PCI bus 0 behind configuration mechanism 1 (ports CF8h and CFCh), its host bridge, and the ISA
//! bridge with the interrupt router.
//!
//! There is no firmware, so everything that one would set up is so at power-on: BARs assigned,
//! memory decoding on, interrupts routed and noted in the interrupt line registers. Sources: PCI
//! Local Bus 3.0, Intel 82371SB (PIIX3) data sheet (290550).

pub mod config;
mod routing;
#[cfg(test)]
mod tests;

use config::{ConfigSpace, INTERRUPT_LINE, Identity};
pub use routing::routing_table;
use serde::{Deserialize, Serialize};

use crate::irq;

/// Slot of the host bridge.
pub const HOST_BRIDGE: u8 = 0;
/// Slot of the ISA bridge.
pub const ISA_BRIDGE: u8 = 1;
/// First of the slots of virtio devices.
pub const FIRST_DEVICE: u8 = 2;

/// The MMIO window, where BARs are. RAM must not reach into it.
pub const WINDOW: std::ops::Range<u64> = 0xc000_0000..0xfec0_0000;
/// Distance of the preassigned BARs of neighbouring slots, in bytes.
const BAR_STRIDE: u64 = 0x1_0000;

const ADDRESS_ENABLE: u32 = 1 << 31;
/// PIRQ route control registers of the ISA bridge: line in bits 3:0, bit 7 set when unrouted.
const PIRQ_ROUTE: u8 = 0x60;
const PIRQ_UNROUTED: u8 = 0x80;

/// Where slot `slot`'s BAR is at power-on.
pub fn bar_address(slot: u8) -> u64 {
    WINDOW.start + u64::from(slot) * BAR_STRIDE
}

/// Which PIRQ (0 for A) slot `slot`'s INTA# is wired to, swizzled as on 440FX boards.
pub fn pirq_of(slot: u8) -> u8 {
    slot.wrapping_sub(1) & 3
}

/// A function's configuration register as mechanism 1 addresses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    pub slot: u8,
    /// Multiple of 4.
    pub offset: u8,
}

/// The bus's own state: the address latch and the two bridges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pci {
    address: u32,
    host: ConfigSpace,
    isa: ConfigSpace,
}

impl Pci {
    pub fn new() -> Self {
        const INTEL: u16 = 0x8086;
        let mut host = ConfigSpace::new(&Identity {
            vendor: INTEL,
            device: 0x1237,
            revision: 2,
            class: [0x06, 0x00, 0x00],
            subsystem: (0x1af4, 0x1100),
        });
        // PAM: shadow memory is RAM here whatever they say.
        host.allow(0x59, &[0xff; 7]);
        let mut isa = ConfigSpace::new(&Identity {
            vendor: INTEL,
            device: 0x7000,
            revision: 0,
            class: [0x06, 0x01, 0x00],
            subsystem: (0x1af4, 0x1100),
        });
        isa.set(PIRQ_ROUTE, &irq::PIRQ);
        isa.allow(PIRQ_ROUTE, &[0x8f; 4]);
        for bridge in [&mut host, &mut isa] {
            let command = config::COMMAND_MEMORY | config::COMMAND_MASTER | 1;
            bridge.set(config::COMMAND, &command.to_le_bytes());
        }
        Self {
            address: 0,
            host,
            isa,
        }
    }

    pub fn is_valid(&self) -> bool {
        self.host.is_valid() && self.isa.is_valid()
    }

    /// Port CF8h.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// Port CF8h, written as a doubleword.
    pub fn set_address(&mut self, value: u32) {
        self.address = value & 0x80ff_fffc;
    }

    /// What CFCh to CFFh stand for: a register on bus 0, function 0, or nothing.
    pub fn selected(&self) -> Option<Register> {
        let (bus, function) = (self.address >> 16 & 0xff, self.address >> 8 & 7);
        (self.address & ADDRESS_ENABLE != 0 && bus == 0 && function == 0).then_some(Register {
            slot: (self.address >> 11 & 0x1f) as u8,
            offset: self.address as u8 & 0xfc,
        })
    }

    /// The bridge in a slot.
    pub fn bridge(&mut self, slot: u8) -> Option<&mut ConfigSpace> {
        match slot {
            HOST_BRIDGE => Some(&mut self.host),
            ISA_BRIDGE => Some(&mut self.isa),
            _ => None,
        }
    }

    /// The 8259 line that a slot's INTA# reaches.
    pub fn line_of(&self, slot: u8) -> Option<u8> {
        let route = self.isa.byte(PIRQ_ROUTE + pirq_of(slot));
        (route & PIRQ_UNROUTED == 0).then_some(route & 0x0f)
    }

    /// What firmware writes into a device's interrupt registers.
    pub fn preset_interrupt(space: &mut ConfigSpace, slot: u8) {
        const INTA: u8 = 1;
        space.set(
            INTERRUPT_LINE,
            &[irq::PIRQ[usize::from(pirq_of(slot))], INTA],
        );
    }
}
