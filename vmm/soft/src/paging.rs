//! The page walk: from a linear address and an access to a physical address or a fault code
//! (SDM vol. 3, chapter 4: 32-bit, PAE and 4-level paging).
//!
//! The walk sets accessed and dirty bits only if the access is allowed, all at once, and notes in
//! the frames' bookkeeping which tables it went through, so that a later store to one of them drops
//! what was derived from it (`tables.rs`).

use crate::cpu::Cpu;
use crate::phys::{PAGE, PAGE_MASK, PHYSICAL_BITS, flag};
use crate::tlb::{Kind, Mode};

/// Bits of a paging-structure entry.
pub mod pte {
    pub const P: u64 = 1 << 0;
    pub const W: u64 = 1 << 1;
    pub const U: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const NX: u64 = 1 << 63;
}

/// Bits of a page-fault error code (SDM vol. 3, 4.7).
pub mod fault {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
}

/// Not an error code: see `Cpu::translate`.
pub(crate) const MUST_STEP: u32 = u32::MAX;

/// Which walk is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// CR0.PG clear: linear addresses are physical.
    #[default]
    Off,
    /// Two levels of 4-byte entries, 4 MiB pages with CR4.PSE.
    Legacy,
    /// Three levels of 8-byte entries.
    Pae,
    /// Four levels.
    Long,
}

/// The control bits that the walk depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paging {
    pub scheme: Scheme,
    pub cr3: u64,
    pub write_protect: bool,
    pub pse: bool,
    pub nx: bool,
    pub smep: bool,
    pub smap: bool,
}

impl Paging {
    /// All of it but CR3, packed, for the TLB's key.
    pub fn bits(&self) -> u32 {
        self.scheme as u32
            | u32::from(self.write_protect) << 2
            | u32::from(self.pse) << 3
            | u32::from(self.nx) << 4
            | u32::from(self.smep) << 5
            | u32::from(self.smap) << 6
    }
}

/// Address bits above the physical address width, up to 51: reserved in every 8-byte entry.
const HIGH_RESERVED: u64 = ((1 << 52) - 1) & !((1 << PHYSICAL_BITS) - 1);
/// Reserved bits of a present PDPTE of PAE paging.
pub(crate) const PDPTE_RESERVED: u64 = HIGH_RESERVED | 0xfff0_0000_0000_01e6;
/// Address field of an 8-byte entry.
const ADDRESS: u64 = ((1 << PHYSICAL_BITS) - 1) & PAGE_MASK;

/// One entry that a walk read.
#[derive(Clone, Copy, Default)]
struct Step {
    /// Physical address of the entry.
    gpa: u64,
    entry: u64,
    level: u32,
}

/// A walk that found a page.
struct Found {
    steps: [Step; 4],
    count: usize,
    /// Bytes that the page maps, less one.
    page_bits: u64,
    frame: u64,
    /// AND of the writable and user bits, and OR of NX, of the entries.
    writable: bool,
    user: bool,
    no_execute: bool,
}

impl Cpu {
    /// Physical address for the access, or the error code of its page fault; `MUST_STEP` if accessed
    /// bits are to be set in bytes that may be running code. `linear` is canonical.
    pub(crate) fn translate(&mut self, mode: Mode, kind: Kind, linear: u64) -> Result<u64, u32> {
        if self.mmu.paging.scheme == Scheme::Off {
            return Ok(linear);
        }
        let found = match self.mmu.paging.scheme {
            Scheme::Long => self.walk_wide(linear, 4),
            Scheme::Pae => self.walk_wide(linear, 3),
            _ => self.walk_legacy(linear),
        };
        let found = found.map_err(|e| e | self.access_bits(mode, kind))?;
        if !self.allowed(&found, mode, kind) {
            return Err(fault::P | self.access_bits(mode, kind));
        }
        if kind != Kind::Fetch && !self.stepping && self.meets_code(&found) {
            return Err(MUST_STEP);
        }
        self.commit(&found, kind, linear);
        Ok(found.frame | linear & found.page_bits)
    }

    /// The W, U and I bits of an error code.
    fn access_bits(&self, mode: Mode, kind: Kind) -> u32 {
        let mut bits = 0;
        if kind == Kind::Write {
            bits |= fault::W;
        }
        if mode == Mode::User {
            bits |= fault::U;
        }
        if kind == Kind::Fetch && (self.mmu.paging.nx || self.mmu.paging.smep) {
            bits |= fault::I;
        }
        bits
    }

    /// Access rights (SDM vol. 3, 4.6.1).
    fn allowed(&self, found: &Found, mode: Mode, kind: Kind) -> bool {
        let p = &self.mmu.paging;
        let user = mode == Mode::User;
        if user && !found.user {
            return false;
        }
        match kind {
            Kind::Fetch => !(found.no_execute || found.user && !user && p.smep),
            Kind::Read => !(found.user && mode == Mode::SupervisorSmap),
            Kind::Write => {
                !(found.user && mode == Mode::SupervisorSmap)
                    && (found.writable || !user && !p.write_protect)
            }
        }
    }

