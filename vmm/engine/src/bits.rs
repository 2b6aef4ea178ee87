//! Bits of the control registers and flags that the guest's processor has, on every engine.

/// Bits of CR0.
pub mod cr0 {
    pub const PE: u64 = 1;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
    pub const ALL: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

/// Bits of CR4.
pub mod cr4 {
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const ALL: u64 =
        TSD | DE | PSE | PAE | PGE | PCE | OSFXSR | OSXMMEXCPT | FSGSBASE | SMEP | SMAP;
}

/// Bits of EFER.
pub mod efer {
    pub const SCE: u64 = 1;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const ALL: u64 = SCE | LME | LMA | NXE;
}

/// Bits of RFLAGS.
pub mod rflags {
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    /// Every bit that exists, beside the fixed bit 1.
    pub const ALL: u64 = 0x003f_7fd5;
}

/// Bits of `Segment::access`.
pub mod access {
    /// Defined bits, beside `UNUSABLE`.
    pub const ALL: u32 = 0xf0ff;
    pub const P: u32 = 1 << 7;
    pub const L: u32 = 1 << 13;
    pub const DB: u32 = 1 << 14;
    pub const G: u32 = 1 << 15;
    pub const UNUSABLE: u32 = 1 << 16;
}

/// Bits of MXCSR that exist.
pub const MXCSR: u32 = 0xffff;

/// Whether bits 47 to 63 of a linear address are equal.
#[inline(always)]
pub fn is_canonical(linear: u64) -> bool {
    (linear as i64) << 16 >> 16 == linear as i64
}
