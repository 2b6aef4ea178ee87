//! Which pages of a mapping the host ever gave us, from `/proc/self/pagemap`, so that hashing and
//! saving need not fault in (and look at) gigabytes of memory that the guest never used.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use vm_memory::MmapRegion;

use super::{FRAME, WriteLog};

/// Bits 63 (present) and 62 (swapped) of a pagemap entry (Linux, admin-guide/mm/pagemap.rst).
const TOUCHED: u64 = 3 << 62;
/// Entries read at a time.
const BATCH: usize = 4096;

/// The process's page map; without it (no /proc) every page counts as touched.
#[derive(Debug)]
pub(super) struct PageMap(Option<File>);

impl PageMap {
    pub(super) fn open() -> Self {
        Self(File::open("/proc/self/pagemap").ok())
    }

    /// Calls `visit` with each touched frame of the region, relative to its start, ascending, until
    /// it breaks.
    pub(super) fn for_touched(
        &self,
        region: &MmapRegion<WriteLog>,
        mut visit: impl FnMut(u64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let frames = region.size() as u64 / FRAME;
        let mut bytes = vec![0; BATCH * 8];
        let mut next = 0;
        while next < frames {
            let count = (frames - next).min(BATCH as u64);
            let batch = &mut bytes[..count as usize * 8];
            let known = self.read(region.as_ptr() as u64 + next * FRAME, batch);
            for (i, entry) in (0..count).zip(batch.chunks_exact(8)) {
                let entry = u64::from_le_bytes(entry.try_into().unwrap_or_default());
                if !known || entry & TOUCHED != 0 {
                    visit(next + i)?;
                }
            }
            next += count;
        }
        ControlFlow::Continue(())
    }

    /// Reads the entries from a host address on; false if they are not to be had.
    fn read(&self, address: u64, entries: &mut [u8]) -> bool {
        // The host's pages are those of x86-64: 4 KiB, as the guest's.
        let offset = address / FRAME * 8;
        match &self.0 {
            Some(file) => file.read_exact_at(entries, offset).is_ok(),
            None => false,
        }
    }
}
