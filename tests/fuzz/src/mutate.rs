//! How a case is made: a sample, changed in a few places.
//!
//! The changes are those that find errors in parsers: bits, bytes and words that are boundary
//! values (lengths and counts above all), pieces left out, doubled, exchanged or taken from another
//! sample, and the end cut off. A small part of the cases is noise without any sample.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// The longest input, in bytes.
const MAX_LEN: usize = 1 << 20;
/// One case in so many is noise.
const NOISE_ONE_IN: u32 = 50;

const BOUNDARIES: [u64; 22] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x1ff,
    0x200,
    0xfff,
    0x1000,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];

/// A case from samples.
pub fn case(rng: &mut ChaCha8Rng, samples: &[Vec<u8>]) -> Vec<u8> {
    let Some(sample) = samples.choose(rng) else {
        return noise(rng);
    };
    if rng.random_ratio(1, NOISE_ONE_IN) {
        return noise(rng);
    }
    let mut bytes = sample.clone();
    // Mostly few: an input with many errors fails at the first.
    let changes = 1 << rng.random_range(0..5u32);
    for _ in 0..rng.random_range(1..=changes) {
        change(rng, &mut bytes, samples);
    }
    bytes.truncate(MAX_LEN);
    bytes
}

fn noise(rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = vec![0; 1 << rng.random_range(0..12u32)];
    rng.fill(bytes.as_mut_slice());
    bytes
}

fn change(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>, samples: &[Vec<u8>]) {
    if bytes.is_empty() {
        return bytes.extend(noise(rng));
    }
    let at = place(rng, bytes.len());
    match rng.random_range(0..11) {
        0 | 1 => bytes[at] ^= 1 << rng.random_range(0..8),
        2 => bytes[at] = rng.random(),
        3 | 4 => word(rng, bytes, at),
        5 => {
            bytes[at] = bytes[at]
                .wrapping_add(rng.random_range(0..=8))
                .wrapping_sub(4)
        }
        6 => bytes.truncate(at),
        7 => {
            let end = piece(rng, at, bytes.len());
            bytes.drain(at..end);
        }
        8 => {
            let end = piece(rng, at, bytes.len());
            let copy = bytes[at..end].to_vec();
            let to = place(rng, bytes.len());
            bytes.splice(to..to, copy);
        }
        9 => splice(rng, bytes, at, samples),
        _ => digits(rng, bytes, at),
    }
}

/// A place in the input; the front, where headers are, more often.
fn place(rng: &mut ChaCha8Rng, len: usize) -> usize {
    let bound = match rng.random_range(0..4) {
        0 => len.min(64),
        1 => len.min(512),
        _ => len,
    };
    rng.random_range(0..bound)
}

fn piece(rng: &mut ChaCha8Rng, at: usize, len: usize) -> usize {
    let longest = 1usize << rng.random_range(0..10u32);
    at + rng.random_range(1..=longest.min(len - at))
}

/// A boundary value, or nearly one, of 1, 2, 4 or 8 bytes in either order.
fn word(rng: &mut ChaCha8Rng, bytes: &mut [u8], at: usize) {
    let near = rng.random_range(0..3u64);
    let value = BOUNDARIES
        .choose(rng)
        .map_or(0, |v| v.wrapping_add(near).wrapping_sub(1));
    let size = 1usize << rng.random_range(0..4u32);
    let mut word = value.to_le_bytes()[..size].to_vec();
    if rng.random() {
        word.reverse();
    }
    for (byte, new) in bytes[at..].iter_mut().zip(word) {
        *byte = new;
    }
}

/// A piece of another sample, in the place of one here.
fn splice(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>, at: usize, samples: &[Vec<u8>]) {
    let Some(other) = samples.choose(rng).filter(|other| !other.is_empty()) else {
        return;
    };
    let from = place(rng, other.len());
    let to = piece(rng, from, other.len());
    let end = piece(rng, at, bytes.len());
    bytes.splice(at..end, other[from..to].iter().copied());
}

/// For text: a run of digits becomes another number.
fn digits(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>, at: usize) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit) else {
        return;
    };
    let start = at + start;
    let len = bytes[start..]
        .iter()
        .take_while(|b| b.is_ascii_digit())
        .count();
    let value = BOUNDARIES.choose(rng).copied().unwrap_or_default();
    let text = match rng.random_range(0..4) {
        0 => format!("-{value}"),
        1 => format!("{value}0"),
        2 => format!("{value}.5"),
        _ => value.to_string(),
    };
    bytes.splice(start..start + len, text.into_bytes());
}
