//! Puts a kernel into RAM and says in which state the vCPU enters it.
//!
//! There is no firmware: the loader does what the boot protocol of each kernel format asks of a
//! boot loader and leaves the vCPU at the kernel's first instruction. The outcome is a function of
//! the [`BootSpec`] and the RAM size alone, so both replicas start from the same state.

mod bootsector;
mod bzimage;
mod cpu;
mod elf;
mod image;
mod multiboot;
mod payload;
mod place;
mod pvh;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use engine::CpuState;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use crate::memory::GuestRam;
use image::Image;

/// Largest kernel or initrd file, in bytes (1 GiB): more is a wrong file.
const MAX_FILE: u64 = 1 << 30;

/// By which protocol a kernel is entered.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lower")]
pub enum BootMode {
    /// As the file's content says.
    #[default]
    Auto,
    /// Linux bzImage, by the 64-bit boot protocol, or the 32-bit one for a 32-bit kernel (Linux,
    /// Documentation/arch/x86/boot.rst).
    Bzimage,
    /// ELF with a PVH entry note, entered in 32-bit protected mode (Xen, docs/misc/pvh.pandoc). Of a
    /// bzImage, the ELF that is packed in it.
    Pvh,
    /// ELF or flat kernel with a Multiboot header (Multiboot specification 0.6.96).
    Multiboot,
    /// A raw image whose first sector ends in 55 AA, at 0000:7C00 in real mode. There is no BIOS
    /// to call; the whole image is loaded.
    Bootsector,
}

impl fmt::Display for BootMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Bzimage => "bzimage",
            Self::Pvh => "pvh",
            Self::Multiboot => "multiboot",
            Self::Bootsector => "bootsector",
        })
    }
}

/// What to boot.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootSpec {
    /// The kernel file's content.
    #[serde(with = "serde_bytes")]
    pub kernel: Vec<u8>,
    /// The initial RAM disk; the one module of a multiboot kernel.
    #[serde(with = "serde_bytes")]
    pub initrd: Option<Vec<u8>>,
    /// The kernel's command line.
    pub cmdline: String,
    pub mode: BootMode,
}

impl fmt::Debug for BootSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootSpec")
            .field("kernel", &format_args!("{} bytes", self.kernel.len()))
            .field("initrd", &self.initrd.as_ref().map(Vec::len))
            .field("cmdline", &self.cmdline)
            .field("mode", &self.mode)
            .finish()
    }
}

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot read the {what} {path}")]
    Read {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the {what} {path} has {size} bytes; more than 1 GiB is not one")]
    FileTooBig {
        what: &'static str,
        path: PathBuf,
        size: u64,
    },
    #[error(
        "the kernel file is not a kernel that this machine can boot: it is {found}; it must be a \
         Linux bzImage, an ELF with a PVH note, a multiboot kernel or a boot sector"
    )]
    NotAKernel { found: &'static str },
    #[error("the kernel file is not a {mode} kernel: {reason}")]
    WrongMode {
        mode: BootMode,
        reason: &'static str,
    },
    #[error(
        "the kernel file is truncated: its {what} needs bytes up to {need}, but it ends at {have}"
    )]
    Truncated {
        what: &'static str,
        need: u64,
        have: u64,
    },
    #[error("the kernel file is broken: {0}")]
    Malformed(String),
    #[error("this kernel cannot be booted: {0}")]
    Unsupported(String),
    #[error(
        "the kernel does not fit: its {what} lies at {start:#x} to {end:#x}, and RAM ends at \
         {ram_end:#x}; give the machine more memory"
    )]
    KernelTooBig {
        what: &'static str,
        start: u64,
        end: u64,
        ram_end: u64,
    },
    #[error(
        "the initrd of {size} bytes does not fit between the kernel and {limit:#x}; give the \
         machine more memory or a smaller initrd"
    )]
    InitrdTooBig { size: u64, limit: u64 },
    #[error("there is no room in RAM for the boot information of {size} bytes")]
    NoRoom { size: u64 },
    #[error("the command line has {len} bytes; this kernel takes {max}")]
    CmdlineTooLong { len: usize, max: usize },
    #[error("the command line contains a zero byte")]
    CmdlineZero,
    #[error("guest memory refused the kernel")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

