//! A direct-mapped cache from linear code addresses to decoded blocks, in front of the fetch TLB and
//! the block cache.
//!
//! An entry holds as long as the TLB's generation, which grows whenever a translation or a decoded
//! block is dropped; and only for the address space, rights and code width it was made for.
#![allow(unsafe_code)]

use crate::block::Block;
use crate::cpu::Cpu;

const SLOTS: usize = 1 << 13;

#[derive(Clone, Copy)]
struct Entry {
    linear: u64,
    space: u64,
    generation: u64,
    block: *const Block,
}

/// The cache.
pub struct JumpCache {
    entries: Box<[Entry; SLOTS]>,
}

// SAFETY: the pointers are to blocks of the engine that owns the cache, and move with it.
unsafe impl Send for JumpCache {}

/// Where and in what context a block is looked for.
#[derive(Clone, Copy)]
pub struct Place {
    pub linear: u64,
    space: u64,
    generation: u64,
}

impl Place {
    /// The code at `linear` as the CPU would run it now.
    #[inline(always)]
    pub fn new(cpu: &Cpu, linear: u64) -> Self {
        Self {
            linear,
            // Tables are aligned to their 16-byte entries, so the low bits are free.
            space: cpu.mmu.current.fetch as u64 | cpu.code_mode as u64,
            generation: cpu.mmu.tlb.generation,
        }
    }
}

impl JumpCache {
    pub fn new() -> Self {
        // Generation 0 never occurs, so these match nothing.
        let nothing = Entry {
            linear: 0,
            space: 0,
            generation: 0,
            block: std::ptr::null(),
        };
        let entries: Box<[Entry]> = vec![nothing; SLOTS].into_boxed_slice();
        match entries.try_into() {
            Ok(entries) => Self { entries },
            Err(_) => unreachable!("made with SLOTS entries"),
        }
    }

    #[inline(always)]
    fn slot(linear: u64) -> usize {
        (linear ^ linear >> 13) as usize & (SLOTS - 1)
    }

    /// The block at `place`, if known. It lives until blocks are dropped.
    #[inline(always)]
    pub fn find(&self, place: Place) -> Option<*const Block> {
        let e = &self.entries[Self::slot(place.linear)];
        let hit =
            e.linear == place.linear && e.space == place.space && e.generation == place.generation;
        hit.then_some(e.block)
    }

    /// Notes that the block at `place` is `block`.
    pub fn insert(&mut self, place: Place, block: &Block) {
        self.entries[Self::slot(place.linear)] = Entry {
            linear: place.linear,
            space: place.space,
            generation: place.generation,
            block,
        };
    }
}
