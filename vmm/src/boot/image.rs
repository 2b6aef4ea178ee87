//! Bounded reads from a kernel file, and words for what a file is.

use super::BootError;

/// A file's bytes; every read is checked against the end.
#[derive(Clone, Copy)]
pub(super) struct Image<'a> {
    bytes: &'a [u8],
}

impl<'a> Image<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The bytes from `at`, `len` of them; `what` names them in the error.
    pub(super) fn slice(
        &self,
        what: &'static str,
        at: u64,
        len: u64,
    ) -> Result<&'a [u8], BootError> {
        let need = at.saturating_add(len);
        let range = usize::try_from(at).ok().zip(usize::try_from(need).ok());
        range
            .and_then(|(at, end)| self.bytes.get(at..end))
            .ok_or(BootError::Truncated {
                what,
                need,
                have: self.len(),
            })
    }

    /// The bytes from `at` to the end of the file.
    pub(super) fn rest(&self, what: &'static str, at: u64) -> Result<&'a [u8], BootError> {
        self.slice(what, at, self.len().saturating_sub(at))
    }

    fn array<const N: usize>(&self, what: &'static str, at: u64) -> Result<[u8; N], BootError> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(what, at, N as u64)?);
        Ok(array)
    }

    pub(super) fn u8(&self, what: &'static str, at: u64) -> Result<u8, BootError> {
        self.array::<1>(what, at).map(|[byte]| byte)
    }

    pub(super) fn u16(&self, what: &'static str, at: u64) -> Result<u16, BootError> {
        self.array(what, at).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&self, what: &'static str, at: u64) -> Result<u32, BootError> {
        self.array(what, at).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, what: &'static str, at: u64) -> Result<u64, BootError> {
        self.array(what, at).map(u64::from_le_bytes)
    }

    /// Whether the file has these bytes at that offset.
    pub(super) fn has(&self, at: u64, expected: &[u8]) -> bool {
        self.slice("", at, expected.len() as u64)
            .is_ok_and(|found| found == expected)
    }
}

/// What a file that is no kernel seems to be.
pub(super) fn describe(bytes: &[u8]) -> &'static str {
    const MAGICS: [(usize, &[u8], &str); 14] = [
        (0, b"\x7fELF", "an ELF file of an unusable kind"),
        (0, b"\x1f\x8b", "a gzip file (decompress it first)"),
        (0, b"\xfd7zXZ\0", "an xz file (decompress it first)"),
        (0, b"\x28\xb5\x2f\xfd", "a zstd file (decompress it first)"),
        (0, b"BZh", "a bzip2 file (decompress it first)"),
        (0, b"\x02\x21\x4c\x18", "an lz4 file (decompress it first)"),
        (0, b"070701", "a cpio archive, perhaps the initrd"),
        (
            0,
            b"!<arch>\n",
            "a Debian package or archive; the kernel is inside it",
        ),
        (0, b"QFI\xfb", "a qcow2 disk image"),
        (0x38, b"ARM\x64", "a Linux kernel for 64-bit ARM"),
        (0x30, b"RISCV", "a Linux kernel for RISC-V"),
        (0x8001, b"CD001", "an ISO 9660 image"),
        (257, b"ustar", "a tar archive"),
        (0, b"MZ", "an EFI program, but no Linux bzImage"),
    ];
    if bytes.is_empty() {
        return "empty";
    }
    let known = MAGICS.iter().find(|(at, magic, _)| {
        bytes
            .get(*at..*at + magic.len())
            .is_some_and(|found| found == *magic)
    });
    match known {
        Some((_, _, what)) => what,
        None if bytes.iter().all(|&byte| byte == 0) => "nothing but zero bytes",
        None if bytes.len() < 512 => "too short for a kernel",
        None if bytes.is_ascii() => "a text file",
        None => "of no known kind",
    }
}
