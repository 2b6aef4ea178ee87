//! What the rig's machine is made of: a Debian kernel with KVM, and three disks.
//!
//! | disk | in the rig | what |
//! |---|---|---|
//! | root | `/` | the guest's own root disk, whose userland serves the rig as well; writes are dropped |
//! | image | `/rig/image` | the cache of `guest-images` with the one guest in it; read only |
//! | work | `/rig/work` | our programs in `bin`, the agent, and room for the machines' files |

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use guest_images::{GuestImage, Options, Progress, StockKernel, StockRecipe};

use super::variant::Processor;

/// The distribution's kernel: the guest's own, made for clouds, comes without KVM's modules.
const KERNEL: &str = "linux-image-amd64";

/// What the kernel needs for the disks and the port, then KVM, which the script loads last.
const AMD_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "crc32c_generic",
    "ext4",
    "irqbypass",
    "kvm",
    "kvm_amd",
];

const INTEL_MODULES: &[&str] = &[
    "ata_piix",
    "sd_mod",
    "crc32c_generic",
    "ext4",
    "irqbypass",
    "kvm",
    "kvm_intel",
];

const INIT: &str = include_str!("init.sh");
const AGENT: &str = include_str!("agent.sh");

/// Bytes of the work disk; sparse.
const WORK_BYTES: u64 = 16 << 30;

pub struct Parts {
    kernels: Vec<(Processor, StockKernel)>,
    pub root: PathBuf,
    pub image: PathBuf,
    pub work: PathBuf,
    /// For what else a machine needs; removed at the end.
    pub folder: PathBuf,
}

impl Parts {
    /// The kernel for machines with `processor`.
    pub fn kernel(&self, processor: Processor) -> Result<&StockKernel> {
        let mut kernels = self.kernels.iter();
        let found = kernels.find(|(of, _)| *of == processor);
        Ok(&found.context("no kernel was made for this processor")?.1)
    }
}

/// Makes or finds everything that machines with `processors` need. `programs` go into the rig's `bin`;
/// the work disk is made in `folder`.
pub fn make(processors: &[Processor], programs: &[PathBuf], folder: &Path) -> Result<Parts> {
    let guest = guest_images::build(&Options::default(), &mut show)?;
    let mut kernels = Vec::new();
    for &processor in processors {
        let recipe = StockRecipe {
            cache: None,
            package: KERNEL,
            modules: match processor {
                Processor::Amd => AMD_MODULES,
                Processor::Intel => INTEL_MODULES,
            },
            init: INIT,
        };
        let kernel = guest_images::build_kernel(&recipe, &mut show)?;
        kernels.push((processor, kernel));
    }
    Ok(Parts {
        kernels,
        image: image_disk(&guest)?,
        root: guest.disk,
        work: work_disk(programs, folder)?,
        folder: folder.to_owned(),
    })
}

fn show(progress: Progress<'_>) {
    match progress {
        Progress::Step(text) => println!("    {text}"),
        Progress::Note(text) => println!("      {text}"),
        Progress::Amount { .. } => {}
    }
}

/// The guest as the rig's own programs find it: a cache with one image. Kept beside the image.
fn image_disk(guest: &GuestImage) -> Result<PathBuf> {
    let home = guest.disk.parent().context("an image has a folder")?;
    let cache = guest_images::default_cache_dir()?;
    let disk = cache.join(format!("rig/image-{}.ext4", guest.manifest.key));
    if disk.is_file() {
        return Ok(disk);
    }
    println!("    Making the disk with the guest image");
    fs::create_dir_all(cache.join("rig"))?;
    let tree = tempfile::Builder::new()
        .prefix("making-")
        .tempdir_in(cache.join("rig"))?;
    let inside = tree.path().join("images").join(&guest.manifest.key);
    fs::create_dir_all(&inside)?;
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        let to = inside.join(entry.file_name());
        fs::hard_link(entry.path(), to)?;
    }
    let locks = tree.path().join("locks");
    fs::create_dir_all(&locks)?;
    for entry in fs::read_dir(cache.join("locks"))? {
        let entry = entry?;
        fs::copy(entry.path(), locks.join(entry.file_name()))?;
    }
    let partial = disk.with_extension("partial");
    let length = fs::metadata(&guest.disk)?.len();
    file_system(tree.path(), &partial, length + (256 << 20))?;
    fs::rename(&partial, &disk)?;
    Ok(disk)
}

fn work_disk(programs: &[PathBuf], folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("work");
    let bin = tree.join("bin");
    fs::create_dir_all(&bin)?;
    for program in programs {
        let name = program.file_name().context("a program has a name")?;
        fs::copy(program, bin.join(name)).with_context(|| program.display().to_string())?;
    }
    fs::write(tree.join("agent"), AGENT)?;
    let disk = folder.join("work.ext4");
    file_system(&tree, &disk, WORK_BYTES)?;
    fs::remove_dir_all(&tree)?;
    Ok(disk)
}

/// An ext4 file system in the sparse file `disk`, with the content of `tree`. Without a journal:
/// nobody reads it after a crash.
fn file_system(tree: &Path, disk: &Path, bytes: u64) -> Result<()> {
    File::create(disk)
        .and_then(|file| file.set_len(bytes))
        .with_context(|| disk.display().to_string())?;
    let mut command = Command::new("/sbin/mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal"]);
    command.args(["-E", "lazy_itable_init=1,root_owner=0:0"]);
    let output = command.arg("-d").arg(tree).arg(disk).output();
    let output = output.context("mke2fs (package e2fsprogs)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("mke2fs for {}: {}", disk.display(), said.trim());
    }
    Ok(())
}
