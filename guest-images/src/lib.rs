//! Builds Lockstep's guest from Debian 12 packages: the stock cloud kernel as
//! it comes from its package, a small initramfs with the virtio modules, and
//! a raw ext4 root disk with a real userland that starts Redis and nginx.
//!
//! [`build`] is the one entry point. Everything it downloads and makes is
//! kept in a cache, keyed by the recipe and by the exact package versions, so
//! that a second build of the same recipe returns at once and needs no
//! network. The host must be Debian (apt and dpkg); nothing else is needed on
//! it, since file system tools are taken from the packages of the guest.
//! Making a new image needs root (for `chroot` and file ownership); using a
//! cached one does not.

mod apt;
mod cache;
mod command;
mod cpio;
mod disk;
mod error;
mod initrd;
mod kernel;
mod recipe;
mod rootfs;
mod sparse;
mod stock;

use std::path::{Path, PathBuf};

pub use cache::default_cache_dir;
pub use error::BuildError;
pub use recipe::{Options, default_cmdline};
use serde::{Deserialize, Serialize};
pub use stock::{StockKernel, StockRecipe, build_kernel};

/// What the builder tells its caller while it works.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A new step begins; amounts start again from nothing.
    Step(&'a str),
    /// How much of the current step is done, both in the unit that `what` says.
    Amount {
        /// Units done so far; may end a little short of `total`.
        done: u64,
        /// Units in the whole step.
        total: u64,
        /// `"bytes"` or `"packages"`.
        what: &'static str,
    },
    /// A fact worth one line, such as what is downloaded from where.
    Note(String),
}

/// One file of the image as recorded in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Name inside the image's folder.
    pub name: String,
    /// Length in bytes (the apparent one: the disk is sparse).
    pub bytes: u64,
}

/// What an image was made of; `manifest.json` in the image's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The key under which the image is cached: recipe and package versions.
    pub key: String,
    /// Kernel release, as `uname -r` says it in the guest.
    pub kernel_release: String,
    /// The kernel command line that the image is meant to be booted with.
    pub cmdline: String,
    /// Every package in the guest, `name=version`, sorted; the kernel included.
    pub packages: Vec<String>,
    /// Kernel, initramfs and disk.
    pub files: Vec<FileRecord>,
}

/// A built guest. The disk is the pristine one of the cache and must not be
/// written to: give the guest a copy made with [`GuestImage::copy_disk`].
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// The kernel (bzImage), byte for byte as in its package.
    pub kernel: PathBuf,
    /// The initramfs, an uncompressed newc cpio archive.
    pub initrd: PathBuf,
    /// The pristine root disk: raw, sparse, one ext4 file system, no partitions.
    pub disk: PathBuf,
    /// The kernel command line to boot with; callers may append to it.
    pub cmdline: String,
    /// What is in it.
    pub manifest: Manifest,
}

impl GuestImage {
    /// Makes a copy of the pristine disk at `to`, sparse and by reflink where
    /// the file system can. An existing file is replaced.
    pub fn copy_disk(&self, to: &Path) -> Result<(), BuildError> {
        sparse::copy(&self.disk, to)
    }
}

/// Copies a disk image, sparse and by reflink where the file system can. An existing file is
/// replaced.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<(), BuildError> {
    sparse::copy(from, to)
}

/// Builds the guest that `options` describe, or finds it in the cache.
///
/// Only a build whose packages are not in the cache uses the network, through
/// apt and by the machine's own apt configuration (mirror, proxy).
pub fn build(
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<GuestImage, BuildError> {
    options.check()?;
    let cache = cache::Cache::open(options.cache_dir()?, progress)?;
    let lock = cache.packages(options, progress)?;
    let key = recipe::image_key(options, &lock);
    if let Some(image) = cache.image(&key) {
        return Ok(image);
    }
    cache.make_image(options, &lock, &key, progress)
}

#[cfg(test)]
mod tests;
