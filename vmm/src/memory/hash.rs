//! A hash of memory's content, for comparing replicas.
//!
//! The hash is the wrapping sum of one term for each frame that is not all zero; a term mixes the
//! frame's XXH3 with its number. It is therefore a function of the content alone (a frame that was
//! never touched and one that holds zeros count alike), does not depend on the order of the frames,
//! and the hash of some frames can be compared as well as that of all.

use std::ops::ControlFlow;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::{FRAME, GuestRam, Memory};

impl GuestRam {
    /// The hash of all of memory.
    ///
    /// The vCPU must be stopped. Frames that the host never gave the guest are skipped.
    pub fn hash(&self) -> u64 {
        let mut sum = 0u64;
        let _ = self.for_touched(|frame, bytes| {
            sum = sum.wrapping_add(term(frame, bytes));
            ControlFlow::Continue(())
        });
        sum
    }

    /// The hash of the given frames (guest frame numbers), each of which should be given once.
    /// Frames that are not RAM add nothing. Given all frames of RAM, the same as [`Self::hash`].
    pub fn hash_frames(&self, frames: impl IntoIterator<Item = u64>) -> u64 {
        let mut buffer = [0; FRAME as usize];
        let mut sum = 0u64;
        for frame in frames {
            if read_frame(&self.memory, frame, &mut buffer) {
                sum = sum.wrapping_add(term(frame, &buffer));
            }
        }
        sum
    }

    /// Calls `visit` with each frame's number and content, ascending, leaving out frames that the
    /// host never gave the guest (which read as zero), until it breaks.
    pub(crate) fn for_touched(
        &self,
        mut visit: impl FnMut(u64, &[u8; FRAME as usize]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut buffer = [0; FRAME as usize];
        for region in self.memory.iter() {
            let start = region.start_addr().0 / FRAME;
            self.pages.for_touched(super::mapping(region), |frame| {
                if copy_frame(region, frame, &mut buffer) {
                    visit(start + frame, &buffer)
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        }
        ControlFlow::Continue(())
    }
}

/// Copies a frame out; false if it is not RAM.
pub(crate) fn read_frame(memory: &Memory, frame: u64, buffer: &mut [u8; FRAME as usize]) -> bool {
    let Some(addr) = frame.checked_mul(FRAME) else {
        return false;
    };
    match memory.to_region_addr(vm_memory::GuestAddress(addr)) {
        Some((region, at)) => copy_frame(region, at.0 / FRAME, buffer),
        None => false,
    }
}

fn copy_frame(
    region: &impl GuestMemoryRegion,
    frame: u64,
    buffer: &mut [u8; FRAME as usize],
) -> bool {
    match region.get_slice(MemoryRegionAddress(frame * FRAME), FRAME as usize) {
        Ok(slice) => slice.copy_to(&mut buffer[..]) == FRAME as usize,
        Err(_) => false,
    }
}

/// Whether a frame is all zero. Compares words, which the compiler turns into vector code.
pub(crate) fn is_zero(bytes: &[u8; FRAME as usize]) -> bool {
    bytes
        .chunks_exact(128)
        .all(|chunk| chunk.iter().fold(0u8, |or, byte| or | byte) == 0)
}

fn term(frame: u64, bytes: &[u8; FRAME as usize]) -> u64 {
    if is_zero(bytes) {
        return 0;
    }
    // The finaliser of MurmurHash3 over content and place; a multiple of an odd constant keeps
    // equal frames at different places apart.
    let mut x = xxhash_rust::xxh3::xxh3_64(bytes) ^ frame.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}
