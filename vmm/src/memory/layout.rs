//! Where RAM lies, and what the firmware's map says about it.

use std::ops::Range;

/// End of the RAM below 4 GiB, at most (3 GiB): above are the PCI window and the firmware.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Start of the rest of RAM (4 GiB).
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Start of the BIOS data the guest must not use (the EBDA of a PC; tables of the boot protocols
/// are kept below it).
const EBDA_START: u64 = 0x9_fc00;
/// End of the legacy video and ROM area.
const ONE_MIB: u64 = 0x10_0000;

/// What a range of the map is; the numbers are those of the BIOS call E820 and of ACPI 6.5, 15.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    Ram = 1,
    Reserved = 2,
}

/// One range of the firmware's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// Guest-physical address of the first byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    pub kind: E820Kind,
}

/// Ranges of RAM for a size in bytes, ascending.
pub(super) fn ranges(size: u64) -> impl Iterator<Item = Range<u64>> {
    let low = size.min(LOW_RAM_END);
    [0..low, HIGH_RAM_START..HIGH_RAM_START + (size - low)]
        .into_iter()
        .filter(|range| !range.is_empty())
}

/// The map for a size in bytes, ascending, without overlap.
pub(super) fn e820(size: u64) -> Vec<E820Entry> {
    let entry = |range: Range<u64>, kind| E820Entry {
        start: range.start,
        len: range.end - range.start,
        kind,
    };
    let mut map = vec![
        entry(0..EBDA_START, E820Kind::Ram),
        entry(EBDA_START..ONE_MIB, E820Kind::Reserved),
        entry(ONE_MIB..size.min(LOW_RAM_END), E820Kind::Ram),
    ];
    map.extend(
        ranges(size)
            .filter(|range| range.start == HIGH_RAM_START)
            .map(|range| entry(range, E820Kind::Ram)),
    );
    map
}
