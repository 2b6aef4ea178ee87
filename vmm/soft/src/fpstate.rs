//! x87, MMX and SSE registers of the guest, laid out as the image that FXSAVE64 writes.
//!
//! The host's own FXRSTOR and FXSAVE work on it directly, XMM registers can be used in place, and
//! saving the state is a copy. Layout: SDM vol. 1, table 10-2.

/// MXCSR bits that may be set (SDM vol. 1, 11.6.6): all but the upper half.
pub const MXCSR_MASK: u32 = 0xffff;
/// MXCSR after reset: every exception masked, round to nearest.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// MXCSR exception mask bits; they lie [`MXCSR_MASK_SHIFT`] above the flag bits.
pub const MXCSR_MASKS: u32 = 0x1f80;
/// Distance between an exception's flag bit and its mask bit in MXCSR.
pub const MXCSR_MASK_SHIFT: u32 = 7;

/// FSW: invalid operation.
pub const FSW_IE: u16 = 1;
/// FSW: stack fault.
pub const FSW_SF: u16 = 1 << 6;
/// FSW: exception summary.
pub const FSW_ES: u16 = 1 << 7;
/// FSW: busy; follows ES.
pub const FSW_B: u16 = 1 << 15;
/// Exception flags of FSW and mask bits of FCW.
pub const X87_EXCEPTIONS: u16 = 0x3f;

/// The registers. `st[i]` is ST(i), not the physical register: it moves when TOP moves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FpState {
    pub fcw: u16,
    pub fsw: u16,
    /// Abridged: bit n set when physical register n is not empty.
    pub ftw: u8,
    reserved0: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    pub mxcsr: u32,
    mxcsr_mask: u32,
    pub st: [u128; 8],
    pub xmm: [u128; 16],
    reserved1: [u64; 12],
}

impl Default for FpState {
    /// As after reset (SDM vol. 3, table 10-1).
    fn default() -> Self {
        Self {
            fcw: 0x40,
            fsw: 0,
            ftw: 0,
            reserved0: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: MXCSR_DEFAULT,
            mxcsr_mask: MXCSR_MASK,
            st: [0; 8],
            xmm: [0; 16],
            reserved1: [0; 12],
        }
    }
}

impl FpState {
    /// Size of the image in bytes.
    pub const SIZE: usize = 512;
    /// Bytes of the image that hold something; the rest is reserved.
    pub const USED: usize = 416;

    /// TOP of the register stack.
    pub fn top(&self) -> u32 {
        u32::from(self.fsw >> 11 & 7)
    }

    pub fn set_top(&mut self, top: u32) {
        self.fsw = self.fsw & !0x3800 | ((top & 7) as u16) << 11;
    }

    /// FNINIT (SDM vol. 2, FINIT): control, status, tags and pointers; the data stay.
    pub fn init(&mut self) {
        // TOP becomes 0, so what was ST(0) gets another name.
        self.rotate_to_top(0);
        self.fcw = 0x37f;
        self.fsw = 0;
        self.ftw = 0;
        self.fop = 0;
        self.fip = 0;
        self.fdp = 0;
    }

    /// Sets TOP and renames the registers so that each physical register keeps its value.
    pub fn rotate_to_top(&mut self, top: u32) {
        let by = (top + 8 - self.top()) & 7;
        self.st.rotate_left(by as usize);
        self.set_top(top);
    }

    /// Whether an unmasked x87 exception is pending.
    pub fn pending(&self) -> bool {
        self.fsw & FSW_ES != 0
    }

    /// Makes ES and B say what the exception flags and their masks say.
    pub fn update_summary(&mut self) {
        self.fsw &= !(FSW_ES | FSW_B);
        if self.fsw & !self.fcw & X87_EXCEPTIONS != 0 {
            self.fsw |= FSW_ES | FSW_B;
        }
    }

    /// What MMX instructions do besides their result: TOP becomes 0 and every register valid
    /// (SDM vol. 1, 9.5.1).
    pub fn enter_mmx(&mut self) {
        self.rotate_to_top(0);
        self.ftw = 0xff;
    }

    /// The image as FXSAVE64 writes it, reserved bytes zero.
    pub fn to_image(&self) -> [u8; Self::SIZE] {
        let mut image = [0; Self::SIZE];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            image[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&self.fcw.to_le_bytes());
        put(&self.fsw.to_le_bytes());
        put(&[self.ftw, 0]);
        put(&self.fop.to_le_bytes());
        put(&self.fip.to_le_bytes());
        put(&self.fdp.to_le_bytes());
        put(&self.mxcsr.to_le_bytes());
        put(&self.mxcsr_mask.to_le_bytes());
        for st in self.st {
            put(&st.to_le_bytes());
        }
        for xmm in self.xmm {
            put(&xmm.to_le_bytes());
        }
        image
    }

    /// The state that an image describes, as FXRSTOR64 takes it; `None` if MXCSR has a bit set that
    /// may not be. What the image cannot say is normalised: ES and B follow the exception flags,
    /// the reserved bytes are zero.
    pub fn from_image(image: &[u8; Self::SIZE]) -> Option<Self> {
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let dword = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
        let qword = |at: usize| u64::from(dword(at)) | u64::from(dword(at + 4)) << 32;
        let oword = |at: usize| u128::from(qword(at)) | u128::from(qword(at + 8)) << 64;
        let mxcsr = dword(24);
        if mxcsr & !MXCSR_MASK != 0 {
            return None;
        }
        let mut state = Self {
            fcw: word(0) & 0x1f7f | 0x40,
            fsw: word(2),
            ftw: image[4],
            fop: word(6) & 0x7ff,
            fip: qword(8),
            fdp: qword(16),
            mxcsr,
            st: std::array::from_fn(|i| oword(32 + 16 * i) & ((1 << 80) - 1)),
            xmm: std::array::from_fn(|i| oword(160 + 16 * i)),
            ..Self::default()
        };
        state.update_summary();
        Some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_that_of_fxsave64() {
        assert_eq!(size_of::<FpState>(), FpState::SIZE);
        assert_eq!(std::mem::offset_of!(FpState, fip), 8);
        assert_eq!(std::mem::offset_of!(FpState, mxcsr), 24);
        assert_eq!(std::mem::offset_of!(FpState, st), 32);
        assert_eq!(std::mem::offset_of!(FpState, xmm), 160);
    }

    #[test]
    fn image_round_trip() {
        let mut state = FpState {
            fsw: 0x1800,
            ftw: 0x81,
            fip: 0x1234_5678_9abc,
            ..FpState::default()
        };
        for i in 0..8 {
            state.st[i] = 0x3fff_8000_0000_0000_0000 + i as u128;
            state.xmm[i + 8] = u128::MAX - i as u128;
        }
        assert_eq!(FpState::from_image(&state.to_image()), Some(state.clone()));
        state.mxcsr = 0x1_0000;
        assert_eq!(FpState::from_image(&state.to_image()), None);
    }

    #[test]
    fn registers_keep_their_place_when_top_moves() {
        let mut state = FpState::default();
        state.set_top(5);
        for i in 0..8u32 {
            state.st[i as usize] = u128::from((5 + i) & 7);
        }
        state.rotate_to_top(0);
        assert_eq!(state.st, std::array::from_fn(|i| i as u128));
        assert_eq!(state.top(), 0);
    }
}
