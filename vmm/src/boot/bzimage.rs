//! Linux bzImage by the 64-bit boot protocol, or the 32-bit one where the kernel has no 64-bit
//! entry (Linux, Documentation/arch/x86/boot.rst; the offsets below are those of its header table
//! and of zero-page.rst).

use engine::CpuState;

use super::image::Image;
use super::place::Placer;
use super::{BootError, BootMode, BootSpec, cmdline_bytes, cpu, write};
use crate::memory::{E820Entry, FRAME, GuestRam};

const SECTOR: u64 = 512;
/// Where the protected-mode code goes if the header names no better place (1 MiB).
const DEFAULT_LOAD: u64 = 0x10_0000;
/// Offset of the 64-bit entry from the load address.
const ENTRY_64: u64 = 0x200;
/// Entries that the zero page has room for.
const MAX_E820: usize = 128;

/// Offset of the setup header, in the file and in the zero page alike.
const HEADER: u64 = 0x1f1;
/// Where the header may end at most, in the zero page.
const HEADER_MAX_END: u64 = 0x290;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;

/// Protocol versions: the first that has `initrd_addr_max`, `cmdline_size`, `pref_address` and
/// `init_size`, `xloadflags`.
const V2_03: u16 = 0x203;
const V2_06: u16 = 0x206;
const V2_10: u16 = 0x20a;
const V2_12: u16 = 0x20c;

pub(super) fn recognises(image: Image<'_>) -> bool {
    image.has(0x1fe, &[0x55, 0xaa]) && image.has(0x202, b"HdrS")
}

/// What the loader needs from the setup header.
struct Header<'a> {
    /// The header's bytes, from [`HEADER`] on.
    bytes: &'a [u8],
    /// The protected-mode code.
    code: &'a [u8],
    has_64bit_entry: bool,
    /// Where the code goes.
    load: u64,
    /// Memory that the kernel needs from `load` on, in bytes.
    needs: u64,
    /// First address that the initrd may not use.
    initrd_limit: u64,
    /// Longest command line, in bytes without the final zero.
    cmdline_max: usize,
}

impl<'a> Header<'a> {
    fn parse(image: Image<'a>) -> Result<Self, BootError> {
        const WHAT: &str = "setup header";
        let version = image.u16(WHAT, 0x206)?;
        let loadflags = image.u8(WHAT, 0x211)?;
        if version < V2_03 || loadflags & LOADED_HIGH == 0 {
            return Err(BootError::Unsupported(format!(
                "its boot protocol {}.{:02} is too old or it is a zImage; bzImage 2.03 (Linux \
                 2.4.18) or later is needed",
                version >> 8,
                version & 0xff
            )));
        }
        let code = Self::code(image)?;
        // The header ends where the jump over it lands.
        let end = 0x202 + u64::from(image.u8(WHAT, 0x201)?);
        let end = end.clamp(0x230, HEADER_MAX_END);
        let (load, needs) = if version >= V2_10 {
            let load = image.u64(WHAT, 0x258)?;
            (load, u64::from(image.u32(WHAT, 0x260)?))
        } else {
            (DEFAULT_LOAD, 0)
        };
        let xloadflags = if version >= V2_12 {
            image.u16(WHAT, 0x236)?
        } else {
            0
        };
        let cmdline_max = if version >= V2_06 {
            image.u32(WHAT, 0x238)?
        } else {
            255
        };
        Ok(Self {
            bytes: image.slice(WHAT, HEADER, end - HEADER)?,
            code,
            has_64bit_entry: xloadflags & XLF_KERNEL_64 != 0,
            load,
            needs: needs.max(code.len() as u64),
            initrd_limit: u64::from(image.u32(WHAT, 0x22c)?) + 1,
            // What a broken header asks for must not become an allocation.
            cmdline_max: cmdline_max.min(0xffff) as usize,
        })
    }

