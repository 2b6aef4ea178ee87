//! The guest's RAM: where it lies in the guest-physical address space, who wrote to it from outside
//! the vCPU, and what its content hashes to.
//!
//! RAM starts at 0 and is contiguous up to [`LOW_RAM_END`]; what does not fit below lies from
//! [`HIGH_RAM_START`] on. The hole between holds the PCI window and the firmware's addresses; it is
//! never RAM, so an access there is an MMIO exit.

mod hash;
mod layout;
#[cfg(test)]
mod tests;
mod touched;
mod write_log;

use std::ops::Range;
use std::sync::Arc;

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion, mmap::MmapRegionBuilder,
};

pub(crate) use hash::is_zero;
pub use layout::{E820Entry, E820Kind, HIGH_RAM_START, LOW_RAM_END};
pub use write_log::WriteLog;

use touched::PageMap;

/// Bytes in a guest frame.
pub const FRAME: u64 = 4096;
/// Smallest RAM, in bytes (16 MiB).
pub const MIN_RAM: u64 = 16 << 20;
/// Largest RAM, in bytes (64 GiB).
pub const MAX_RAM: u64 = 64 << 30;
/// RAM is a multiple of this many bytes (2 MiB, a large page).
pub const RAM_UNIT: u64 = 2 << 20;

/// The guest's physical memory, as device models, loaders and engines take it.
pub type Memory = GuestMemoryMmap<WriteLog>;

/// Why there is no RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error(
        "memory size of {size} bytes is not possible: it must be from 16 MiB to 64 GiB and a \
         multiple of 2 MiB"
    )]
    Size { size: u64 },
    #[error("the host has no address space for {size} bytes of guest memory")]
    Map {
        size: u64,
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    #[error("guest memory could not be assembled: {0}")]
    Assemble(String),
    #[error("guest memory could not be cleared")]
    Clear(#[source] std::io::Error),
}

/// The guest's RAM.
///
/// Its content may be read or written by several parties (vCPU, device models, loaders), but never
/// at the same time: all of them work with the vCPU stopped. Every access goes through volatile
/// copies, so a broken rule gives a wrong value and not undefined behaviour.
#[derive(Debug)]
pub struct GuestRam {
    memory: Arc<Memory>,
    size: u64,
    pages: PageMap,
}

impl GuestRam {
    /// RAM of `size` bytes, all zero. Host memory is taken only as it is touched.
    ///
    /// # Errors
    /// A size outside [`MIN_RAM`] to [`MAX_RAM`] or not a multiple of [`RAM_UNIT`]; a host that
    /// refuses the mapping.
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        if !(MIN_RAM..=MAX_RAM).contains(&size) || !size.is_multiple_of(RAM_UNIT) {
            return Err(MemoryError::Size { size });
        }
        let regions = layout::ranges(size)
            .map(|range| map_region(&range))
            .collect::<Result<Vec<_>, _>>()?;
        let memory =
            Memory::from_regions(regions).map_err(|e| MemoryError::Assemble(e.to_string()))?;
        Ok(Self {
            memory: Arc::new(memory),
            size,
            pages: PageMap::open(),
        })
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The RAM, for device models and engines. What is written through it is found by
    /// [`Self::take_written`].
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Guest-physical ranges of RAM, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        layout::ranges(self.size)
    }

    /// What the guest's firmware tables say about the address space.
    pub fn e820(&self) -> Vec<E820Entry> {
        layout::e820(self.size)
    }

    /// Guest-physical ranges, in whole frames, ascending, that device models and loaders wrote
    /// since the last call. Costs two loads when there are none. What the vCPU writes is not here.
    pub fn take_written(&self) -> Vec<Range<u64>> {
        let mut written = Vec::new();
        for region in self.memory.iter() {
            let start = region.start_addr().0;
            for range in mapping(region).bitmap().take() {
                // A mark past the region's end would be vm-memory's; it must not become an address.
                let end = (range.end * FRAME).min(region.len());
                let first = (range.start * FRAME).min(end);
                if first < end {
                    written.push(start + first..start + end);
                }
            }
        }
        written
    }

    /// Makes all of RAM zero again and gives the host's memory back, as at power-on. All of RAM
    /// counts as written.
    pub fn clear(&self) -> Result<(), MemoryError> {
        for region in self.memory.iter() {
            discard(mapping(region)).map_err(MemoryError::Clear)?;
            mapping(region).bitmap().mark_all(region.len() / FRAME);
        }
        Ok(())
    }
}

fn mapping(region: &GuestRegionMmap<WriteLog>) -> &MmapRegion<WriteLog> {
    region
}

fn map_region(range: &Range<u64>) -> Result<GuestRegionMmap<WriteLog>, MemoryError> {
    let size = range.end - range.start;
    let too_big = || MemoryError::Size { size };
    let len = usize::try_from(size).map_err(|_| too_big())?;
    let region = MmapRegionBuilder::new_with_bitmap(len, WriteLog::default())
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()
        .map_err(|source| MemoryError::Map { size, source })?;
    advise_huge(&region);
    GuestRegionMmap::new(region, GuestAddress(range.start)).ok_or_else(too_big)
}

#[allow(unsafe_code)]
fn advise_huge(region: &MmapRegion<WriteLog>) {
    // Only advice: a host without transparent huge pages refuses, and nothing depends on it.
    // SAFETY: the range is exactly one live mapping of ours; MADV_HUGEPAGE changes no content.
    let _ = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) };
}

#[allow(unsafe_code)]
fn discard(region: &MmapRegion<WriteLog>) -> std::io::Result<()> {
    // SAFETY: the range is exactly one live private anonymous mapping of ours; afterwards its pages
    // read as zero. No Rust reference points into guest memory, only volatile accessors do.
    let rc = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTNEED) };
    if rc == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}
