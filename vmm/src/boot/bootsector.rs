//! Raw images that start with a boot sector, entered as a PC's BIOS would. The machine has no BIOS:
//! such an image must bring all that it needs, and is loaded whole.

use engine::CpuState;

use super::image::Image;
use super::place::Placer;
use super::{BootError, BootMode, BootSpec, cpu, write};
use crate::memory::GuestRam;

const SECTOR: u64 = 512;
const LOAD: u16 = 0x7c00;
/// End of conventional memory, where the BIOS's data begin.
const END: u64 = 0x9_fc00;
/// The first hard disk's BIOS number.
const DRIVE: u64 = 0x80;

/// Whether it is a boot sector for sure. The start of an EFI program, as of a truncated Linux
/// kernel, may look like one; it must be asked for by name.
pub(super) fn recognises(image: Image<'_>) -> bool {
    is_bootable(image) && !image.has(0, b"MZ")
}

fn is_bootable(image: Image<'_>) -> bool {
    image.len() >= SECTOR && image.has(SECTOR - 2, &[0x55, 0xaa])
}

pub(super) fn load(ram: &GuestRam, spec: &BootSpec) -> Result<CpuState, BootError> {
    let image = Image::new(&spec.kernel);
    let wrong = |reason| BootError::WrongMode {
        mode: BootMode::Bootsector,
        reason,
    };
    if image.len() < SECTOR {
        return Err(BootError::Truncated {
            what: "boot sector",
            need: SECTOR,
            have: image.len(),
        });
    }
    if !is_bootable(image) {
        return Err(wrong("bytes 510 and 511 are not 55 AA"));
    }
    if spec.initrd.is_some() || !spec.cmdline.is_empty() {
        return Err(wrong(
            "a boot sector takes neither an initrd nor a command line",
        ));
    }
    let start = u64::from(LOAD);
    if image.len() > END - start {
        return Err(BootError::Unsupported(format!(
            "the boot image has {} bytes, and between {start:#x} and {END:#x} there is room for {}",
            image.len(),
            END - start
        )));
    }
    Placer::new(ram).claim("boot image", start, image.len())?;
    write(ram, start, &spec.kernel)?;
    let mut state = cpu::real(LOAD);
    state.gpr[2] = DRIVE;
    Ok(state)
}