    /// 4-level and PAE paging. `Err` is the P and RSVD part of the error code.
    fn walk_wide(&self, linear: u64, levels: u32) -> Result<Found, u32> {
        let p = self.mmu.paging;
        let mut reserved = HIGH_RESERVED;
        if !p.nx {
            reserved |= pte::NX;
        }
        if levels == 3 {
            reserved |= 0x7ff << 52;
        }
        let mut table = if levels == 3 {
            p.cr3 & 0xffff_ffe0
        } else {
            p.cr3 & ADDRESS
        };
        let mut found = Found {
            steps: [Step::default(); 4],
            count: 0,
            page_bits: 0,
            frame: 0,
            writable: true,
            user: true,
            no_execute: false,
        };
        let mut level = levels;
        loop {
            let shift = 12 + 9 * (level - 1);
            let index = linear >> shift & if level == 3 && levels == 3 { 3 } else { 511 };
            let gpa = table + index * 8;
            let entry = self.phys.read::<u64>(gpa).unwrap_or(0);
            if entry & pte::P == 0 {
                return Err(0);
            }
            let pdpte = levels == 3 && level == 3;
            let leaf = level == 1 || !pdpte && level < 4 && entry & pte::PS != 0;
            let page_bits = (1u64 << shift) - 1;
            let bad = if pdpte {
                PDPTE_RESERVED
            } else if level == 4 {
                reserved | pte::PS
            } else if leaf && level > 1 {
                // Bit 12 of a large page's entry is PAT.
                reserved | page_bits & !0x1fff
            } else {
                reserved
            };
            if entry & bad != 0 {
                return Err(fault::P | fault::RSVD);
            }
            found.steps[found.count] = Step { gpa, entry, level };
            found.count += 1;
            if !pdpte {
                found.writable &= entry & pte::W != 0;
                found.user &= entry & pte::U != 0;
                found.no_execute |= entry & pte::NX != 0;
            }
            if leaf {
                found.page_bits = page_bits;
                found.frame = entry & ADDRESS & !page_bits;
                return Ok(found);
            }
            table = entry & ADDRESS;
            level -= 1;
        }
    }

    /// 32-bit paging.
    fn walk_legacy(&self, linear: u64) -> Result<Found, u32> {
        let p = self.mmu.paging;
        let mut found = Found {
            steps: [Step::default(); 4],
            count: 0,
            page_bits: PAGE - 1,
            frame: 0,
            writable: true,
            user: true,
            no_execute: false,
        };
        let mut table = p.cr3 & 0xffff_f000;
        for level in [2, 1] {
            let index = linear >> (12 + 10 * (level - 1)) & 1023;
            let gpa = table + index * 4;
            let entry = u64::from(self.phys.read::<u32>(gpa).unwrap_or(0));
            if entry & pte::P == 0 {
                return Err(0);
            }
            found.steps[found.count] = Step {
                gpa,
                entry,
                level: level as u32,
            };
            found.count += 1;
            found.writable &= entry & pte::W != 0;
            found.user &= entry & pte::U != 0;
            if level == 2 && p.pse && entry & pte::PS != 0 {
                // PSE-36: bits 13 to 20 hold bits 32 to 39 of the address, bit 21 is reserved.
                if entry & 1 << 21 != 0 {
                    return Err(fault::P | fault::RSVD);
                }
                found.page_bits = 0x3f_ffff;
                found.frame = entry & 0xffc0_0000 | (entry >> 13 & 0xff) << 32;
                return Ok(found);
            }
            table = entry & 0xffff_f000;
        }
        found.frame = table;
        Ok(found)
    }

    /// Whether decoded code lies in the entries of a walk.
    fn meets_code(&self, found: &Found) -> bool {
        found.steps[..found.count].iter().any(|step| {
            self.phys.frame(step.gpa).is_some_and(|frame| {
                self.phys.flags(frame) & flag::CODE != 0
                    && self.phys.has_code(frame, step.gpa % PAGE, 8)
            })
        })
    }

    /// Sets A and D and notes the tables.
    fn commit(&mut self, found: &Found, kind: Kind, linear: u64) {
        for (i, step) in found.steps[..found.count].iter().enumerate() {
            let leaf = i + 1 == found.count;
            let mut want = step.entry;
            // The PDPTEs of PAE paging have no accessed bit.
            if !(self.mmu.paging.scheme == Scheme::Pae && step.level == 3) {
                want |= pte::A;
            }
            if leaf && kind == Kind::Write {
                want |= pte::D;
            }
            if want != step.entry {
                self.update_entry(step.gpa, want);
            }
            self.note_table(step.gpa, step.level, linear);
        }
    }
}
