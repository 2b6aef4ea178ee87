//! x87, MMX and SSE registers.

/// The registers.
#[derive(Clone, Default)]
#[repr(C, align(16))]
pub struct FpState {
    pub xmm: [[u64; 2]; 16],
    pub mxcsr: u32,
}
