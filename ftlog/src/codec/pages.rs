//! Blocks of pages on the wire: their number; for each the difference to the frame before, times
//! two, plus one if the page is all zero (varint); length and bytes of the LZ4 block of the others.

use super::error::Problem;
use super::varint::{Reader, put, put_data};
use crate::stretch::{BLOCK_PAGES_MAX, FRAME_MAX, PACKED_BYTES_MAX, PageBlock};

pub(super) fn encode(block: &PageBlock, out: &mut Vec<u8>) {
    put(out, block.frames.len() as u64);
    let mut last = 0;
    for (frame, zero) in &block.frames {
        put(out, (frame - last) << 1 | u64::from(*zero));
        last = *frame;
    }
    put_data(out, &block.packed);
}

pub(super) fn decode(body: &mut Reader) -> Result<PageBlock, Problem> {
    let count = body.varint("a number of pages")?;
    if count > BLOCK_PAGES_MAX as u64 {
        return Err(Problem::Value {
            what: "a number of pages",
            value: count,
        });
    }
    let mut frames: Vec<(u64, bool)> = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let word = body.varint("a page's frame")?;
        let last = frames.last().map(|(frame, _)| *frame);
        let frame = last.unwrap_or(0).saturating_add(word >> 1);
        if frame > FRAME_MAX || last == Some(frame) {
            return Err(Problem::Value {
                what: "a page's frame",
                value: frame,
            });
        }
        frames.push((frame, word & 1 != 0));
    }
    Ok(PageBlock {
        frames,
        packed: body.data("packed pages", PACKED_BYTES_MAX)?,
    })
}
