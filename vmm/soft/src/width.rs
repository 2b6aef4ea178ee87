//! Operand widths.

/// A value of one memory access: u8, u16, u32, u64 or u128, little-endian in memory.
pub trait Width: Copy + PartialEq + Send + 'static {
    /// Size in bytes.
    const BYTES: usize;
    const ZERO: Self;
    /// The value of the first `BYTES` bytes; `bytes` has at least that many.
    fn from_le(bytes: &[u8]) -> Self;
    /// Writes `BYTES` bytes to the start of `bytes`.
    fn write_le(self, bytes: &mut [u8]);
}

macro_rules! width {
    ($($t:ty),*) => {$(
        impl Width for $t {
            const BYTES: usize = size_of::<$t>();
            const ZERO: Self = 0;
            #[inline(always)]
            fn from_le(bytes: &[u8]) -> Self {
                let mut buf = [0; size_of::<$t>()];
                buf.copy_from_slice(&bytes[..size_of::<$t>()]);
                <$t>::from_le_bytes(buf)
            }
            #[inline(always)]
            fn write_le(self, bytes: &mut [u8]) {
                bytes[..size_of::<$t>()].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
width!(u8, u16, u32, u64, u128);

/// An integer operand: u8, u16, u32 or u64.
pub trait Int: Width {
    const BITS: u32;
    /// The sign bit.
    const SIGN: u64;
    /// Truncates.
    fn from_u64(v: u64) -> Self;
    /// Zero-extends.
    fn to_u64(self) -> u64;
    /// Sign-extends.
    fn to_i64(self) -> i64;
    /// The value of the register operand `reg` (see `Op`).
    fn get(gpr: &[u64; 32], reg: u8) -> Self;
    /// Writes the register operand `reg` as the ISA says: 32 bits clear the upper half, 8 and 16
    /// leave the rest.
    fn set(gpr: &mut [u64; 32], reg: u8, v: Self);
}

macro_rules! int {
    ($t:ty, $i:ty, $get:expr, $set:expr) => {
        impl Int for $t {
            const BITS: u32 = <$t>::BITS;
            const SIGN: u64 = 1 << (<$t>::BITS - 1);
            #[inline(always)]
            fn from_u64(v: u64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn to_u64(self) -> u64 {
                u64::from(self)
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                i64::from(self as $i)
            }
            #[inline(always)]
            fn get(gpr: &[u64; 32], reg: u8) -> Self {
                let get: fn(&[u64; 32], u8) -> $t = $get;
                get(gpr, reg)
            }
            #[inline(always)]
            fn set(gpr: &mut [u64; 32], reg: u8, v: Self) {
                let set: fn(&mut [u64; 32], u8, $t) = $set;
                set(gpr, reg, v);
            }
        }
    };
}
int!(
    u8,
    i8,
    |gpr, reg| (gpr[usize::from(reg & 31)] >> ((reg >> 5) * 8)) as u8,
    |gpr, reg, v| {
        let shift = (reg >> 5) * 8;
        let slot = &mut gpr[usize::from(reg & 31)];
        *slot = *slot & !(0xff << shift) | u64::from(v) << shift;
    }
);
int!(
    u16,
    i16,
    |gpr, reg| gpr[usize::from(reg & 31)] as u16,
    |gpr, reg, v| {
        let slot = &mut gpr[usize::from(reg & 31)];
        *slot = *slot & !0xffff | u64::from(v);
    }
);
int!(
    u32,
    i32,
    |gpr, reg| gpr[usize::from(reg & 31)] as u32,
    |gpr, reg, v| gpr[usize::from(reg & 31)] = u64::from(v)
);
int!(
    u64,
    i64,
    |gpr, reg| gpr[usize::from(reg & 31)],
    |gpr, reg, v| gpr[usize::from(reg & 31)] = v
);
