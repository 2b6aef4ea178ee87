//! x87 and SSE registers: KVM's XSAVE area, and the FXSAVE image of the guest's state.

use kvm_bindings::kvm_xsave;

/// Bytes of an FXSAVE image.
const SIZE: usize = 512;
/// Doubleword of the XSAVE area in which XSTATE_BV begins.
const XSTATE_BV: usize = SIZE / 4;

/// The image in its canonical form. FOP, FIP and FDP are zero: AMD's processors save them only with
/// an unmasked exception, so what the host's own switches leave of them is the host's affair.
pub fn to_image(area: &kvm_xsave) -> Vec<u8> {
    let mut image = Vec::with_capacity(SIZE);
    for word in &area.region[..SIZE / 4] {
        image.extend(word.to_le_bytes());
    }
    canonical(&mut image);
    image
}

/// Sets what no processor keeps to what `CpuState::fxsave` says.
pub fn canonical(image: &mut [u8]) {
    image[5] = 0;
    image[6..24].fill(0);
    image[28..32].copy_from_slice(&engine::bits::MXCSR.to_le_bytes());
    for register in 0..8 {
        image[42 + 16 * register..48 + 16 * register].fill(0);
    }
    image[416..].fill(0);
}

/// Puts the image into an XSAVE area.
pub fn from_image(image: &[u8], area: &mut kvm_xsave) {
    let mut image = image.to_vec();
    canonical(&mut image);
    // MXCSR_MASK is not loaded; zero as KVM itself leaves it.
    for (word, bytes) in area.region.iter_mut().zip(image.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    // x87 and SSE are in the area; compaction off.
    area.region[XSTATE_BV] = 3;
    area.region[XSTATE_BV + 1..XSTATE_BV + 16].fill(0);
}
