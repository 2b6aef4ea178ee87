use std::collections::BTreeMap;

use super::*;

/// Memory as doublewords; what is not there is outside RAM.
#[derive(Default)]
struct Words(BTreeMap<u64, u32>);

impl Words {
    fn put64(&mut self, at: u64, v: u64) {
        self.0.insert(at, v as u32);
        self.0.insert(at + 4, (v >> 32) as u32);
    }
}

impl Memory for Words {
    fn read_u32(&self, gpa: u64) -> Option<u32> {
        self.0.get(&gpa).copied()
    }

    fn read_u64(&self, gpa: u64) -> Option<u64> {
        let high = u64::from(self.read_u32(gpa + 4)?);
        Some(high << 32 | u64::from(self.read_u32(gpa)?))
    }

    fn read_u8(&self, gpa: u64) -> Option<u8> {
        Some(self.read_u32(gpa & !3)?.to_le_bytes()[(gpa & 3) as usize])
    }
}

const LONG: Paging = Paging {
    cr0: cr0::PG | cr0::PE,
    cr3: 0x1000,
    cr4: cr4::PAE,
    efer: efer::LMA | efer::LME,
};

#[test]
fn without_paging_addresses_are_physical() {
    let paging = Paging { cr0: 1, ..LONG };
    let memory = Words::default();
    assert_eq!(paging.translate(&memory, 0x1234), Some(0x1234));
}

#[test]
fn four_levels_with_every_page_size() {
    let mut memory = Words::default();
    let nx = 1 << 63;
    // Index 256 of the PML4: the upper half.
    memory.put64(0x1000 + 8 * 256, 0x2000 | 1 | nx);
    memory.put64(0x2000, 0x3000 | 1);
    memory.put64(0x2000 + 8, 0x4000_0000 | 0x81);
    memory.put64(0x3000, 0x4000 | 1);
    memory.put64(0x3000 + 8, 0x60_0000 | 0x81);
    memory.put64(0x4000 + 8 * 3, 0x5_7000 | 1 | nx);
    let base = 0xffff_8000_0000_0000;
    let at = |offset: u64| LONG.translate(&memory, base + offset);
    assert_eq!(at(0x3456), Some(0x5_7456));
    assert_eq!(at(0x20_0123), Some(0x60_0123));
    assert_eq!(at(0x4012_3456), Some(0x4012_3456));
    assert_eq!(at(0x4000), None, "an entry outside RAM");
    assert_eq!(LONG.translate(&memory, 0x3456), None, "not present");
}

#[test]
fn pae_and_32_bit_paging() {
    let mut memory = Words::default();
    memory.put64(0x1020 + 8 * 3, 0x2000 | 1);
    memory.put64(0x2000 + 8 * 5, 0x40_0000 | 0x81);
    let pae = Paging {
        cr3: 0x1020,
        efer: 0,
        ..LONG
    };
    assert_eq!(pae.translate(&memory, 0xc0a0_0042), Some(0x40_0042));
    assert_eq!(pae.translate(&memory, 0), None);

    let mut memory = Words::default();
    memory.0.insert(0x1000 + 4, 0x3001);
    memory.0.insert(0x3000 + 4 * 2, 0x9001);
    // PSE-36: bits 13 to 20 are bits 32 to 39 of the address.
    memory.0.insert(0x1000 + 8, 0x0080_0000 | 0x2000 | 0x81);
    let legacy = Paging {
        cr4: cr4::PSE,
        efer: 0,
        ..LONG
    };
    assert_eq!(legacy.translate(&memory, 0x40_2345), Some(0x9345));
    assert_eq!(legacy.translate(&memory, 0x80_0010), Some(0x1_0080_0010));
}

#[test]
fn code_ends_where_the_next_page_is_not_mapped() {
    let mut memory = Words::default();
    memory.put64(0x1000, 0x2000 | 1);
    memory.put64(0x2000, 0x3000 | 1);
    memory.put64(0x3000, 0x4000 | 1);
    memory.put64(0x4000, 0x8000 | 1);
    memory.put64(0x4008, 0);
    memory.0.insert(0x8ffc, 0x0131_0f66);
    assert_eq!(code(&memory, &LONG, 0xffd), [0x0f, 0x31, 0x01]);
    // Mapped somewhere else.
    memory.put64(0x4008, 0xa000 | 1);
    for i in 0..4 {
        memory.0.insert(0xa000 + 4 * i, 0x9090_9090);
    }
    assert_eq!(code(&memory, &LONG, 0xffd).len(), 15);
}
