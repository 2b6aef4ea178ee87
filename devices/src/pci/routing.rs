//! The PCI interrupt routing table that a PC's firmware keeps at F0000h.

use super::{ISA_BRIDGE, PIRQ_ROUTE, pirq_of};
use crate::irq;

/// The `$PIR` table (PCI IRQ Routing Table Specification 1.0) for devices in these slots, to be
/// placed on a 16-byte boundary between F0000h and FFFFFh. Without it a kernel uses the interrupt
/// line registers as they are, and complains.
pub fn routing_table(slots: &[u8]) -> Vec<u8> {
    const HEADER: usize = 32;
    const ENTRY: usize = 16;
    const CHECKSUM: usize = 31;
    let mut table = Vec::with_capacity(HEADER + ENTRY * slots.len());
    table.extend_from_slice(b"$PIR");
    table.extend_from_slice(&0x0100u16.to_le_bytes());
    table.extend_from_slice(&((HEADER + ENTRY * slots.len()) as u16).to_le_bytes());
    // The router: bus 0, the ISA bridge, no lines that are PCI's alone, compatible with PIIX3.
    table.extend_from_slice(&[0, ISA_BRIDGE << 3, 0, 0]);
    table.extend_from_slice(&0x7000_8086u32.to_le_bytes());
    table.resize(HEADER, 0);
    let lines = irq::PIRQ
        .iter()
        .fold(0u16, |mask, line| mask | 1 << line)
        .to_le_bytes();
    for &slot in slots {
        table.extend_from_slice(&[0, slot << 3]);
        for pin in 0..4 {
            table.push(PIRQ_ROUTE + ((pirq_of(slot) + pin) & 3));
            table.extend_from_slice(&lines);
        }
        // Soldered to the board, so no slot number.
        table.extend_from_slice(&[0, 0]);
    }
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[CHECKSUM] = sum.wrapping_neg();
    table
}
