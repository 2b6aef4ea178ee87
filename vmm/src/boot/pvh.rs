//! ELF kernels by the PVH protocol: entered in 32-bit protected mode with EBX at a start info
//! (Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h).

use engine::CpuState;

use super::elf::{self, Elf};
use super::image::Image;
use super::place::Placer;
use super::{BootError, BootMode, BootSpec, bzimage, cmdline_bytes, cpu, payload, write};
use crate::memory::{FRAME, GuestRam};

/// XEN_ELFNOTE_PHYS32_ENTRY (Xen, public/elfnote.h).
const PHYS32_ENTRY: u32 = 18;
const START_MAGIC: u32 = 0x336e_c578;
const START_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;
const MEMORY_LEN: u64 = 24;
/// Linux cuts a longer command line silently.
const CMDLINE_MAX: usize = 2047;

pub(super) fn load(ram: &GuestRam, spec: &BootSpec) -> Result<CpuState, BootError> {
    let file = Image::new(&spec.kernel);
    let payload = bzimage::recognises(file)
        .then(|| payload::extract(file))
        .transpose()?;
    let image = payload.as_deref().map_or(file, Image::new);
    if !elf::recognises(image) {
        return Err(BootError::WrongMode {
            mode: BootMode::Pvh,
            reason: "it is not an ELF file for x86",
        });
    }
    let elf = Elf::parse(image)?;
    let entry = entry(&elf)?;
    let cmdline = cmdline_bytes(&spec.cmdline, CMDLINE_MAX)?;
    let mut placer = Placer::new(ram);
    elf.load(ram, &mut placer)?;
    let initrd = match &spec.initrd {
        None => None,
        Some(initrd) => {
            let size = initrd.len() as u64;
            let at = placer
                .highest(u64::MAX, size)
                .ok_or(BootError::InitrdTooBig {
                    size,
                    limit: ram.size(),
                })?;
            write(ram, at, initrd)?;
            Some((at, size))
        }
    };
    let memory = ram.e820();
    let size = cpu::GDT_LEN
        + START_LEN
        + MODULE_LEN
        + memory.len() as u64 * MEMORY_LEN
        + cmdline.len() as u64;
    let gdt = placer
        .lowest(FRAME, size)
        .ok_or(BootError::NoRoom { size })?;
    let start = gdt + cpu::GDT_LEN;
    let modules = start + START_LEN;
    let map = modules + MODULE_LEN;
    let cmdline_at = map + memory.len() as u64 * MEMORY_LEN;

    let mut block = cpu::gdt32();
    let mut words32 = |words: &[u32]| block.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    let split = |value: u64| [value as u32, (value >> 32) as u32];
    // Version 1 of the structure, no flags.
    words32(&[START_MAGIC, 1, 0, u32::from(initrd.is_some())]);
    for address in [modules, cmdline_at, 0, map] {
        words32(&split(address));
    }
    words32(&[memory.len() as u32, 0]);
    let (module, module_len) = initrd.unwrap_or_default();
    for value in [module, module_len, 0, 0] {
        words32(&split(value));
    }
    for entry in &memory {
        words32(&split(entry.start));
        words32(&split(entry.len));
        words32(&[entry.kind as u32, 0]);
    }
    block.extend(&cmdline);
    write(ram, gdt, &block)?;

    let mut state = cpu::protected(gdt, entry);
    state.gpr[3] = start;
    Ok(state)
}

/// The entry that the note names, a physical address.
fn entry(elf: &Elf<'_>) -> Result<u32, BootError> {
    let content = elf.note(b"Xen", PHYS32_ENTRY)?.ok_or_else(|| {
        BootError::Unsupported(
            "it is an ELF file with neither a PVH note (Linux: CONFIG_PVH) nor a Multiboot header"
                .into(),
        )
    })?;
    let image = Image::new(content);
    let entry = match content.len() {
        4 => u64::from(image.u32("PVH note", 0)?),
        8 => image.u64("PVH note", 0)?,
        n => {
            return Err(BootError::Malformed(format!(
                "its PVH note has {n} bytes instead of 4 or 8"
            )));
        }
    };
    u32::try_from(entry)
        .map_err(|_| BootError::Malformed(format!("its PVH entry {entry:#x} lies above 4 GiB")))
}
