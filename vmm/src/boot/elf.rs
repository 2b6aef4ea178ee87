//! ELF executables: program headers, loading by physical address, notes (System V gABI, chapter 5).

use super::image::Image;
use super::place::Placer;
use super::{BootError, write};
use crate::memory::GuestRam;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// More program headers than this are no kernel's.
const MAX_SEGMENTS: u16 = 256;

pub(super) fn recognises(image: Image<'_>) -> bool {
    // Class 1 or 2, little-endian, for this machine.
    image.has(0, b"\x7fELF")
        && (image.has(4, &[1, 1]) || image.has(4, &[2, 1]))
        && (image.has(18, &EM_386.to_le_bytes()) || image.has(18, &EM_X86_64.to_le_bytes()))
}

/// The parts of an ELF file that a loader needs.
pub(super) struct Elf<'a> {
    image: Image<'a>,
    /// Virtual address of the entry.
    entry: u64,
    segments: Vec<Segment>,
}

/// A program header.
struct Segment {
    kind: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

impl<'a> Elf<'a> {
    /// Call only with what [`recognises`] has accepted.
    pub(super) fn parse(image: Image<'a>) -> Result<Self, BootError> {
        const WHAT: &str = "ELF header";
        let wide = image.u8(WHAT, 4)? == 2;
        let (entry, table, sizes_at) = if wide {
            (image.u64(WHAT, 24)?, image.u64(WHAT, 32)?, 54)
        } else {
            let entry = u64::from(image.u32(WHAT, 24)?);
            (entry, u64::from(image.u32(WHAT, 28)?), 42)
        };
        let entry_size = u64::from(image.u16(WHAT, sizes_at)?);
        let count = image.u16(WHAT, sizes_at + 2)?;
        let least = if wide { 56 } else { 32 };
        if count == 0 || count > MAX_SEGMENTS || entry_size < least {
            return Err(BootError::Malformed(format!(
                "it has {count} program headers of {entry_size} bytes"
            )));
        }
        let segments = (0..u64::from(count))
            .map(|i| Segment::parse(image, wide, table.saturating_add(i * entry_size)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            image,
            entry,
            segments,
        })
    }

    /// Writes the segments to their physical addresses. Returns the end of the highest.
    pub(super) fn load(&self, ram: &GuestRam, placer: &mut Placer) -> Result<u64, BootError> {
        let mut end = 0;
        for segment in self.loaded() {
            if segment.file_size > segment.memory_size {
                return Err(BootError::Malformed(format!(
                    "a segment has {} bytes in the file, but {} in memory",
                    segment.file_size, segment.memory_size
                )));
            }
            let bytes = self
                .image
                .slice("segment", segment.offset, segment.file_size)?;
            placer.claim("segment", segment.paddr, segment.memory_size)?;
            write(ram, segment.paddr, bytes)?;
            end = end.max(segment.paddr + segment.memory_size);
        }
        if end == 0 {
            return Err(BootError::Malformed("it has nothing to load".into()));
        }
        Ok(end)
    }

    /// The entry's physical address: by the segment that holds it, else as it stands.
    pub(super) fn physical_entry(&self) -> u64 {
        self.loaded()
            .find_map(|segment| {
                let within = self.entry.checked_sub(segment.vaddr)?;
                (within < segment.memory_size).then(|| segment.paddr.wrapping_add(within))
            })
            .unwrap_or(self.entry)
    }

    /// The content of the first note with this name (without its zero) and type.
    pub(super) fn note(&self, name: &[u8], kind: u32) -> Result<Option<&'a [u8]>, BootError> {
        for segment in self.segments.iter().filter(|s| s.kind == PT_NOTE) {
            let bytes = self
                .image
                .slice("note segment", segment.offset, segment.file_size)?;
            let found = find_note(Image::new(bytes), segment.align, name, kind);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn loaded(&self) -> impl Iterator<Item = &Segment> {
        self.segments
            .iter()
            .filter(|s| s.kind == PT_LOAD && s.memory_size > 0)
    }
}

impl Segment {
    fn parse(image: Image<'_>, wide: bool, at: u64) -> Result<Self, BootError> {
        const WHAT: &str = "program header";
        let header = Image::new(image.slice(WHAT, at, if wide { 56 } else { 32 })?);
        let word = |at| header.u32(WHAT, at).map(u64::from);
        let kind = header.u32(WHAT, 0)?;
        Ok(if wide {
            Self {
                kind,
                offset: header.u64(WHAT, 8)?,
                vaddr: header.u64(WHAT, 16)?,
                paddr: header.u64(WHAT, 24)?,
                file_size: header.u64(WHAT, 32)?,
                memory_size: header.u64(WHAT, 40)?,
                align: header.u64(WHAT, 48)?,
            }
        } else {
            Self {
                kind,
                offset: word(4)?,
                vaddr: word(8)?,
                paddr: word(12)?,
                file_size: word(16)?,
                memory_size: word(20)?,
                align: word(28)?,
            }
        })
    }
}

/// Walks the notes of one segment; stops at the first that does not fit in it.
fn find_note<'a>(notes: Image<'a>, align: u64, name: &[u8], kind: u32) -> Option<&'a [u8]> {
    const WHAT: &str = "note";
    const HEADER: u64 = 12;
    // Notes are aligned to 4 bytes, but to 8 in a segment that says so.
    let align = if align == 8 { 8 } else { 4 };
    let mut at = 0u64;
    loop {
        let name_size = u64::from(notes.u32(WHAT, at).ok()?);
        let size = u64::from(notes.u32(WHAT, at + 4).ok()?);
        let found_kind = notes.u32(WHAT, at + 8).ok()?;
        let content_at = (at + HEADER + name_size).next_multiple_of(align);
        let found_name = notes.slice(WHAT, at + HEADER, name_size).ok()?;
        let content = notes.slice(WHAT, content_at, size).ok()?;
        if found_kind == kind && found_name.strip_suffix(&[0]) == Some(name) {
            return Some(content);
        }
        at = (content_at + size).next_multiple_of(align);
    }
}