    /// The protected-mode code: what follows the real-mode sectors.
    fn code(image: Image<'a>) -> Result<&'a [u8], BootError> {
        const WHAT: &str = "protected-mode code";
        // Zero means four, for very old kernels.
        let sectors = match image.u8(WHAT, HEADER)? {
            0 => 4,
            n => u64::from(n),
        };
        let start = (sectors + 1) * SECTOR;
        // The header counts it in units of 16 bytes, rounded up.
        let units = u64::from(image.u32(WHAT, 0x1f4)?);
        image.slice(WHAT, start, (units * 16).saturating_sub(15).max(1))?;
        image.rest(WHAT, start)
    }
}

pub(super) fn load(ram: &GuestRam, spec: &BootSpec) -> Result<CpuState, BootError> {
    let image = Image::new(&spec.kernel);
    if !recognises(image) {
        return Err(BootError::WrongMode {
            mode: BootMode::Bzimage,
            reason: "the signature HdrS is missing at offset 0x202",
        });
    }
    let header = Header::parse(image)?;
    let mut placer = Placer::new(ram);
    placer.claim("kernel with its working space", header.load, header.needs)?;
    write(ram, header.load, header.code)?;

    let cmdline = cmdline_bytes(&spec.cmdline, header.cmdline_max)?;
    let cmdline_at = put(ram, &mut placer, &cmdline)?;
    let initrd = place_initrd(ram, &mut placer, &header, spec.initrd.as_deref())?;
    let zero_page = zero_page(&header, &ram.e820(), cmdline_at, initrd)?;
    let zero_page_at = put(ram, &mut placer, &zero_page)?;
    if header.has_64bit_entry {
        let gdt = put(ram, &mut placer, &cpu::gdt64())?;
        let tables = put_identity_map(ram, &mut placer)?;
        let mut state = cpu::long(gdt, tables, header.load + ENTRY_64);
        state.gpr[6] = zero_page_at;
        Ok(state)
    } else {
        let gdt = put(ram, &mut placer, &cpu::gdt32())?;
        let entry = u32::try_from(header.load)
            .map_err(|_| BootError::Malformed("its load address lies above 4 GiB".into()))?;
        let mut state = cpu::protected(gdt, entry);
        state.gpr[6] = zero_page_at;
        Ok(state)
    }
}

/// Writes bytes to the lowest free frames.
fn put(ram: &GuestRam, placer: &mut Placer, bytes: &[u8]) -> Result<u64, BootError> {
    let size = bytes.len() as u64;
    let at = placer
        .lowest(FRAME, size)
        .ok_or(BootError::NoRoom { size })?;
    write(ram, at, bytes)?;
    Ok(at)
}

/// The initrd as high as it may lie: (address, size), zeros without one.
fn place_initrd(
    ram: &GuestRam,
    placer: &mut Placer,
    header: &Header<'_>,
    initrd: Option<&[u8]>,
) -> Result<(u32, u32), BootError> {
    let Some(initrd) = initrd else {
        return Ok((0, 0));
    };
    let (size, limit) = (initrd.len() as u64, header.initrd_limit);
    let too_big = || BootError::InitrdTooBig {
        size,
        limit: limit.min(ram.size()),
    };
    let at = placer.highest(limit, size).ok_or_else(too_big)?;
    write(ram, at, initrd)?;
    let narrow = |value| u32::try_from(value).map_err(|_| too_big());
    Ok((narrow(at)?, narrow(size)?))
}

/// `struct boot_params`.
fn zero_page(
    header: &Header<'_>,
    e820: &[E820Entry],
    cmdline: u64,
    (initrd, initrd_size): (u32, u32),
) -> Result<Vec<u8>, BootError> {
    let mut page = vec![0; FRAME as usize];
    let mut set = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    let narrow = |value: u64| {
        u32::try_from(value)
            .map_err(|_| BootError::Malformed("its load address lies above 4 GiB".into()))
    };
    set(HEADER as usize, header.bytes);
    set(0x1fa, &0xffffu16.to_le_bytes()); // vid_mode: normal
    set(0x210, &[0xff]); // type_of_loader: none that has a number
    set(0x214, &narrow(header.load)?.to_le_bytes()); // code32_start
    set(0x218, &initrd.to_le_bytes());
    set(0x21c, &initrd_size.to_le_bytes());
    set(0x228, &narrow(cmdline)?.to_le_bytes());
    let entries = &e820[..e820.len().min(MAX_E820)];
    set(0x1e8, &[entries.len() as u8]);
    for (i, entry) in entries.iter().enumerate() {
        let at = 0x2d0 + i * 20;
        set(at, &entry.start.to_le_bytes());
        set(at + 8, &entry.len.to_le_bytes());
        set(at + 16, &(entry.kind as u32).to_le_bytes());
    }
    Ok(page)
}

/// Page tables that map the first 4 GiB to themselves with 2 MiB pages; returns the top one's
/// address.
fn put_identity_map(ram: &GuestRam, placer: &mut Placer) -> Result<u64, BootError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const DIRECTORIES: u64 = 4;
    let size = (2 + DIRECTORIES) * FRAME;
    let base = placer
        .lowest(FRAME, size)
        .ok_or(BootError::NoRoom { size })?;
    let mut tables = Vec::with_capacity(size as usize);
    let mut push_table = |entries: &mut dyn Iterator<Item = u64>| {
        let mut table: Vec<u64> = entries.collect();
        table.resize(512, 0);
        tables.extend(table.into_iter().flat_map(u64::to_le_bytes));
    };
    push_table(&mut std::iter::once((base + FRAME) | PRESENT_WRITABLE));
    push_table(&mut (0..DIRECTORIES).map(|i| (base + (2 + i) * FRAME) | PRESENT_WRITABLE));
    for directory in 0..DIRECTORIES {
        push_table(&mut (0..512).map(|i| (directory << 30 | i << 21) | LARGE | PRESENT_WRITABLE));
    }
    write(ram, base, &tables)?;
    Ok(base)
}
