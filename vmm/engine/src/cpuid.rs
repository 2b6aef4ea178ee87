//! CPUID: what the guest is shown; one fixed table, the same on every host.
//!
//! Features are exactly those that work; what is not shown raises #UD, except for hints that older
//! processors execute as something else. No APIC, no MTRRs, no machine check, no XSAVE, no random
//! numbers. Family 6, model 36h (Saltwell): an in-order core without speculation, of which operating
//! systems know that it needs no mitigations: true of `soft`, and on `kvm` the host's own mitigations
//! are in force.

use crate::{ClockBase, PROCESSOR_SIGNATURE};

/// EAX, EBX, ECX, EDX.
pub type Leaf = [u32; 4];

/// The processor's name as leaves 80000002h to 80000004h show it, zero-filled.
pub type Brand = [u8; 48];

/// Width of guest-physical addresses, in bits.
pub const PHYSICAL_BITS: u32 = 40;

/// Highest basic leaf.
pub const MAX_BASIC: u32 = 0x16;
/// Highest extended leaf.
pub const MAX_EXTENDED: u32 = 0x8000_0008;

/// Leaf 1 ECX: SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE, POPCNT.
const FEATURES_ECX: u32 = bits(&[0, 9, 13, 19, 20, 22, 23]);
/// Leaf 1 EDX: FPU, DE, PSE, TSC, MSR, PAE, CX8, SEP, PGE, CMOV, PAT, PSE-36, CLFSH, MMX, FXSR,
/// SSE, SSE2.
const FEATURES_EDX: u32 = bits(&[0, 2, 3, 4, 5, 6, 8, 11, 13, 15, 16, 17, 19, 23, 24, 25, 26]);
/// Leaf 7 EBX: FSGSBASE, IA32_TSC_ADJUST (with which operating systems trust the TSC without a
/// watchdog), SMEP, SMAP.
const FEATURES_7_EBX: u32 = bits(&[0, 1, 7, 20]);
/// Leaf 80000001h ECX: LAHF in 64-bit mode.
const EXTENDED_ECX: u32 = bits(&[0]);
/// Leaf 80000001h EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const EXTENDED_EDX: u32 = bits(&[11, 20, 26, 27, 29]);

const fn bits(list: &[u32]) -> u32 {
    let mut out = 0;
    let mut i = 0;
    while i < list.len() {
        out |= 1 << list[i];
        i += 1;
    }
    out
}

/// Crystal of the TSC, in Hz.
const CRYSTAL_HZ: u32 = 25_000_000;

/// What CPUID answers on a processor of that name.
pub fn leaf(brand: &Brand, eax: u32, ecx: u32) -> Leaf {
    match eax {
        0 => [MAX_BASIC, word(b"Genu"), word(b"ntel"), word(b"ineI")],
        // CLFLUSH line of 64 bytes, one logical processor.
        1 => [
            PROCESSOR_SIGNATURE,
            1 << 16 | 8 << 8,
            FEATURES_ECX,
            FEATURES_EDX,
        ],
        // "See leaf 4".
        2 => [0x00ff_ff01, 0, 0, 0],
        4 => caches(ecx),
        // ARAT.
        6 => [4, 0, 0, 0],
        7 if ecx == 0 => [0, FEATURES_7_EBX, 0, 0],
        0x15 => {
            let ratio = (ClockBase::TSC_HZ / u64::from(CRYSTAL_HZ)) as u32;
            [1, ratio, CRYSTAL_HZ, 0]
        }
        0x16 => {
            let mhz = (ClockBase::TSC_HZ / 1_000_000) as u32;
            [mhz, mhz, 100, 0]
        }
        0x8000_0000 => [MAX_EXTENDED, 0, 0, 0],
        0x8000_0001 => [0, 0, EXTENDED_ECX, EXTENDED_EDX],
        0x8000_0002..=0x8000_0004 => brand_part(brand, (eax - 0x8000_0002) as usize),
        // L2: 1 MiB, 8-way, 64-byte lines.
        0x8000_0006 => [0, 0, 1024 << 16 | 6 << 12 | 64, 0],
        // Invariant TSC.
        0x8000_0007 => [0, 0, 0, 1 << 8],
        0x8000_0008 => [PHYSICAL_BITS | 48 << 8, 0, 0, 0],
        _ => [0; 4],
    }
}

fn word(text: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*text)
}

fn brand_part(brand: &Brand, part: usize) -> Leaf {
    let mut out = [0; 4];
    for (i, w) in out.iter_mut().enumerate() {
        let at = part * 16 + i * 4;
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&brand[at..at + 4]);
        *w = u32::from_le_bytes(bytes);
    }
    out
}

/// Leaf 4: L1 data and instruction of 32 KiB, L2 of 1 MiB; all 8-way with 64-byte lines.
fn caches(index: u32) -> Leaf {
    let (kind, level, sets) = match index {
        0 => (1, 1, 64),
        1 => (2, 1, 64),
        2 => (3, 2, 2048),
        _ => return [0; 4],
    };
    [kind | level << 5 | 1 << 8, 63 | 7 << 22, sets - 1, 0]
}

/// A hash of everything that CPUID shows, for the header of a log.
pub fn hash(brand: &Brand) -> u64 {
    // FNV-1a; it need only tell tables apart.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for eax in (0..=MAX_BASIC).chain(0x8000_0000..=MAX_EXTENDED) {
        for ecx in 0..4 {
            for w in leaf(brand, eax, ecx) {
                hash = (hash ^ u64::from(w)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    hash
}
