//! Which frames device models and loaders wrote: a `vm_memory` bitmap that is asked after every
//! device call, so that the answer "none" costs one load and the others a short list.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use super::FRAME;

/// With this many separate ranges the list is sorted and joined, so that a device that hops between
/// the same few frames does not make it grow.
const JOIN_AT: usize = 256;

/// The frames of one region that were written through `vm_memory` since the last [`Self::take`].
#[derive(Debug, Default)]
pub struct WriteLog {
    any: AtomicBool,
    /// Frame numbers relative to the region's start.
    ranges: Mutex<Vec<Range<u64>>>,
}

impl WriteLog {
    /// The written frames (relative to the region's start), ascending, joined, and forgets them.
    pub fn take(&self) -> Vec<Range<u64>> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut ranges = self.lock();
        self.any.store(false, Ordering::Release);
        let mut taken = std::mem::take(&mut *ranges);
        join(&mut taken);
        taken
    }

    /// Marks the first `frames` frames, all of the region.
    pub(super) fn mark_all(&self, frames: u64) {
        let mut ranges = self.lock();
        ranges.clear();
        ranges.push(0..frames);
        self.any.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        // The list is whole after every statement, so a panic elsewhere cannot have spoilt it.
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> WithBitmapSlice<'a> for WriteLog {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for WriteLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len == 0 {
            return;
        }
        let (offset, len) = (offset as u64, len as u64);
        let frames = offset / FRAME..offset.saturating_add(len).div_ceil(FRAME);
        let mut ranges = self.lock();
        match ranges.last_mut() {
            Some(last) if frames.start <= last.end && last.start <= frames.end => {
                last.start = last.start.min(frames.start);
                last.end = last.end.max(frames.end);
            }
            _ => {
                ranges.push(frames);
                if ranges.len().is_multiple_of(JOIN_AT) {
                    join(&mut ranges);
                }
            }
        }
        self.any.store(true, Ordering::Release);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let frame = offset as u64 / FRAME;
        self.lock().iter().any(|range| range.contains(&frame))
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for WriteLog {
    fn with_len(_len: usize) -> Self {
        Self::default()
    }
}

/// Sorts ranges and joins those that touch.
fn join(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, kept| {
        let touches = next.start <= kept.end;
        if touches {
            kept.end = kept.end.max(next.end);
        }
        touches
    });
}
