//! The cache of decoded blocks.
//!
//! A block is a run of instructions within one 4 KiB page of guest-physical memory, ended by an
//! instruction that says so (`Decoding::ends`), by the page, or by its length. Blocks are keyed by
//! guest-physical address and code width, so linear mappings may change under them; a store to their
//! bytes drops them (see `Phys::mark_code`).

use crate::hash::IntMap;

use crate::cpu::CodeMode;
use crate::op::Op;

/// Most instructions of a block.
pub const MAX_OPS: usize = 64;

/// Blocks kept before all are dropped.
const MAX_BLOCKS: usize = 1 << 17;

/// A decoded block.
#[derive(Debug)]
pub struct Block {
    pub ops: Box<[Op]>,
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// The last op does not end the block: the run loop goes on behind it.
    pub falls_through: bool,
}

/// Number of a block in the cache; good until blocks are dropped.
pub type BlockId = u32;

/// All decoded blocks.
#[derive(Debug, Default)]
pub struct BlockCache {
    /// Boxed, so that a block stays where it is until it is dropped.
    blocks: Vec<Option<Box<Block>>>,
    free: Vec<BlockId>,
    by_key: IntMap<BlockId>,
    by_page: IntMap<Vec<BlockId>>,
}

fn key(gpa: u64, mode: CodeMode) -> u64 {
    gpa << 2 | mode as u64
}

impl BlockCache {
    /// The block at `gpa` for code of `mode`.
    pub fn find(&self, gpa: u64, mode: CodeMode) -> Option<BlockId> {
        self.by_key.get(&key(gpa, mode)).copied()
    }

    /// A block that `find` or `insert` gave.
    #[inline(always)]
    pub fn get(&self, id: BlockId) -> Option<&Block> {
        self.blocks.get(id as usize).and_then(Option::as_deref)
    }

    /// Whether the cache is to be emptied before the next insert.
    pub fn is_full(&self) -> bool {
        self.by_key.len() >= MAX_BLOCKS
    }

    /// Adds a block.
    pub fn insert(&mut self, block: Block, mode: CodeMode) -> BlockId {
        let (gpa, key) = (block.gpa, key(block.gpa, mode));
        let id = match self.free.pop() {
            Some(id) => {
                self.blocks[id as usize] = Some(Box::new(block));
                id
            }
            None => {
                self.blocks.push(Some(Box::new(block)));
                (self.blocks.len() - 1) as BlockId
            }
        };
        self.by_key.insert(key, id);
        self.by_page.entry(gpa >> 12).or_default().push(id);
        id
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
                .is_none_or(|b| b.gpa < end && start < b.gpa + b.bytes);
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
                if let Some(&id) = self.by_key.get(&key)
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
