//! The memory of a closed stretch: pages in blocks, packed.
//!
//! An engine whose positions are exits cannot stop its vCPU between two of them at a place that a
//! position names. Where the guest computes for too long without an exit, the primary closes the
//! stretch: it logs the content of every page that may have been written since the last position
//! ([`crate::Entry::Pages`], any number of them, which stand at that position) and then the state of
//! the vCPU ([`crate::Entry::Stretch`], whose count is one more). The backup stands at the last
//! position, keeps the pages aside, and takes over both when the closing entry is there. A log that
//! ends before it means that the stretch has not happened.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes in a page.
pub const PAGE_BYTES: usize = 4096;
/// The most pages in a block: about as much as fills a frame of the log.
pub const BLOCK_PAGES_MAX: usize = 64;
/// The longest packed content of a block: LZ4 makes what it cannot compress a little longer.
pub const PACKED_BYTES_MAX: usize = BLOCK_PAGES_MAX * PAGE_BYTES * 110 / 100 + 20;
/// The last frame that can be: its last byte has the address 2^64 - 1.
pub const FRAME_MAX: u64 = u64::MAX / PAGE_BYTES as u64;
/// The longest state of a vCPU that a closing entry can carry.
pub const CPU_BYTES_MAX: usize = 64 << 10;

/// Some pages of guest memory, compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageBlock {
    /// Frame numbers, ascending, and whether the page is all zero.
    pub(crate) frames: Vec<(u64, bool)>,
    /// The pages that are not zero, one after the other, as one LZ4 block; empty if there are none.
    pub(crate) packed: Bytes,
}

/// A block that came from outside does not unpack to its pages.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("a block of {pages} pages does not unpack: {why}")]
pub struct BadPages {
    pages: usize,
    why: String,
}

impl PageBlock {
    /// Packs the pages with these frame numbers, whose contents follow each other in `content`.
    ///
    /// # Panics
    /// Unless the frames ascend, are at most [`BLOCK_PAGES_MAX`], and `content` has
    /// [`PAGE_BYTES`] for each.
    pub fn pack(frames: &[u64], content: &[u8]) -> Self {
        assert!(frames.len() <= BLOCK_PAGES_MAX, "a block has room");
        assert_eq!(content.len(), frames.len() * PAGE_BYTES, "whole pages");
        assert!(
            frames.windows(2).all(|pair| pair[0] < pair[1]),
            "frames ascend"
        );
        let pages = || content.chunks_exact(PAGE_BYTES);
        let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
        let solid: Vec<u8> = pages()
            .filter(|page| !is_zero(page))
            .flatten()
            .copied()
            .collect();
        let packed = if solid.is_empty() {
            Bytes::new()
        } else {
            lz4_flex::block::compress(&solid).into()
        };
        Self {
            frames: frames.iter().copied().zip(pages().map(is_zero)).collect(),
            packed,
        }
    }

    /// The pages' frame numbers, ascending.
    pub fn frames(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.frames.iter().map(|(frame, _)| *frame)
    }

    /// How many pages it has.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that it takes in the log, about.
    pub fn packed_bytes(&self) -> usize {
        self.packed.len() + 2 * self.frames.len()
    }

    /// The contents of all its pages, one after the other, in the order of [`Self::frames`].
    ///
    /// # Errors
    /// A block that was not made by [`Self::pack`].
    pub fn unpack(&self) -> Result<Vec<u8>, BadPages> {
        let bad = |why: String| BadPages {
            pages: self.frames.len(),
            why,
        };
        let solid_pages = self.frames.iter().filter(|(_, zero)| !zero).count();
        let wanted = solid_pages * PAGE_BYTES;
        let solid = if wanted == 0 {
            Vec::new()
        } else {
            lz4_flex::block::decompress(&self.packed, wanted).map_err(|e| bad(e.to_string()))?
        };
        if solid.len() != wanted {
            return Err(bad(format!("{} bytes instead of {wanted}", solid.len())));
        }
        let mut content = Vec::with_capacity(self.frames.len() * PAGE_BYTES);
        let mut pages = solid.chunks_exact(PAGE_BYTES);
        for (_, zero) in &self.frames {
            match (zero, if *zero { None } else { pages.next() }) {
                (false, Some(page)) => content.extend_from_slice(page),
                _ => content.resize(content.len() + PAGE_BYTES, 0),
            }
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_survive_packing() {
        let mut content = vec![0; 5 * PAGE_BYTES];
        content[PAGE_BYTES] = 1;
        for (at, byte) in content[3 * PAGE_BYTES..4 * PAGE_BYTES]
            .iter_mut()
            .enumerate()
        {
            *byte = (at * at % 251) as u8;
        }
        let block = PageBlock::pack(&[3, 7, 8, 100, 1 << 40], &content);
        assert_eq!(block.frames().collect::<Vec<_>>(), [3, 7, 8, 100, 1 << 40]);
        assert_eq!(block.unpack().unwrap(), content);
        assert!(block.packed_bytes() < 2 * PAGE_BYTES, "zeros cost nothing");
    }

    #[test]
    fn noise_fits_and_nothing_is_nothing() {
        let mut noise = vec![0; BLOCK_PAGES_MAX * PAGE_BYTES];
        let mut word = 1u64;
        for byte in &mut noise {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (word >> 56) as u8;
        }
        let frames: Vec<u64> = (0..BLOCK_PAGES_MAX as u64).collect();
        let block = PageBlock::pack(&frames, &noise);
        assert!(block.packed.len() <= PACKED_BYTES_MAX);
        assert_eq!(block.unpack().unwrap(), noise);
        let none = PageBlock::pack(&[], &[]);
        assert!(none.is_empty() && none.unpack().unwrap().is_empty());
    }

    #[test]
    fn a_falsified_block_is_refused() {
        let block = PageBlock::pack(&[1, 2], &[7; 2 * PAGE_BYTES]);
        let cases = [
            PageBlock {
                packed: Bytes::new(),
                ..block.clone()
            },
            PageBlock {
                packed: block.packed.slice(..block.packed.len() - 1),
                ..block.clone()
            },
            PageBlock {
                frames: vec![(1, false)],
                ..block.clone()
            },
            PageBlock {
                frames: vec![(1, false), (2, false), (3, false)],
                ..block
            },
        ];
        for case in cases {
            assert!(case.unpack().is_err(), "{case:?}");
        }
    }
}
