//! Kernels with a Multiboot header (Multiboot specification 0.6.96): ELF files, and flat ones whose
//! header carries the addresses.

use engine::CpuState;

use super::elf::{self, Elf};
use super::image::Image;
use super::place::Placer;
use super::{BootError, BootMode, BootSpec, cmdline_bytes, cpu, write};
use crate::memory::{E820Entry, FRAME, GuestRam, LOW_RAM_END};

const HEADER_MAGIC: u32 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The header lies within this many bytes of the file's start.
const SEARCH: u64 = 8192;
/// Header flags: what the kernel needs (bits 0 to 15). Page-aligned modules, memory information and
/// a video mode are known; the last is not offered, and the information says so.
const KNOWN_NEEDS: u32 = 0b111;
const NEEDS: u32 = 0xffff;
/// Header flag: the address fields are valid and replace an executable format's.
const HAS_ADDRESSES: u32 = 1 << 16;

const INFO_LEN: u64 = 120;
const MODULE_LEN: u64 = 16;
const MEMORY_LEN: u64 = 24;
const LOADER_NAME: &[u8] = b"Lockstep\0";
const CMDLINE_MAX: usize = 4095;
/// Conventional memory in KiB, as the BIOS of a PC says.
const LOWER_KIB: u32 = 639;

/// A Multiboot header and where it was found.
struct Header {
    at: u64,
    flags: u32,
}

pub(super) fn recognises(image: Image<'_>) -> bool {
    find(image).is_some_and(|header| header.flags & HAS_ADDRESSES != 0 || elf::recognises(image))
}

fn find(image: Image<'_>) -> Option<Header> {
    const WHAT: &str = "Multiboot header";
    (0..SEARCH.min(image.len())).step_by(4).find_map(|at| {
        let magic = image.u32(WHAT, at).ok()?;
        if magic != HEADER_MAGIC {
            return None;
        }
        let flags = image.u32(WHAT, at + 4).ok()?;
        let sum = image.u32(WHAT, at + 8).ok()?;
        let valid = magic.wrapping_add(flags).wrapping_add(sum) == 0;
        valid.then_some(Header { at, flags })
    })
}

pub(super) fn load(ram: &GuestRam, spec: &BootSpec) -> Result<CpuState, BootError> {
    let image = Image::new(&spec.kernel);
    let wrong = |reason| BootError::WrongMode {
        mode: BootMode::Multiboot,
        reason,
    };
    let header =
        find(image).ok_or_else(|| wrong("there is no Multiboot header in its first 8192 bytes"))?;
    let unknown = header.flags & NEEDS & !KNOWN_NEEDS;
    if unknown != 0 {
        return Err(BootError::Unsupported(format!(
            "its Multiboot header needs features that are not known (flags {unknown:#x})"
        )));
    }
    let cmdline = cmdline_bytes(&spec.cmdline, CMDLINE_MAX)?;
    let mut placer = Placer::new(ram);
    let (entry, end) = if header.flags & HAS_ADDRESSES != 0 {
        load_flat(ram, &mut placer, image, &header)?
    } else if elf::recognises(image) {
        let elf = Elf::parse(image)?;
        let end = elf.load(ram, &mut placer)?;
        (elf.physical_entry(), end)
    } else {
        return Err(wrong("it is not ELF and its header carries no addresses"));
    };
    let entry = u32::try_from(entry)
        .map_err(|_| BootError::Malformed(format!("its entry {entry:#x} lies above 4 GiB")))?;
    let module = match &spec.initrd {
        None => None,
        Some(module) => Some(place_module(ram, &mut placer, end, module)?),
    };
    let (gdt, info) = put_info(ram, &mut placer, &cmdline, module)?;
    let mut state = cpu::protected(gdt, entry);
    state.gpr[0] = LOADER_MAGIC;
    state.gpr[3] = info;
    Ok(state)
}

