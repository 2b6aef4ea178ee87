//! The software TLB: direct-mapped tables from a linear page to host memory (or, for fetches, to
//! the guest-physical page), kept for several address spaces at once.
//!
//! It is coherent with the page tables in memory (see `tables.rs`), so what it holds is invisible
//! to the guest: a CR3 write needs no flush but only selects another context, INVLPG needs nothing,
//! and a saved state carries no TLB.

#![allow(unsafe_code)]

use crate::phys::{PAGE, PAGE_MASK};

/// Entries in each table.
pub const SLOTS: usize = 1024;
/// Address spaces kept at once.
const CONTEXTS: usize = 4;
/// Tables in a context: three modes times three kinds.
const TABLES: usize = 9;
/// A tag that no access has: those are multiples of the page size.
const EMPTY: u64 = 1;

/// A cached translation. For Read and Write, linear address plus `addend` is the host address; for
/// Fetch, it is the guest-physical address.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub tag: u64,
    pub addend: u64,
}

const NO_ENTRY: Entry = Entry {
    tag: EMPTY,
    addend: 0,
};

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read = 0,
    Write = 1,
    Fetch = 2,
}

/// With which rights an access is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Supervisor that may access user pages: SMAP off, or RFLAGS.AC set.
    Supervisor = 0,
    /// Supervisor under SMAP.
    SupervisorSmap = 1,
    User = 2,
}

/// What a context's translations depend on beside memory: CR3 and the paging control bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub cr3: u64,
    pub bits: u32,
}

type Tables = [[Entry; SLOTS]; TABLES];

struct Context {
    key: Key,
    /// Value of `Tlb::clock` when it was last selected.
    used: u64,
    tables: Box<Tables>,
    /// Table and slot of every entry put in since the last flush (table * SLOTS + slot); what is
    /// not listed is empty. May list one twice.
    filled: Vec<u16>,
}

/// When this many are listed it is cheaper to clear everything.
const FILLED_MAX: usize = TABLES * SLOTS;

impl Context {
    fn new(key: Key) -> Self {
        let tables: Box<[[Entry; SLOTS]]> = vec![[NO_ENTRY; SLOTS]; TABLES].into_boxed_slice();
        Self {
            key,
            used: 0,
            tables: tables
                .try_into()
                .unwrap_or_else(|_| unreachable!("TABLES tables")),
            filled: Vec::with_capacity(FILLED_MAX),
        }
    }

    fn entry(&mut self, listed: u16) -> &mut Entry {
        &mut self.tables[usize::from(listed) / SLOTS][usize::from(listed) % SLOTS]
    }

    fn flush(&mut self) {
        self.flush_where(|_, _| true);
    }

    /// Empties the entries for which `drop(table, entry)` holds.
    fn flush_where(&mut self, mut drop: impl FnMut(usize, &Entry) -> bool) {
        let mut filled = std::mem::take(&mut self.filled);
        filled.retain(|&listed| {
            let e = self.entry(listed);
            if e.tag == EMPTY {
                return false;
            }
            let gone = drop(usize::from(listed) / SLOTS, e);
            if gone {
                *e = NO_ENTRY;
            }
            !gone
        });
        self.filled = filled;
    }
}

/// The tables that serve the current mode; copied into the CPU's hot state.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Current {
    pub read: *const Entry,
    pub write: *const Entry,
    pub fetch: *const Entry,
}

// SAFETY: points into boxes owned by the `Tlb` beside it, which moves with it.
unsafe impl Send for Current {}

/// All contexts.
pub struct Tlb {
    contexts: Vec<Context>,
    nothing: Box<[Entry]>,
    current: usize,
    clock: u64,
}

/// Slot of a linear address.
#[inline(always)]
pub fn slot(linear: u64) -> usize {
    (linear / PAGE) as usize & (SLOTS - 1)
}

fn table(mode: Mode, kind: Kind) -> usize {
    // SMAP does not concern fetches: one table, so that STAC and CLAC keep what is known of code.
    let mode = match (mode, kind) {
        (Mode::SupervisorSmap, Kind::Fetch) => Mode::Supervisor,
        _ => mode,
    };
    mode as usize * 3 + kind as usize
}

impl Tlb {
    pub fn new() -> Self {
        Self {
            contexts: vec![Context::new(Key { cr3: 0, bits: 0 })],
            nothing: vec![NO_ENTRY; SLOTS].into_boxed_slice(),
            current: 0,
            clock: 0,
        }
    }

    /// Selects the context of `key`, emptying the one that was not used for longest if need be.
    pub fn select(&mut self, key: Key) {
        self.clock += 1;
        if self.contexts[self.current].key != key {
            self.current = match self.contexts.iter().position(|c| c.key == key) {
                Some(at) => at,
                None => self.replace(key),
            };
        }
        self.contexts[self.current].used = self.clock;
    }

    fn replace(&mut self, key: Key) -> usize {
        if self.contexts.len() < CONTEXTS {
            self.contexts.push(Context::new(key));
            return self.contexts.len() - 1;
        }
        let mut at = 0;
        for (i, c) in self.contexts.iter().enumerate() {
            if c.used < self.contexts[at].used {
                at = i;
            }
        }
        self.contexts[at].flush();
        self.contexts[at].key = key;
        at
    }

