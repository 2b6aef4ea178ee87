//! Random contents of registers and memory, with the values that matter more often than chance.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::case::{DATA, DATA_SIZE, DATA_WRITABLE, Input, Mode, PAGE, STACK};

/// Offset in DATA of an FXSAVE image without reserved MXCSR bits.
pub const FXSAVE_AT: usize = 0x400;

/// Integers at the edges.
pub fn integer(rng: &mut ChaCha8Rng) -> u64 {
    const SPECIAL: [u64; 16] = [
        0,
        1,
        2,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        0xffff_ffff_ffff_fffe,
        0xffff_ffff_ffff_ffff,
    ];
    match rng.random_range(0..10) {
        0..3 => SPECIAL[rng.random_range(0..16)],
        3..5 => rng.random_range(0..64),
        5 => (rng.random_range(0..64u64)).wrapping_neg(),
        6 => u64::from(rng.random::<u32>()),
        7 => 1 << rng.random_range(0..64),
        _ => rng.random(),
    }
}

/// A 32-bit number that is likely to be interesting as a float.
fn single(rng: &mut ChaCha8Rng) -> u32 {
    const SPECIAL: [u32; 14] = [
        0,
        0x8000_0000,
        0x3f80_0000,
        0xbf80_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0x7f80_0001,
        1,
        0x007f_ffff,
        0x0080_0000,
        0x7f7f_ffff,
        0x4f00_0000,
        0xcf00_0000,
    ];
    match rng.random_range(0..8) {
        0..3 => SPECIAL[rng.random_range(0..14)],
        3..6 => (rng.random_range(-2000i32..2000) as f32 / 8.0).to_bits(),
        6 => f32::to_bits(1.0) ^ rng.random::<u32>() >> 5,
        _ => rng.random(),
    }
}

/// A 64-bit number that is likely to be interesting as a double.
fn double(rng: &mut ChaCha8Rng) -> u64 {
    const SPECIAL: [u64; 14] = [
        0,
        1 << 63,
        0x3ff0_0000_0000_0000,
        0xbff0_0000_0000_0000,
        0x7ff0_0000_0000_0000,
        0xfff0_0000_0000_0000,
        0x7ff8_0000_0000_0000,
        0x7ff0_0000_0000_0001,
        1,
        0x000f_ffff_ffff_ffff,
        0x0010_0000_0000_0000,
        0x7fef_ffff_ffff_ffff,
        0x41e0_0000_0000_0000,
        0xc3e0_0000_0000_0000,
    ];
    match rng.random_range(0..8) {
        0..3 => SPECIAL[rng.random_range(0..14)],
        3..6 => (f64::from(rng.random_range(-200_000i32..200_000)) / 16.0).to_bits(),
        6 => f64::to_bits(1.0) ^ rng.random::<u64>() >> 6,
        _ => rng.random(),
    }
}

