//! The guest's RAM as the engine sees it: where its regions lie in this process, and small reads.
#![allow(unsafe_code)]

use std::any::Any;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// One region of RAM.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Guest-physical address of the first byte, a multiple of 4096.
    pub gpa: u64,
    pub host: *mut u8,
    /// Bytes.
    pub len: u64,
}

/// All of RAM; keeps it mapped.
pub struct Ram {
    regions: Vec<Region>,
    _memory: Box<dyn Any + Send + Sync>,
}

// SAFETY: the pointers are only read through `read`, and the memory behind them is shared by nature:
// the guest and the devices write it.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    pub fn new<B>(memory: &Arc<GuestMemoryMmap<B>>) -> Self
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let regions = memory
            .iter()
            .map(|r| Region {
                gpa: r.start_addr().0,
                host: r.as_ptr(),
                len: r.len(),
            })
            .collect();
        for region in &regions {
            keep_small(region);
        }
        Self {
            regions,
            _memory: Box::new(Arc::clone(memory)),
        }
    }

    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The bytes at `gpa`; None if they do not lie in one region of RAM.
    pub fn read<const N: usize>(&self, gpa: u64) -> Option<[u8; N]> {
        let region = self.regions.iter().find(|r| {
            let offset = gpa.wrapping_sub(r.gpa);
            offset < r.len && r.len - offset >= N as u64
        })?;
        let offset = (gpa - region.gpa) as usize;
        // SAFETY: the range lies in the region, which `_memory` keeps mapped. Nobody writes to it
        // meanwhile: the vCPU and the devices are stopped while the engine looks.
        Some(unsafe { region.host.add(offset).cast::<[u8; N]>().read_unaligned() })
    }
}

/// Keeps the kernel from gathering RAM into huge pages while the guest runs. That takes the pages from
/// KVM's tables for a moment; with shadow paging the next access then walks the guest's own tables
/// again, and sets accessed bits that stood clear on the other replica. Nothing is lost: with a dirty
/// log KVM maps small pages anyway.
fn keep_small(region: &Region) {
    // Only advice: a kernel without huge pages refuses it, and needs none.
    // SAFETY: the range is exactly one live mapping; this advice changes no content.
    let _ = unsafe {
        libc::madvise(
            region.host.cast(),
            region.len as usize,
            libc::MADV_NOHUGEPAGE,
        )
    };
}