    /// The current context's tables for `mode`.
    pub fn tables(&self, mode: Mode) -> Current {
        let t = &self.contexts[self.current].tables;
        Current {
            read: t[table(mode, Kind::Read)].as_ptr(),
            write: t[table(mode, Kind::Write)].as_ptr(),
            fetch: t[table(mode, Kind::Fetch)].as_ptr(),
        }
    }

    /// The same, with tables in which there is never anything for loads and stores.
    pub fn no_tables(&self, mode: Mode) -> Current {
        Current {
            read: self.nothing.as_ptr(),
            write: self.nothing.as_ptr(),
            ..self.tables(mode)
        }
    }

    /// The entry for the page of `linear`, if there is one.
    pub fn lookup(&self, mode: Mode, kind: Kind, linear: u64) -> Option<u64> {
        let e = &self.contexts[self.current].tables[table(mode, kind)][slot(linear)];
        (e.tag == linear & PAGE_MASK).then_some(e.addend)
    }

    /// Puts in an entry.
    pub fn fill(&mut self, mode: Mode, kind: Kind, linear: u64, addend: u64) {
        let c = &mut self.contexts[self.current];
        if c.filled.len() >= FILLED_MAX {
            // Drops entries, too; that only costs time.
            c.flush();
        }
        let t = table(mode, kind);
        let e = &mut c.tables[t][slot(linear)];
        if e.tag == EMPTY {
            c.filled.push((t * SLOTS + slot(linear)) as u16);
        }
        *e = Entry {
            tag: linear & PAGE_MASK,
            addend,
        };
    }

    /// Empties everything.
    pub fn flush(&mut self) {
        for c in &mut self.contexts {
            c.flush();
        }
    }

    /// Drops one linear page everywhere.
    pub fn drop_page(&mut self, linear: u64) {
        let tag = linear & PAGE_MASK;
        for c in &mut self.contexts {
            for t in c.tables.iter_mut() {
                let e = &mut t[slot(linear)];
                if e.tag == tag {
                    // The slot stays listed; a second listing does no harm.
                    *e = NO_ENTRY;
                }
            }
        }
    }

    /// Drops the linear pages from `first` to `last` (addresses, inclusive) everywhere.
    pub fn drop_range(&mut self, first: u64, last: u64) {
        if first & PAGE_MASK == last & PAGE_MASK {
            return self.drop_page(first);
        }
        for c in &mut self.contexts {
            c.flush_where(|_, e| e.tag >= first & PAGE_MASK && e.tag <= last);
        }
    }

    /// Drops the write entries that lead to the host page.
    pub fn drop_writes_to(&mut self, host: *const u8) {
        let write = |t: usize| t % 3 == Kind::Write as usize;
        for c in &mut self.contexts {
            c.flush_where(|t, e| write(t) && e.tag.wrapping_add(e.addend) == host as u64);
        }
    }

    /// Drops all write entries.
    pub fn drop_writes(&mut self) {
        for c in &mut self.contexts {
            c.flush_where(|t, _| t % 3 == Kind::Write as usize);
        }
    }
}

impl Default for Tlb {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_keep_their_entries() {
        let mut tlb = Tlb::new();
        let key = |cr3| Key { cr3, bits: 1 };
        tlb.select(key(1));
        tlb.fill(Mode::User, Kind::Read, 0x5000, 7);
        tlb.select(key(2));
        assert_eq!(tlb.lookup(Mode::User, Kind::Read, 0x5000), None);
        tlb.fill(Mode::User, Kind::Write, 0x6123, 9);
        tlb.select(key(1));
        assert_eq!(tlb.lookup(Mode::User, Kind::Read, 0x5fff), Some(7));
        tlb.drop_page(0x5000);
        assert_eq!(tlb.lookup(Mode::User, Kind::Read, 0x5000), None);
        tlb.select(key(2));
        assert_eq!(tlb.lookup(Mode::User, Kind::Write, 0x6000), Some(9));
        tlb.drop_range(0x5000, 0x7fff);
        assert_eq!(tlb.lookup(Mode::User, Kind::Write, 0x6000), None);
        for cr3 in 10..20 {
            tlb.select(key(cr3));
            assert_eq!(tlb.lookup(Mode::User, Kind::Read, 0x5000), None);
            tlb.fill(Mode::User, Kind::Read, 0x5000, cr3);
        }
        assert!(tlb.contexts.len() == CONTEXTS);
    }

    #[test]
    fn writes_are_dropped_by_host_page() {
        let mut tlb = Tlb::new();
        let host = 0x7000_0000_0000u64;
        tlb.fill(Mode::User, Kind::Write, 0x5000, host - 0x5000);
        tlb.fill(Mode::User, Kind::Read, 0x5000, host - 0x5000);
        tlb.fill(Mode::User, Kind::Write, 0x9000, host + 0x1000 - 0x9000);
        tlb.drop_writes_to(host as *const u8);
        assert_eq!(tlb.lookup(Mode::User, Kind::Write, 0x5000), None);
        assert!(tlb.lookup(Mode::User, Kind::Read, 0x5000).is_some());
        assert!(tlb.lookup(Mode::User, Kind::Write, 0x9000).is_some());
    }
}
