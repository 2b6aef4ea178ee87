//! Guest-physical memory as the CPU sees it: RAM regions in host memory, and what the engine knows
//! about each 4 KiB frame of them.
//!
//! The knowledge is one byte of flags for each frame ([`flag`]), and for frames with code or page
//! tables one word more. A store may take the software TLB's fast path only to frames whose flags
//! are exactly `DIRTY` (and perhaps `WRITE_CACHED`): everything else wants to be told of the store.

#![allow(unsafe_code)]

use std::ops::Range;

use crate::width::Width;

/// Size of a frame, in bytes.
pub const PAGE: u64 = 4096;
/// The part of an address that names the page.
pub const PAGE_MASK: u64 = !(PAGE - 1);

/// What is known about a frame.
pub mod flag {
    /// Decoded blocks were made from it.
    pub const CODE: u8 = 1;
    /// Cached translations were derived from page tables in it.
    pub const TABLE: u8 = 2;
    /// Written by the vCPU since the last `take_dirty`.
    pub const DIRTY: u8 = 4;
    /// The write TLB may hold an entry that leads to it.
    pub const WRITE_CACHED: u8 = 8;
    /// Stores to a frame with any of these must be reported.
    pub const WATCHED: u8 = CODE | TABLE;
}

/// One RAM region of the guest: page-aligned, mapped in the host at `host`.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub gpa: u64,
    pub host: *mut u8,
    /// In bytes.
    pub len: u64,
}

/// A region, and the index of its first frame in the per-frame tables.
#[derive(Clone, Copy)]
struct Indexed {
    start: u64,
    len: u64,
    host: *mut u8,
    first: u32,
}

/// A frame of RAM: where it lies in the host, and its index in the per-frame tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub host: *mut u8,
    pub index: u32,
}

/// Why a memory layout was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("RAM at {start:#x}, {len:#x} bytes, does not start and end at a multiple of 4096")]
    Unaligned { start: u64, len: u64 },
    #[error(
        "RAM at {start:#x}, {len:#x} bytes, ends above the 40-bit physical addresses of this CPU"
    )]
    TooHigh { start: u64, len: u64 },
    #[error("RAM at {start:#x} overlaps the region before it")]
    Overlap { start: u64 },
}

/// The guest's RAM.
pub struct Phys {
    regions: Vec<Indexed>,
    flags: Vec<u8>,
    /// For a CODE frame: one bit for each 64 bytes from which code was decoded.
    code: Vec<u64>,
    /// For a TABLE frame: what it maps; owned by the TLB's bookkeeping (`tables.rs`).
    tables: Vec<u64>,
    /// Frames that became DIRTY, in the order in which they did.
    dirty: Vec<u32>,
    /// Guest-physical ranges with decoded code that were written since the run loop last dropped
    /// blocks (`attention::CODE`).
    pub written_code: Vec<Range<u64>>,
}

pub use engine::cpuid::PHYSICAL_BITS;

impl Phys {
    /// RAM made of `regions`, in any order.
    ///
    /// # Safety
    /// Each host range must be mapped readable and writable for as long as the result lives, and
    /// nothing else may access it while a method of the CPU that holds it runs.
    pub unsafe fn new(mut regions: Vec<Region>) -> Result<Self, LayoutError> {
        regions.sort_by_key(|r| r.gpa);
        let mut out: Vec<Indexed> = Vec::new();
        let mut frames = 0u64;
        let mut end = 0u64;
        for Region {
            gpa: start,
            host,
            len,
        } in regions
        {
            if start % PAGE != 0 || len % PAGE != 0 || !(host as u64).is_multiple_of(PAGE) {
                return Err(LayoutError::Unaligned { start, len });
            }
            if start
                .checked_add(len)
                .is_none_or(|e| e > 1 << PHYSICAL_BITS)
            {
                return Err(LayoutError::TooHigh { start, len });
            }
            if start < end {
                return Err(LayoutError::Overlap { start });
            }
            end = start + len;
            out.push(Indexed {
                start,
                len,
                host,
                first: frames as u32,
            });
            frames += len / PAGE;
        }
        let n = frames as usize;
        Ok(Self {
            regions: out,
            flags: vec![0; n],
            code: vec![0; n],
            tables: vec![0; n],
            dirty: Vec::new(),
            written_code: Vec::new(),
        })
    }

    /// The frame at `gpa`, if that is RAM.
    #[inline]
    pub fn frame(&self, gpa: u64) -> Option<Frame> {
        for r in &self.regions {
            let offset = gpa.wrapping_sub(r.start);
            if offset < r.len {
                return Some(Frame {
                    // SAFETY: the offset lies inside the region, which `new`'s caller mapped.
                    host: unsafe { r.host.add((offset & PAGE_MASK) as usize) },
                    index: r.first + (offset / PAGE) as u32,
                });
            }
        }
        None
    }

    /// Guest-physical address of the frame with this index.
    pub fn gpa_of(&self, index: u32) -> u64 {
        let at = self.regions.partition_point(|r| r.first <= index) - 1;
        let r = &self.regions[at];
        r.start + u64::from(index - r.first) * PAGE
    }

