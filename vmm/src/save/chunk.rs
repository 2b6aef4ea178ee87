//! One memory section: some frames of RAM, compressed together.
//!
//! Payload: number of runs (u32), for each run its first guest frame number (u64) and its number of
//! frames (u32), little endian, then the frames' content, one after the other, as one zstd frame.

use super::LoadError;
use crate::memory::FRAME;

/// Most frames in a chunk (4 MiB of RAM): enough to compress well, little enough to spread over
/// threads and to hold a few in memory.
pub(super) const MAX_FRAMES: usize = 1024;
/// Bound of a payload's length: each frame its own run, and content that does not compress
/// (zstd adds less than 1/128).
pub(super) const MAX_LEN: u64 =
    4 + MAX_FRAMES as u64 * (RUN_LEN as u64 + FRAME + FRAME / 64) + 4096;

/// First guest frame number and number of frames.
type Run = (u64, u32);
/// Bytes of a run in a payload.
const RUN_LEN: usize = 12;
/// zstd's fastest; memory compresses to about a third with it, faster than disks write.
const LEVEL: i32 = 1;

/// Frames of RAM, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Ascending and apart.
    runs: Vec<Run>,
    content: Vec<u8>,
}

impl Chunk {
    /// Adds a frame, which must lie above all that are there.
    pub(super) fn push(&mut self, frame: u64, content: &[u8; FRAME as usize]) {
        match self.runs.last_mut() {
            Some((first, count)) if *first + u64::from(*count) == frame => *count += 1,
            _ => self.runs.push((frame, 1)),
        }
        self.content.extend_from_slice(content);
    }

    pub(super) fn is_full(&self) -> bool {
        self.content.len() >= MAX_FRAMES * FRAME as usize
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The frame number after the last.
    pub(super) fn end(&self) -> u64 {
        self.runs
            .last()
            .map_or(0, |(first, count)| first + u64::from(*count))
    }

    /// Runs of frames as (address of the first, content), in bytes.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut rest = self.content.as_slice();
        self.runs.iter().map(move |(first, count)| {
            let (run, others) = rest.split_at(*count as usize * FRAME as usize);
            rest = others;
            (first * FRAME, run)
        })
    }

    pub(super) fn encode(&self) -> std::io::Result<Vec<u8>> {
        let mut payload = (self.runs.len() as u32).to_le_bytes().to_vec();
        for (first, count) in &self.runs {
            payload.extend(first.to_le_bytes());
            payload.extend(count.to_le_bytes());
        }
        payload.extend(zstd::bulk::compress(&self.content, LEVEL)?);
        Ok(payload)
    }

    /// The first frame of a payload and the frame after its last, from its table.
    pub(super) fn extent(payload: &[u8]) -> Result<(u64, u64), LoadError> {
        let (runs, _) = read_table(payload)?;
        let first = runs.first().map_or(0, |(first, _)| *first);
        let end = runs
            .last()
            .map_or(0, |(first, count)| first + u64::from(*count));
        Ok((first, end))
    }

    /// Decodes a payload that is not trusted. Checks the runs' order and the sizes; whether the
    /// frames are RAM is seen when they are written.
    pub(super) fn decode(payload: &[u8]) -> Result<Self, LoadError> {
        let (runs, compressed) = read_table(payload)?;
        let frames: usize = runs.iter().map(|(_, count)| *count as usize).sum();
        let expected = frames * FRAME as usize;
        let content = zstd::bulk::decompress(compressed, expected)
            .map_err(|e| malformed(&format!("does not decompress: {e}")))?;
        if content.len() != expected {
            return Err(malformed("holds less than it says"));
        }
        Ok(Self { runs, content })
    }
}

fn malformed(why: &str) -> LoadError {
    LoadError::Malformed(format!("a memory section {why}"))
}

/// A payload's runs, checked: ascending, none empty, at least one frame and at most [`MAX_FRAMES`]
/// in all, no address past 64 bits. And the compressed content behind them.
fn read_table(payload: &[u8]) -> Result<(Vec<Run>, &[u8]), LoadError> {
    let (count, rest) = payload
        .split_first_chunk()
        .ok_or_else(|| malformed("is too short"))?;
    let count = u32::from_le_bytes(*count) as usize;
    if count == 0 || count > MAX_FRAMES || count * RUN_LEN > rest.len() {
        return Err(malformed("has a wrong number of runs"));
    }
    let (table, compressed) = rest.split_at(count * RUN_LEN);
    let mut runs: Vec<Run> = Vec::with_capacity(count);
    let (mut frames, mut next) = (0, 0);
    for run in table.as_chunks::<RUN_LEN>().0 {
        let [a, b, c, d, e, f, g, h, rest @ ..] = *run;
        let first = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let count = u32::from_le_bytes(rest);
        let end = first.checked_add(u64::from(count));
        match end.filter(|end| end.checked_mul(FRAME).is_some()) {
            Some(end) if first >= next && count > 0 => next = end,
            _ => return Err(malformed("has runs out of order")),
        }
        frames += u64::from(count);
        runs.push((first, count));
    }
    if frames > MAX_FRAMES as u64 {
        return Err(malformed("has too many frames"));
    }
    Ok((runs, compressed))
}
