//! A Debian kernel by itself, with an initramfs that loads chosen modules and runs a given script:
//! what a QEMU machine starts from, such as that of the nested rig.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::apt::Deb;
use crate::cache::{Cache, INITRD_FILE, KERNEL_FILE, default_cache_dir, read_json, write_json};
use crate::command::run;
use crate::error::io_error;
use crate::recipe::{SUITES, feed};
use crate::{BuildError, Progress, initrd, kernel};

/// The package with the initramfs's one program.
const BUSYBOX: &str = "busybox-static";

/// Changes when the builder makes something else of the same recipe.
const BUILDER_VERSION: u32 = 1;

/// What to build.
#[derive(Debug, Clone)]
pub struct StockRecipe<'a> {
    /// Where downloads and results are kept; [`default_cache_dir`] if none.
    pub cache: Option<PathBuf>,
    /// The package that depends on the newest kernel image, such as `linux-image-amd64`.
    pub package: &'a str,
    /// Modules of the initramfs, in load order; what they depend on is added. They lie in it as
    /// `/m/NN-name.ko`, sorted.
    pub modules: &'a [&'a str],
    /// The initramfs's `/init`, for the shell of `/bin/busybox`.
    pub init: &'a str,
}

/// The result, in the cache.
#[derive(Debug, Clone)]
pub struct StockKernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The bzImage.
    pub kernel: PathBuf,
    /// The initramfs, an uncompressed newc cpio archive.
    pub initrd: PathBuf,
}

/// The exact packages, kept so that the next build needs no network.
#[derive(Serialize, Deserialize)]
struct Packages {
    kernel: Deb,
    busybox: Deb,
}

/// Builds the kernel and initramfs of `recipe`, or finds them in the cache.
pub fn build_kernel(
    recipe: &StockRecipe<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<StockKernel, BuildError> {
    let folder = match &recipe.cache {
        Some(folder) => folder.clone(),
        None => default_cache_dir()?,
    };
    let cache = Cache::open(folder, progress)?;
    let packages = packages(&cache, recipe, progress)?;
    let home = cache.path(&format!("kernels/{}", key(recipe, &packages)));
    if home.is_dir() {
        return stock_kernel(&home);
    }
    cache.require_root()?;
    cache
        .apt()?
        .download_debs(&[&packages.busybox, &packages.kernel], progress)?;
    progress(Progress::Step("Making the initramfs"));
    let work = cache.empty_folder("work")?;
    let made = make(&cache, recipe, &packages, &work)?;
    let parent = cache.path("kernels");
    fs::create_dir_all(&parent).map_err(io_error("create", &parent))?;
    fs::rename(&made, &home).map_err(io_error("create", &home))?;
    fs::remove_dir_all(&work).map_err(io_error("delete", &work))?;
    stock_kernel(&home)
}

fn packages(
    cache: &Cache,
    recipe: &StockRecipe<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Packages, BuildError> {
    let mut hash = Xxh3::new();
    for text in SUITES.iter().chain([&BUSYBOX, &recipe.package]) {
        feed(&mut hash, text.as_bytes());
    }
    let path = cache.path(&format!("locks/kernel-{:016x}.json", hash.digest()));
    if path.exists() {
        return read_json(&path);
    }
    cache.require_root()?;
    let apt = cache.apt()?;
    apt.update(progress)?;
    let packages = Packages {
        kernel: apt.resolve_kernel(recipe.package)?,
        busybox: apt.resolve_one(BUSYBOX)?,
    };
    apt.download_debs(&[&packages.busybox, &packages.kernel], progress)?;
    write_json(&path, &packages)?;
    Ok(packages)
}

fn key(recipe: &StockRecipe<'_>, packages: &Packages) -> String {
    let mut hash = Xxh3::new();
    feed(&mut hash, &BUILDER_VERSION.to_le_bytes());
    for deb in [&packages.kernel, &packages.busybox] {
        feed(&mut hash, deb.hash.as_bytes());
    }
    for module in recipe.modules {
        feed(&mut hash, module.as_bytes());
    }
    feed(&mut hash, recipe.init.as_bytes());
    format!("{:016x}", hash.digest())
}

/// Makes the folder that goes into the cache; gives its path.
fn make(
    cache: &Cache,
    recipe: &StockRecipe<'_>,
    packages: &Packages,
    work: &Path,
) -> Result<PathBuf, BuildError> {
    let apt = cache.apt()?;
    let unpacked = work.join("kernel");
    let kernel = kernel::unpack(&apt.path_of(&packages.kernel), &unpacked)?;
    let mut command = Command::new("dpkg-deb");
    command
        .arg("--extract")
        .arg(apt.path_of(&packages.busybox))
        .arg(&unpacked);
    run(&mut command, "dpkg")?;
    let busybox = unpacked.join("bin/busybox");
    // The package's own script would do this at its installation.
    let mut command = Command::new(&busybox);
    command.arg("depmod").arg("-b").arg(&unpacked);
    run(command.arg(&kernel.release), BUSYBOX)?;
    let archive = initrd::archive(&busybox, &kernel.modules, recipe.modules, recipe.init)?;

    let made = work.join("made");
    fs::create_dir_all(&made).map_err(io_error("create", &made))?;
    let write = |name: &str, data: &[u8]| {
        let path = made.join(name);
        fs::write(&path, data).map_err(io_error("write", &path))
    };
    write(INITRD_FILE, &archive)?;
    write(RELEASE_FILE, kernel.release.as_bytes())?;
    let target = made.join(KERNEL_FILE);
    fs::copy(&kernel.image, &target).map_err(io_error("write", &target))?;
    Ok(made)
}

const RELEASE_FILE: &str = "release";

fn stock_kernel(home: &Path) -> Result<StockKernel, BuildError> {
    let path = home.join(RELEASE_FILE);
    Ok(StockKernel {
        release: fs::read_to_string(&path).map_err(io_error("read", &path))?,
        kernel: home.join(KERNEL_FILE),
        initrd: home.join(INITRD_FILE),
    })
}
