//! RAM, and what is known of its pages.
#![allow(unsafe_code)]

use std::ops::Range;

/// A stretch of RAM in the VMM's address space.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub gpa: u64,
    pub host: *mut u8,
    pub len: u64,
}

/// RAM.
pub struct Phys {
    regions: Vec<Region>,
    /// Guest-physical ranges with decoded code that were written since the run loop last dropped
    /// blocks (attention::CODE).
    pub written_code: Vec<Range<u64>>,
}

// SAFETY: the regions point to memory that the engine keeps mapped; only the vCPU's thread uses it.
unsafe impl Send for Phys {}

impl Phys {
    pub fn new(regions: Vec<Region>) -> Self {
        Self {
            regions,
            written_code: Vec::new(),
        }
    }

    /// The host address of `len` bytes at `gpa` if all of them are RAM.
    pub fn host(&self, gpa: u64, len: u64) -> Option<*mut u8> {
        let r = self
            .regions
            .iter()
            .find(|r| gpa >= r.gpa && gpa - r.gpa < r.len)?;
        if len > r.len - (gpa - r.gpa) {
            return None;
        }
        Some(r.host.wrapping_add((gpa - r.gpa) as usize))
    }

    /// Copies code for the decoder: `out.len()` bytes at `gpa`, within one page that `fetch_page`
    /// gave.
    pub fn read_code(&self, gpa: u64, out: &mut [u8]) {
        match self.host(gpa, out.len() as u64) {
            // SAFETY: `host` vouches for `out.len()` readable bytes.
            Some(p) => unsafe { std::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), out.len()) },
            None => out.fill(0xff),
        }
    }

    /// Marks the bytes at `gpa` (within one page) as decoded: stores to them from now on go into
    /// `written_code`, and raise `StopReason::Step` unless stepping. Marking is by lines of 64
    /// bytes, so that data beside code stay cheap.
    pub fn mark_code(&mut self, _gpa: u64, _len: u64) {}

    /// No block of the page at `gpa` is left.
    pub fn unmark_code(&mut self, _gpa: u64) {}

    /// Frames written since the last call, ascending.
    pub fn take_dirty(&mut self) -> Vec<u64> {
        Vec::new()
    }
}