    /// The flags of a frame.
    #[inline]
    pub fn flags(&self, frame: Frame) -> u8 {
        self.flags[frame.index as usize]
    }

    /// Sets flags of a frame (not DIRTY, see [`Phys::mark_dirty`]).
    #[inline]
    pub fn set_flags(&mut self, frame: Frame, flags: u8) {
        self.flags[frame.index as usize] |= flags;
    }

    /// Clears flags of a frame.
    #[inline]
    pub fn clear_flags(&mut self, frame: Frame, flags: u8) {
        self.flags[frame.index as usize] &= !flags;
    }

    /// Notes that the vCPU writes to the frame.
    #[inline]
    pub fn mark_dirty(&mut self, frame: Frame) {
        let f = &mut self.flags[frame.index as usize];
        if *f & flag::DIRTY == 0 {
            *f |= flag::DIRTY;
            self.dirty.push(frame.index);
        }
    }

    /// Guest frame numbers written since the last call, ascending. The caller drops the write TLB.
    pub fn take_dirty(&mut self) -> Vec<u64> {
        let mut list = std::mem::take(&mut self.dirty);
        list.sort_unstable();
        for &index in &list {
            self.flags[index as usize] &= !(flag::DIRTY | flag::WRITE_CACHED);
        }
        list.into_iter().map(|i| self.gpa_of(i) / PAGE).collect()
    }

    /// Whether code was decoded from any 64-byte chunk of these bytes of a frame.
    pub fn has_code(&self, frame: Frame, offset: u64, len: u64) -> bool {
        self.code[frame.index as usize] & chunks(offset, len) != 0
    }

    /// Notes that code was decoded from `len` bytes at `offset` of the frame. Not for use alone:
    /// `Cpu::mark_code` also makes the write TLB forget the frame.
    pub fn note_code(&mut self, frame: Frame, offset: u64, len: u64) {
        self.code[frame.index as usize] |= chunks(offset, len);
    }

    /// No block of the page at `gpa` is left.
    pub fn unmark_code(&mut self, gpa: u64) {
        if let Some(frame) = self.frame(gpa) {
            self.code[frame.index as usize] = 0;
            self.clear_flags(frame, flag::CODE);
        }
    }

    /// Copies code for the decoder: `out.len()` bytes at `gpa`, within one page. Outside RAM the
    /// bytes are FFh, which is no instruction.
    pub fn read_code(&self, gpa: u64, out: &mut [u8]) {
        let offset = (gpa % PAGE) as usize;
        assert!(offset + out.len() <= PAGE as usize);
        match self.frame(gpa) {
            // SAFETY: the bytes lie inside one frame of RAM.
            Some(frame) => unsafe {
                std::ptr::copy_nonoverlapping(frame.host.add(offset), out.as_mut_ptr(), out.len());
            },
            None => out.fill(0xff),
        }
    }

    /// The page-table bookkeeping word of a frame.
    #[inline]
    pub fn table_word(&mut self, frame: Frame) -> &mut u64 {
        &mut self.tables[frame.index as usize]
    }

    /// Reads RAM inside one frame; `None` if `gpa` is not RAM. `T` must not straddle frames.
    #[inline]
    pub fn read<T: Width>(&self, gpa: u64) -> Option<T> {
        let frame = self.frame(gpa)?;
        let offset = (gpa % PAGE) as usize;
        assert!(offset + size_of::<T>() <= PAGE as usize);
        // SAFETY: the bytes lie inside one frame of RAM.
        Some(unsafe { frame.host.add(offset).cast::<T>().read_unaligned() })
    }
}

/// Bits of the 64-byte chunks that `len` bytes at `offset` of a page touch (`len` of at least 1).
fn chunks(offset: u64, len: u64) -> u64 {
    let first = (offset / 64).min(63);
    let last = ((offset + len - 1) / 64).min(63);
    (u64::MAX >> (63 - (last - first))) << first
}

// SAFETY: the pointers lead to memory that outlives the value (see `new`) and are used only through
// `&mut` of the CPU that owns it.
unsafe impl Send for Phys {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_bits() {
        assert_eq!(chunks(0, 1), 1);
        assert_eq!(chunks(63, 2), 3);
        assert_eq!(chunks(4095, 1), 1 << 63);
        assert_eq!(chunks(0, 4096), u64::MAX);
    }

    #[test]
    fn layouts_are_checked() {
        let page = vec![0u64; 1024 * 3];
        let host = ((page.as_ptr() as u64 + 4095) & PAGE_MASK) as *mut u8;
        let at = |gpa, len| Region { gpa, host, len };
        // SAFETY: two pages of `page` from an aligned address on.
        let phys = unsafe { Phys::new(vec![at(0x100000, 4096), at(0, 4096)]) }.unwrap();
        assert_eq!(phys.frame(0x100008).map(|f| f.index), Some(1));
        assert_eq!(phys.gpa_of(1), 0x100000);
        assert!(phys.frame(4096).is_none());
        // SAFETY: refused before any use.
        let refused = unsafe { Phys::new(vec![at(0, 8192), at(4096, 4096)]) };
        assert_eq!(refused.err(), Some(LayoutError::Overlap { start: 4096 }));
    }
}
