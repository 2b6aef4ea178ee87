//! Coherence of the software TLB with the page tables in memory.
//!
//! Each frame from which a walk read an entry is flagged TABLE, and a word says for which level and
//! from which linear address on it serves. Stores to such a frame take the slow path and come here
//! first: one that changes a present entry drops exactly the linear range of that entry. A frame
//! that serves in two roles is marked so, and a change drops everything.
//!
//! A frame that is stored to often without being walked again (freed by the guest and used as data)
//! loses its flag, after dropping all that it serves for.

use crate::cpu::Cpu;
use crate::paging::{Scheme, pte};
use crate::phys::{Frame, PAGE, PAGE_MASK, flag};

/// Fields of a frame's table word; bits 12 to 63 are the first linear address it serves for.
const LEVEL: u64 = 7;
/// In two roles, or not describable: every change drops everything.
const SHARED: u64 = 1 << 3;
/// Has 4-byte entries.
const LEGACY: u64 = 1 << 4;
/// Stores since it was flagged, from this bit on (6 bits).
const STORES: u64 = 1 << 5;
const STORES_FIELD: u64 = 63 * STORES;
/// After this many stores the flag is taken away; a walk puts it back.
const STORES_MAX: u64 = 63;

/// Linear bytes that one entry maps.
fn span(word: u64) -> u64 {
    let level = word & LEVEL;
    if word & LEGACY != 0 {
        PAGE << (10 * (level - 1))
    } else {
        PAGE << (9 * (level - 1))
    }
}

/// First and last linear address that entries `first` to `last` of a table serve for; `None` if that
/// is not one range.
fn entries_range(word: u64, first: u64, last: u64) -> Option<(u64, u64)> {
    let span = span(word);
    let base = word & PAGE_MASK;
    let mut start = base.wrapping_add(first * span);
    let mut end = base.wrapping_add(last * span + (span - 1));
    if word & LEGACY == 0 && word & LEVEL == 4 {
        // The upper half of a 4-level table is sign-extended.
        if first < 256 && last >= 256 {
            return None;
        }
        start = ((start << 16) as i64 >> 16) as u64;
        end = ((end << 16) as i64 >> 16) as u64;
    }
    Some((start, end))
}

impl Cpu {
    /// Notes that a walk for `linear` used the entry at `gpa` in a table of `level`.
    pub(crate) fn note_table(&mut self, gpa: u64, level: u32, linear: u64) {
        let Some(frame) = self.phys.frame(gpa) else {
            return;
        };
        let mut role = u64::from(level);
        let bits = match self.mmu.paging.scheme {
            Scheme::Legacy => {
                role |= LEGACY;
                12 + 10 * level
            }
            // Four entries anywhere in a page.
            Scheme::Pae if level == 3 => 64,
            _ => 12 + 9 * level,
        };
        if bits >= 64 {
            role |= SHARED;
        } else if bits < 48 {
            role |= linear & !((1u64 << bits) - 1);
        }
        let word = self.phys.table_word(frame);
        let old = *word & !STORES_FIELD;
        if old == role {
            return;
        }
        if old == 0 {
            *word = role;
            self.watch(frame, flag::TABLE);
        } else {
            *word |= SHARED | role & LEGACY;
        }
    }

    /// Sets a watched flag; the write TLB forgets the frame.
    pub(crate) fn watch(&mut self, frame: Frame, flag: u8) {
        if self.phys.flags(frame) & flag::WRITE_CACHED != 0 {
            self.mmu.tlb.drop_writes_to(frame.host);
            self.phys.clear_flags(frame, flag::WRITE_CACHED);
        }
        self.phys.set_flags(frame, flag);
    }

    /// Whether a store to a TABLE frame may drop the translation of the page that code is running
    /// from: then the instruction must run alone, so that the next one is fetched anew.
    pub(crate) fn table_store_meets_code(&mut self, frame: Frame, offset: u64, len: u64) -> bool {
        let word = *self.phys.table_word(frame);
        if word & (SHARED | LEVEL) != word & LEVEL || word & LEVEL == 0 {
            return true;
        }
        let size = if word & LEGACY != 0 { 4 } else { 8 };
        let (first, last) = if word & STORES_FIELD >= STORES_MAX * STORES {
            (0, PAGE / size - 1)
        } else {
            (offset / size, (offset + len - 1) / size)
        };
        match entries_range(word, first, last) {
            Some((start, end)) => {
                let code = self.running_page();
                code >= start & PAGE_MASK && code <= end
            }
            None => true,
        }
    }

    /// The vCPU is about to store `bytes` at `offset` of a TABLE frame.
    pub(crate) fn table_store(&mut self, frame: Frame, offset: u64, bytes: &[u8]) {
        let word = *self.phys.table_word(frame);
        if word & STORES_FIELD >= STORES_MAX * STORES {
            return self.forget_table(frame);
        }
        *self.phys.table_word(frame) = word + STORES;
        let size = if word & LEGACY != 0 { 4 } else { 8 };
        let end = offset + bytes.len() as u64;
        let mut at = offset - offset % size;
        while at < end {
            if self.changes_present(frame, at, size, offset, bytes) {
                if word & SHARED != 0 {
                    self.mmu.tlb.flush();
                } else {
                    self.drop_entries(word, at / size, at / size);
                }
            }
            at += size;
        }
    }

    /// Whether the store of `bytes` at `offset` changes the entry at `at`, if that is present.
    fn changes_present(&self, frame: Frame, at: u64, size: u64, offset: u64, bytes: &[u8]) -> bool {
        let gpa = self.phys.gpa_of(frame.index) + at;
        let old: [u8; 8] = if size == 4 {
            u64::from(self.phys.read::<u32>(gpa).unwrap_or(0)).to_le_bytes()
        } else {
            self.phys.read::<u64>(gpa).unwrap_or(0).to_le_bytes()
        };
        // A SHARED word may mix 4- and 8-byte roles: then LEGACY is set, and the upper half of an
        // 8-byte entry is compared as an entry of its own, present or not.
        let mixed = size == 4;
        if !mixed && u64::from(old[0]) & pte::P == 0 {
            return false;
        }
        if mixed && u64::from(old[0]) & pte::P == 0 && at.is_multiple_of(8) {
            return false;
        }
        (0..size).any(|i| {
            (at + i)
                .checked_sub(offset)
                .and_then(|j| bytes.get(j as usize))
                .is_some_and(|b| *b != old[i as usize])
        })
    }

    /// Drops what entries `first` to `last` of a table with this word serve for.
    fn drop_entries(&mut self, word: u64, first: u64, last: u64) {
        match entries_range(word, first, last) {
            Some((start, end)) => self.mmu.tlb.drop_range(start, end),
            None => self.mmu.tlb.flush(),
        }
    }

    /// Drops all that a TABLE frame serves for, and its flag.
    pub(crate) fn forget_table(&mut self, frame: Frame) {
        let word = std::mem::take(self.phys.table_word(frame));
        self.phys.clear_flags(frame, flag::TABLE);
        if word & SHARED != 0 {
            self.mmu.tlb.flush();
        } else if word & LEVEL != 0 {
            let last = if word & LEGACY != 0 { 1023 } else { 511 };
            self.drop_entries(word, 0, last);
        }
    }
}