/// An extended number, canonical or not.
fn extended(rng: &mut ChaCha8Rng) -> [u8; 10] {
    let sign = u16::from(rng.random::<bool>()) << 15;
    let (exponent, significand) = match rng.random_range(0..12) {
        0 => (0, 0),
        1 => (0x7fff, 1 << 63),
        2 => (0x7fff, 3 << 62),
        3 => (0x7fff, 1 << 63 | 1),
        4 => (0, rng.random::<u64>() >> 1),
        5 => (rng.random::<u16>() & 0x7fff, rng.random::<u64>()),
        6 => (0x3fff, 1 << 63),
        7 => (0x7ffe, u64::MAX),
        8 => (0, 1 << 63 | rng.random::<u64>()),
        _ => (
            rng.random_range(0x3fff - 70..0x3fff + 70),
            1 << 63 | rng.random::<u64>() & (u64::MAX << rng.random_range(0..63)),
        ),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&significand.to_le_bytes());
    bytes[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
    bytes
}

/// 16 bytes of one kind of number.
fn vector(rng: &mut ChaCha8Rng) -> [u8; 16] {
    let mut out = [0; 16];
    match rng.random_range(0..5) {
        0 => {
            for chunk in out.chunks_mut(4) {
                chunk.copy_from_slice(&single(rng).to_le_bytes());
            }
        }
        1 => {
            for chunk in out.chunks_mut(8) {
                chunk.copy_from_slice(&double(rng).to_le_bytes());
            }
        }
        2 => {
            for chunk in out.chunks_mut(8) {
                chunk.copy_from_slice(&integer(rng).to_le_bytes());
            }
        }
        3 => {
            // Few different bytes, for the string instructions.
            let from = *b"abc\0\x80\xff";
            out.fill_with(|| from[rng.random_range(0..6)]);
        }
        _ => rng.fill(&mut out),
    }
    out
}

fn gpr(rng: &mut ChaCha8Rng, n: usize) -> u64 {
    let data = |rng: &mut ChaCha8Rng| DATA + rng.random_range(0..DATA_WRITABLE as u64);
    let stack = |rng: &mut ChaCha8Rng| STACK + rng.random_range(0x200..0xe00u64);
    let roll = rng.random_range(0..100);
    match n {
        // RSP
        4 => match roll {
            0..88 => stack(rng) & !7,
            88..92 => stack(rng),
            92..94 => STACK + rng.random_range(0..16u64),
            94..97 => STACK + PAGE as u64 - rng.random_range(0..16u64),
            _ => integer(rng),
        },
        // RCX
        1 if roll < 60 => rng.random_range(0..20),
        // RBP
        5 if roll < 50 => stack(rng),
        // RSI, RDI
        6 | 7 if roll < 70 => data(rng),
        _ => match roll {
            0..30 => data(rng),
            30..34 => stack(rng),
            34..36 => DATA + DATA_SIZE as u64 - rng.random_range(0..64u64),
            _ => integer(rng),
        },
    }
}

/// x87 and SSE state.
fn fxsave(rng: &mut ChaCha8Rng, image: &mut [u8; 512]) {
    image.fill(0);
    let fcw: u16 = match rng.random_range(0..10) {
        0..6 => 0x37f,
        6..8 => 0x7f | rng.random::<u16>() & 0x0f00,
        _ => rng.random::<u16>() & 0x1f3f | 0x40,
    };
    let mut fsw = u16::from(rng.random::<u8>()) << 8 & 0x4700;
    fsw |= rng.random_range(0..8) << 11;
    if rng.random_range(0..4) == 0 {
        fsw |= rng.random::<u16>() & 0x7f;
        if rng.random_range(0..10) > 0 {
            // Only rarely an exception pending from the start.
            fsw &= fcw | !0x3f;
        }
    }
    if fsw & !fcw & 0x3f != 0 {
        fsw |= 0x8080;
    }
    image[..2].copy_from_slice(&fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fsw.to_le_bytes());
    image[4] = match rng.random_range(0..4) {
        0 => 0,
        1 => 0xff,
        _ => rng.random(),
    };
    let mxcsr: u32 = match rng.random_range(0..10) {
        0..5 => 0x1f80,
        5..8 => 0x1f80 | rng.random::<u32>() & 0xe07f,
        _ => rng.random::<u32>() & 0xffff,
    };
    image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    image[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
    for i in 0..8 {
        let at = 32 + 16 * i;
        image[at..at + 10].copy_from_slice(&extended(rng));
    }
    for i in 0..16 {
        let at = 160 + 16 * i;
        image[at..at + 16].copy_from_slice(&vector(rng));
    }
}

/// Fast noise: most of what a case copies and nobody looks at.
fn noise(seed: u64, bytes: &mut [u8]) {
    let mut state = seed | 1;
    for chunk in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
}

/// Fills everything but the code.
pub fn fill(rng: &mut ChaCha8Rng, mode: Mode, input: &mut Input) {
    for n in 0..16 {
        input.gpr[n] = gpr(rng, n);
    }
    if mode == Mode::Bits32 {
        for (n, v) in input.gpr.iter_mut().enumerate() {
            *v = if n < 8 { *v & 0xffff_ffff } else { 0 };
        }
    }
    input.rflags = 0x202 | rng.random::<u64>() & 0x8d5;
    if rng.random_range(0..8) == 0 {
        input.rflags |= 0x400;
    }
    fxsave(rng, &mut input.fx);
    // A patchwork: mostly noise, here and there numbers.
    let memory = |rng: &mut ChaCha8Rng, bytes: &mut [u8]| {
        noise(rng.random(), bytes);
        for _ in 0..bytes.len() / 256 {
            let at = rng.random_range(0..bytes.len() / 16) * 16;
            bytes[at..at + 16].copy_from_slice(&vector(rng));
        }
        for _ in 0..bytes.len() / 512 {
            let at = rng.random_range(0..bytes.len() - 10);
            bytes[at..at + 10].copy_from_slice(&extended(rng));
        }
    };
    memory(rng, &mut input.data);
    memory(rng, &mut input.stack);
    // Something that FXRSTOR takes.
    let mut image = [0; 512];
    fxsave(rng, &mut image);
    for at in [6, 7, 8, 16, 100, 200] {
        // Opcode, pointers, data beyond what is normal.
        image[at] = rng.random();
    }
    input.data[FXSAVE_AT..FXSAVE_AT + 512].copy_from_slice(&image);
}
