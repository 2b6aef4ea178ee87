//! A direct-mapped cache from linear code addresses to decoded blocks, in front of the fetch TLB and
//! the block cache.
//!
//! An entry holds as long as the TLB's generation, which grows whenever a translation or a decoded
//! block is dropped; and only for the address space, rights and code width it was made for.

use crate::block::Run;
use crate::cpu::Cpu;

const SLOTS: usize = 1 << 15;

#[derive(Clone, Copy)]
struct Entry {
    linear: u64,
    stamp: u64,
    run: Run,
}

/// The cache.
pub struct JumpCache {
    entries: Box<[Entry; SLOTS]>,
}

/// Where and in what context a block is looked for.
#[derive(Clone, Copy)]
pub struct Place {
    pub linear: u64,
    stamp: u64,
}

impl Place {
    /// The code at `linear` as the CPU would run it now.
    #[inline(always)]
    pub fn new(cpu: &Cpu, linear: u64) -> Self {
        let mmu = &cpu.mmu;
        let space = mmu.current.fetch_id << 2 | cpu.code_mode as u64;
        Self {
            linear,
            stamp: mmu.tlb.generation << 8 | space,
        }
    }
}

impl JumpCache {
    pub fn new() -> Self {
        // The generation starts at 1, so these match nothing.
        let nothing = Entry {
            linear: 0,
            stamp: 0,
            run: Run::NOTHING,
        };
        let entries: Box<[Entry]> = vec![nothing; SLOTS].into_boxed_slice();
        match entries.try_into() {
            Ok(entries) => Self { entries },
            Err(_) => unreachable!("made with SLOTS entries"),
        }
    }

    #[inline(always)]
    fn slot(linear: u64) -> usize {
        (linear ^ linear >> 15) as usize & (SLOTS - 1)
    }

    /// The block at `place`, if known. It lives until blocks are dropped.
    #[inline(always)]
    pub fn find(&self, place: Place) -> Option<Run> {
        let e = &self.entries[Self::slot(place.linear)];
        (e.linear == place.linear && e.stamp == place.stamp).then_some(e.run)
    }

    /// Notes what the block at `place` is.
    pub fn insert(&mut self, place: Place, run: Run) {
        self.entries[Self::slot(place.linear)] = Entry {
            linear: place.linear,
            stamp: place.stamp,
            run,
        };
    }
}