impl BootSpec {
    /// Reads the kernel and the initrd from files.
    ///
    /// # Errors
    /// A file that cannot be read or has more than 1 GiB. The content is looked at in [`load`].
    pub fn from_files(
        kernel: &Path,
        initrd: Option<&Path>,
        cmdline: impl Into<String>,
        mode: BootMode,
    ) -> Result<Self, BootError> {
        Ok(Self {
            kernel: read("kernel", kernel)?,
            initrd: initrd.map(|path| read("initrd", path)).transpose()?,
            cmdline: cmdline.into(),
            mode,
        })
    }

    /// A hash of everything that the boot depends on besides the RAM's size. Two replicas that
    /// start together must agree on it.
    pub fn digest(&self) -> u64 {
        let Self {
            kernel,
            initrd,
            cmdline,
            mode,
        } = self;
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(mode.to_string().as_bytes());
        for part in [
            Some(kernel.as_slice()),
            initrd.as_deref(),
            Some(cmdline.as_bytes()),
        ] {
            // A length before each part keeps parts apart; u64::MAX is no length.
            let len = part.map_or(u64::MAX, |bytes| bytes.len() as u64);
            hasher.update(&len.to_le_bytes());
            hasher.update(part.unwrap_or_default());
        }
        hasher.digest()
    }

    /// The protocol by which the kernel would be entered: [`Self::mode`], or for `Auto` what the
    /// content says.
    ///
    /// # Errors
    /// [`BootError::NotAKernel`] with what the file is.
    pub fn detect(&self) -> Result<BootMode, BootError> {
        if self.mode != BootMode::Auto {
            return Ok(self.mode);
        }
        let image = Image::new(&self.kernel);
        let modes = [
            (BootMode::Bzimage, bzimage::recognises(image)),
            (BootMode::Multiboot, multiboot::recognises(image)),
            (BootMode::Pvh, elf::recognises(image)),
            (BootMode::Bootsector, bootsector::recognises(image)),
        ];
        match modes.into_iter().find(|(_, yes)| *yes) {
            Some((mode, _)) => Ok(mode),
            None => Err(BootError::NotAKernel {
                found: image::describe(&self.kernel),
            }),
        }
    }
}

/// Loads a kernel and returns the state in which the vCPU enters it, at position 0.
///
/// RAM must be zero, as after [`GuestRam::new`] or [`GuestRam::clear`]. What is written counts as
/// written from outside ([`GuestRam::take_written`]). On an error RAM may have been written in part.
///
/// # Errors
/// A file that is truncated, broken or no kernel; a kernel, initrd or command line that does not
/// fit.
pub fn load(ram: &GuestRam, spec: &BootSpec) -> Result<CpuState, BootError> {
    if spec.cmdline.contains('\0') {
        return Err(BootError::CmdlineZero);
    }
    match spec.detect()? {
        BootMode::Auto | BootMode::Bzimage => bzimage::load(ram, spec),
        BootMode::Pvh => pvh::load(ram, spec),
        BootMode::Multiboot => multiboot::load(ram, spec),
        BootMode::Bootsector => bootsector::load(ram, spec),
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, BootError> {
    let failed = |source| BootError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > MAX_FILE {
        return Err(BootError::FileTooBig {
            what,
            path: path.to_owned(),
            size,
        });
    }
    std::fs::read(path).map_err(failed)
}

fn write(ram: &GuestRam, addr: u64, bytes: &[u8]) -> Result<(), BootError> {
    ram.memory()
        .write_slice(bytes, GuestAddress(addr))
        .map_err(BootError::Memory)
}

/// The command line with its final zero, if it has at most `max` bytes without it.
fn cmdline_bytes(cmdline: &str, max: usize) -> Result<Vec<u8>, BootError> {
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong {
            len: cmdline.len(),
            max,
        });
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    Ok(bytes)
}
