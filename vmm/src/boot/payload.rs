//! The kernel proper inside a bzImage: the compressed ELF that its own decompressor would unpack.
//!
//! Entering it by PVH skips the decompressor and with it about 0.1 billion guest instructions, and
//! the kernel is not moved to a random place (KASLR). Where the payload lies is in the setup header
//! (Linux, Documentation/arch/x86/boot.rst, `payload_offset`); LZ4 in its legacy frame, which
//! Debian's kernels use, is the one compression that is understood.

use super::BootError;
use super::image::Image;

const WHAT: &str = "compressed payload";
/// Magic number of an LZ4 legacy frame (LZ4 frame format description, "Legacy frame").
const LZ4_LEGACY: u32 = 0x184c_2102;
/// Content of a block of it, at most.
const BLOCK: usize = 8 << 20;
/// Largest kernel proper, in bytes.
const MAX_LEN: u32 = 512 << 20;

/// The ELF file inside a bzImage. Call only with what `bzimage::recognises` has accepted.
pub(super) fn extract(image: Image<'_>) -> Result<Vec<u8>, BootError> {
    const HEADER: &str = "setup header";
    let version = image.u16(HEADER, 0x206)?;
    if version < 0x208 {
        return Err(unsupported("its boot protocol is older than 2.08"));
    }
    let sectors = u64::from(image.u8(HEADER, 0x1f1)?);
    let start = (sectors + 1) * 512 + u64::from(image.u32(HEADER, 0x248)?);
    let len = u64::from(image.u32(HEADER, 0x24c)?);
    let payload = Image::new(image.slice(WHAT, start, len)?);
    if payload.u32(WHAT, 0)? != LZ4_LEGACY {
        return Err(unsupported("its payload is not compressed with LZ4"));
    }
    // The build appends the length of the content.
    let end = len.saturating_sub(4);
    let size = payload.u32(WHAT, end)?;
    if size > MAX_LEN {
        return Err(BootError::Malformed(format!(
            "its payload claims to hold {size} bytes"
        )));
    }
    let content = unpack(payload, end)?;
    if content.len() as u64 != u64::from(size) {
        return Err(BootError::Malformed(format!(
            "its payload holds {} bytes and not the {size} that it claims",
            content.len()
        )));
    }
    Ok(content)
}

/// The blocks of a legacy frame that ends at `end`: each its compressed length (u32) and content.
fn unpack(frame: Image<'_>, end: u64) -> Result<Vec<u8>, BootError> {
    let mut content = Vec::new();
    let mut block = vec![0; BLOCK];
    let mut at = 4;
    while at < end {
        let len = u64::from(frame.u32(WHAT, at)?);
        let compressed = frame.slice(WHAT, at + 4, len)?;
        let got = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|e| BootError::Malformed(format!("its payload does not decompress: {e}")))?;
        if content.len() + got > MAX_LEN as usize {
            return Err(BootError::Malformed("its payload never ends".into()));
        }
        content.extend_from_slice(&block[..got]);
        at += 4 + len;
    }
    Ok(content)
}

fn unsupported(why: &str) -> BootError {
    BootError::Unsupported(format!(
        "{why}, so it cannot be entered by PVH; use bzimage"
    ))
}
