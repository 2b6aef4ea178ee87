//! The cache of decoded blocks.
//!
//! A block is a run of instructions within one 4 KiB page of guest-physical memory, ended by an
//! instruction that says so, by the page, or by its length. Blocks are keyed by
//! guest-physical address and code width, so linear mappings may change under them; a store to their
//! bytes drops them (see `Phys::mark_code`).

#![allow(unsafe_code)]

use std::ptr::NonNull;

use crate::cpu::CodeMode;
use crate::hash::IntMap;
use crate::op::Op;

/// Most instructions of a block.
pub const MAX_OPS: usize = 64;

/// Blocks kept before all are dropped.
const MAX_BLOCKS: usize = 1 << 17;

/// What it takes to run a block: a view of it that holds until blocks are dropped.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    ops: NonNull<Op>,
    /// Length in bytes (16 bits) and in instructions (8): in one word, so that it travels in a
    /// register.
    shape: u32,
}

// SAFETY: the pointer is to a block of the engine that owns the run, and moves with it.
unsafe impl Send for Run {}

impl Run {
    /// Of no block: it has no ops.
    pub const NOTHING: Self = Self {
        ops: NonNull::dangling(),
        shape: 0,
    };

    /// Its first op.
    #[inline(always)]
    pub fn ops(self) -> *const Op {
        self.ops.as_ptr()
    }

    /// Number of instructions.
    #[inline(always)]
    pub fn len(self) -> u64 {
        u64::from(self.shape >> 16)
    }

    /// Length in bytes.
    #[inline(always)]
    pub fn bytes(self) -> u64 {
        u64::from(self.shape & 0xffff)
    }
}

/// Slots of the table in front of the map; a power of two.
const FRONT: usize = 1 << 15;

/// A key that no block has.
const NO_KEY: u64 = u64::MAX;

/// All decoded blocks.
#[derive(Debug)]
pub struct BlockCache {
    /// Direct-mapped part of `by_key`: where nearly every block is found.
    front: Box<[(u64, Run); FRONT]>,
    by_key: IntMap<Run>,
    /// The blocks of a page: their keys and ops.
    by_page: IntMap<Vec<(u64, Box<[Op]>)>>,
}

#[inline(always)]
fn key(gpa: u64, mode: CodeMode) -> u64 {
    gpa << 2 | mode as u64
}

#[inline(always)]
fn front_slot(key: u64) -> usize {
    ((key >> 2) ^ (key >> 15)) as usize & (FRONT - 1)
}

impl BlockCache {
    pub fn new() -> Self {
        let front = vec![(NO_KEY, Run::NOTHING); FRONT].into_boxed_slice();
        let Ok(front) = front.try_into() else {
            unreachable!("made with FRONT slots");
        };
        Self {
            front,
            by_key: IntMap::default(),
            by_page: IntMap::default(),
        }
    }

    /// The block at `gpa` for code of `mode`, if it was looked for lately.
    #[inline(always)]
    pub fn find(&self, gpa: u64, mode: CodeMode) -> Option<Run> {
        let key = key(gpa, mode);
        let (found, run) = self.front[front_slot(key)];
        (found == key).then_some(run)
    }

    /// The block at `gpa` for code of `mode`.
    pub fn find_slow(&mut self, gpa: u64, mode: CodeMode) -> Option<Run> {
        let key = key(gpa, mode);
        let run = *self.by_key.get(&key)?;
        self.front[front_slot(key)] = (key, run);
        Some(run)
    }

    /// Whether the cache is to be emptied before the next insert.
    pub fn is_full(&self) -> bool {
        self.by_key.len() >= MAX_BLOCKS
    }

    /// Adds a block of `len` instructions in `bytes` bytes; `ops` as `chain` lays them out.
    pub fn insert(&mut self, gpa: u64, mode: CodeMode, ops: Vec<Op>, len: u8, bytes: u16) -> Run {
        let ops = ops.into_boxed_slice();
        let run = Run {
            ops: NonNull::from(&*ops).cast(),
            shape: u32::from(bytes) | u32::from(len) << 16,
        };
        let key = key(gpa, mode);
        self.by_key.insert(key, run);
        self.front[front_slot(key)] = (key, run);
        self.by_page.entry(gpa >> 12).or_default().push((key, ops));
        run
    }

    /// Drops the blocks of the page at `gpa`.
    pub fn drop_page(&mut self, gpa: u64) {
        for (key, _) in self.by_page.remove(&(gpa >> 12)).unwrap_or_default() {
            self.by_key.remove(&key);
            let slot = &mut self.front[front_slot(key)];
            if slot.0 == key {
                slot.0 = NO_KEY;
            }
        }
    }

    /// Drops everything; says which pages had blocks.
    pub fn clear(&mut self) -> Vec<u64> {
        let mut pages: Vec<u64> = self.by_page.keys().copied().collect();
        pages.sort_unstable();
        self.by_key.clear();
        self.front.fill((NO_KEY, Run::NOTHING));
        self.by_page.clear();
        pages
    }
}
