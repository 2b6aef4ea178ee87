//! Every instruction of the offered feature set has a handler, in every mode, and nothing beyond it
//! has one.

use std::collections::BTreeSet;

use iced_x86::{Code, CpuidFeature as F, Decoder, DecoderOptions};

use super::*;

/// What the CPU offers (see `cpuid`), as iced names it.
const OFFERED: &[F] = &[
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::FPU,
    F::FPU287,
    F::FPU387,
    F::FXSR,
    F::CMOV,
    F::CX8,
    F::CMPXCHG16B,
    F::CPUID,
    F::CLFSH,
    F::MMX,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::POPCNT,
    F::MSR,
    F::TSC,
    F::RDTSCP,
    F::RDPMC,
    F::SYSCALL,
    F::SEP,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::MOVBE,
    F::FSGSBASE,
];

/// All encodings: maps, prefixes, ModRM with memory and register operands, every opcode extension.
fn encodings() -> Vec<Vec<u8>> {
    let prefixes: [&[u8]; 9] = [
        &[],
        &[0x66],
        &[0xf2],
        &[0xf3],
        &[0x48],
        &[0x66, 0x48],
        &[0xf2, 0x48],
        &[0xf3, 0x48],
        &[0x67],
    ];
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    let mut all = Vec::new();
    for prefix in prefixes {
        for map in maps {
            for opcode in 0..=255u8 {
                for extension in 0..8u8 {
                    for base in [0x03, 0xc0, 0xc1] {
                        let mut bytes = [prefix, map, &[opcode, base | extension << 3]].concat();
                        bytes.extend([1; 15]);
                        all.push(bytes);
                    }
                }
            }
        }
    }
    all
}

fn offered(code: Code) -> bool {
    code.cpuid_features().iter().all(|f| OFFERED.contains(f))
}

/// Encodings that older processors knew as something else: NOPs, BSF, BSR.
fn acts_as_older(code: &str) -> bool {
    ["Lzcnt", "Tzcnt", "Prefetch", "Rdssp"]
        .iter()
        .any(|older| code.starts_with(older))
}

#[test]
fn what_is_offered_has_handlers() {
    let mut native = crate::native::NativeCode::new().unwrap();
    let (mut missing, mut extra) = (BTreeSet::new(), BTreeSet::new());
    for bytes in encodings() {
        for mode in [CodeMode::Bits16, CodeMode::Bits32, CodeMode::Bits64] {
            let bits = [16, 32, 64][mode as usize];
            let mut decoder = Decoder::with_ip(bits, &bytes[..15], 0, DecoderOptions::NONE);
            let ins = decoder.decode();
            if ins.is_invalid() {
                continue;
            }
            let Ok(decoded) = decode(&bytes, mode, 0, &mut native) else {
                panic!("{:?} did not decode", ins.code());
            };
            let known = decoded.is_known();
            let text = format!("{:?}", ins.code());
            if offered(ins.code()) && !known && !text.starts_with("Ud") {
                missing.insert(text);
            } else if !offered(ins.code()) && known && !acts_as_older(&text) {
                extra.insert(format!("{text} {:?}", ins.code().cpuid_features()));
            }
        }
    }
    assert!(extra.is_empty(), "not offered, but handled: {extra:#?}");
    assert!(missing.is_empty(), "without a handler: {missing:#?}");
}
