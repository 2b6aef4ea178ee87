//! Which parts of low RAM are in use while a kernel is laid out, and where there is room.

use std::ops::Range;

use super::BootError;
use crate::memory::{E820Kind, FRAME, GuestRam, LOW_RAM_END};

/// Allocates guest-physical ranges in the RAM below 3 GiB.
pub(super) struct Placer {
    end: u64,
    /// Used or reserved, in no order.
    taken: Vec<Range<u64>>,
}

impl Placer {
    /// With the first frame (real-mode vectors and BIOS data) and what the memory map reserves
    /// taken.
    pub(super) fn new(ram: &GuestRam) -> Self {
        let reserved = ram
            .e820()
            .into_iter()
            .filter(|entry| entry.kind == E820Kind::Reserved)
            .map(|entry| entry.start..entry.start + entry.len);
        Self {
            end: ram.size().min(LOW_RAM_END),
            taken: std::iter::once(0..FRAME).chain(reserved).collect(),
        }
    }

    /// Takes a range that the kernel asks for, which may also be a reserved one.
    pub(super) fn claim(
        &mut self,
        what: &'static str,
        start: u64,
        len: u64,
    ) -> Result<(), BootError> {
        let end = start.saturating_add(len);
        if end > self.end {
            return Err(BootError::KernelTooBig {
                what,
                start,
                end,
                ram_end: self.end,
            });
        }
        self.taken.push(start..end);
        Ok(())
    }

    /// Takes the lowest free range from `from` on, aligned to frames.
    pub(super) fn lowest(&mut self, from: u64, len: u64) -> Option<u64> {
        let mut start = from.next_multiple_of(FRAME);
        while let Some(end) = self.overlap(start, len).map(|range| range.end) {
            start = end.next_multiple_of(FRAME);
        }
        self.take(start, len)
    }

    /// Takes the highest free range that ends at or below `limit`, aligned to frames.
    pub(super) fn highest(&mut self, limit: u64, len: u64) -> Option<u64> {
        let mut top = limit.min(self.end);
        loop {
            let start = top.checked_sub(len)? / FRAME * FRAME;
            match self.overlap(start, len) {
                Some(range) => top = range.start,
                None => return self.take(start, len),
            }
        }
    }

    fn overlap(&self, start: u64, len: u64) -> Option<&Range<u64>> {
        self.taken
            .iter()
            .find(|range| range.start < start.saturating_add(len) && start < range.end)
    }

    fn take(&mut self, start: u64, len: u64) -> Option<u64> {
        let end = start.checked_add(len)?;
        (end <= self.end).then(|| {
            self.taken.push(start..end);
            start
        })
    }
}