/// Loads by the header's address fields. Returns the entry and the end of the kernel.
fn load_flat(
    ram: &GuestRam,
    placer: &mut Placer,
    image: Image<'_>,
    header: &Header,
) -> Result<(u64, u64), BootError> {
    const WHAT: &str = "Multiboot header";
    let field = |i: u64| image.u32(WHAT, header.at + 12 + i * 4).map(u64::from);
    let (header_addr, load, load_end, bss_end) = (field(0)?, field(1)?, field(2)?, field(3)?);
    let broken = || {
        BootError::Malformed(format!(
            "its Multiboot addresses contradict each other: header {header_addr:#x}, load \
             {load:#x} to {load_end:#x}, BSS to {bss_end:#x}"
        ))
    };
    let before_header = header_addr.checked_sub(load).ok_or_else(broken)?;
    let offset = header.at.checked_sub(before_header).ok_or_else(broken)?;
    let bytes = match load_end {
        // To the end of the file.
        0 => image.rest("kernel", offset)?,
        end => {
            let len = end.checked_sub(load).ok_or_else(broken)?;
            image.slice("kernel", offset, len)?
        }
    };
    let data_end = load + bytes.len() as u64;
    if bss_end != 0 && bss_end < data_end {
        return Err(broken());
    }
    let end = bss_end.max(data_end);
    placer.claim("kernel", load, end - load)?;
    write(ram, load, bytes)?;
    Ok((field(4)?, end))
}

/// The module behind the kernel, page-aligned: (start, end).
fn place_module(
    ram: &GuestRam,
    placer: &mut Placer,
    kernel_end: u64,
    module: &[u8],
) -> Result<(u64, u64), BootError> {
    let size = module.len() as u64;
    let at = placer
        .lowest(kernel_end, size)
        .ok_or(BootError::InitrdTooBig {
            size,
            limit: ram.size().min(LOW_RAM_END),
        })?;
    write(ram, at, module)?;
    Ok((at, at + size))
}

/// Writes the GDT and the Multiboot information with what it points to, all below 3 GiB. Returns
/// the addresses of both.
fn put_info(
    ram: &GuestRam,
    placer: &mut Placer,
    cmdline: &[u8],
    module: Option<(u64, u64)>,
) -> Result<(u64, u64), BootError> {
    let memory = ram.e820();
    let map_len = memory.len() as u64 * MEMORY_LEN;
    let strings_len = cmdline.len() as u64 + LOADER_NAME.len() as u64;
    let size = cpu::GDT_LEN + INFO_LEN + MODULE_LEN + map_len + strings_len;
    let gdt = placer
        .lowest(FRAME, size)
        .ok_or(BootError::NoRoom { size })?;
    let info = gdt + cpu::GDT_LEN;
    let modules = info + INFO_LEN;
    let map = modules + MODULE_LEN;
    let cmdline_at = map + map_len;
    let name_at = cmdline_at + cmdline.len() as u64;

    let mut fields = [0u32; INFO_LEN as usize / 4];
    // Memory, command line, modules, map, loader's name.
    fields[0] = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
    fields[1] = LOWER_KIB;
    fields[2] = (ram.size().min(LOW_RAM_END) / 1024) as u32 - 1024;
    fields[4] = cmdline_at as u32;
    fields[5] = u32::from(module.is_some());
    fields[6] = modules as u32;
    fields[11] = map_len as u32;
    fields[12] = map as u32;
    fields[16] = name_at as u32;
    let (start, end) = module.unwrap_or_default();
    // An empty string for the module: the final zero of the command line.
    let module_name = name_at as u32 - 1;
    let module = [start as u32, end as u32, module_name, 0];

    let mut block = cpu::gdt32();
    block.extend(fields.iter().chain(&module).flat_map(|w| w.to_le_bytes()));
    memory
        .iter()
        .for_each(|entry| push_memory(&mut block, entry));
    block.extend(cmdline);
    block.extend(LOADER_NAME);
    write(ram, gdt, &block)?;
    Ok((gdt, info))
}

/// An entry of the memory map; its size field does not count itself.
fn push_memory(block: &mut Vec<u8>, entry: &E820Entry) {
    block.extend((MEMORY_LEN as u32 - 4).to_le_bytes());
    block.extend(entry.start.to_le_bytes());
    block.extend(entry.len.to_le_bytes());
    block.extend((entry.kind as u32).to_le_bytes());
}
