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

/// A decoded block.
#[derive(Debug)]
pub struct Block {
    /// As `chain` lays them out.
    pub ops: Box<[Op]>,
    /// Number of instructions.
    pub len: u8,
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Length in bytes.
    pub bytes: u16,
}

impl Block {
    fn run(&self) -> Run {
        Run {
            ops: NonNull::from(&*self.ops).cast(),
            shape: u32::from(self.bytes) | u32::from(self.len) << 16,
        }
    }
}

/// Number of a block in the cache; good until blocks are dropped.
type BlockId = u32;

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

/// All decoded blocks.
#[derive(Debug, Default)]
pub struct BlockCache {
    blocks: Vec<Option<Block>>,
    free: Vec<BlockId>,
    /// With the run, so that finding a block takes one access.
    by_key: IntMap<(Run, BlockId)>,
    by_page: IntMap<Vec<BlockId>>,
}

fn key(gpa: u64, mode: CodeMode) -> u64 {
    gpa << 2 | mode as u64
}

impl BlockCache {
    /// The block at `gpa` for code of `mode`.
    pub fn find(&self, gpa: u64, mode: CodeMode) -> Option<Run> {
        self.by_key.get(&key(gpa, mode)).map(|(run, _)| *run)
    }

    /// Whether the cache is to be emptied before the next insert.
    pub fn is_full(&self) -> bool {
        self.by_key.len() >= MAX_BLOCKS
    }

    /// Adds a block.
    pub fn insert(&mut self, block: Block, mode: CodeMode) -> Run {
        let run = block.run();
        let (gpa, key) = (block.gpa, key(block.gpa, mode));
        let id = match self.free.pop() {
            Some(id) => {
                self.blocks[id as usize] = Some(block);
                id
            }
            None => {
                self.blocks.push(Some(block));
                (self.blocks.len() - 1) as BlockId
            }
        };
        self.by_key.insert(key, (run, id));
        self.by_page.entry(gpa >> 12).or_default().push(id);
        run
    }

    /// Drops the blocks that overlap `start..end` (within one page). True if none is left there.
    pub fn drop_range(&mut self, start: u64, end: u64) -> bool {
        let page = start >> 12;
        let Some(ids) = self.by_page.get_mut(&page) else {
            return true;
        };
        let (blocks, free) = (&mut self.blocks, &mut self.free);
        let mut dropped = Vec::new();
        ids.retain(|&id| {
            let slot = &mut blocks[id as usize];
            let hit = slot
                .as_ref()
                .is_none_or(|b| b.gpa < end && start < b.gpa + u64::from(b.bytes));
            if hit && let Some(b) = slot.take() {
                free.push(id);
                dropped.push(b.gpa);
            }
            !hit
        });
        let empty = ids.is_empty();
        if empty {
            self.by_page.remove(&page);
        }
        for gpa in dropped {
            for mode in [CodeMode::Bits16, CodeMode::Bits32, CodeMode::Bits64] {
                let key = key(gpa, mode);
                if let Some(&(_, id)) = self.by_key.get(&key)
                    && self.blocks[id as usize].is_none()
                {
                    self.by_key.remove(&key);
                }
            }
        }
        empty
    }

    /// Drops everything; says which pages had blocks.
    pub fn clear(&mut self) -> Vec<u64> {
        let mut pages: Vec<u64> = self.by_page.keys().copied().collect();
        pages.sort_unstable();
        self.blocks.clear();
        self.free.clear();
        self.by_key.clear();
        self.by_page.clear();
        pages
    }
}
