//! The cache directory: downloads, the exact package versions of each recipe,
//! and finished images. One build at a time may change it.
//!
//! ```text
//! apt/              private apt with the downloaded packages
//! locks/KEY.json    package names -> exact package files
//! images/KEY/       vmlinuz, initrd.img, disk.img, manifest.json
//! kernels/KEY/      vmlinuz, initrd.img, release: kernels alone ([`crate::stock`])
//! work/             trees being built; emptied at the next build
//! ```

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use crate::apt::{Apt, Lock};
use crate::error::io_error;
use crate::{BuildError, FileRecord, GuestImage, Manifest, Options, Progress};
use crate::{disk, initrd, kernel, recipe, rootfs};

pub const KERNEL_FILE: &str = "vmlinuz";
pub const INITRD_FILE: &str = "initrd.img";
const DISK_FILE: &str = "disk.img";
const MANIFEST_FILE: &str = "manifest.json";

/// `$LOCKSTEP_CACHE`, else `$XDG_CACHE_HOME/lockstep`, else `~/.cache/lockstep`.
pub fn default_cache_dir() -> Result<PathBuf, BuildError> {
    let variable = |name| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    variable("LOCKSTEP_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|p| p.join("lockstep")))
        .or_else(|| variable("HOME").map(|p| p.join(".cache/lockstep")))
        .ok_or_else(|| BuildError::Option {
            option: "cache",
            problem: "no directory given, and neither LOCKSTEP_CACHE nor HOME is set".into(),
        })
}

/// The cache, locked against other builds for as long as this value lives.
pub struct Cache {
    folder: PathBuf,
    _locked: Option<Flock<File>>,
}

impl Cache {
    /// Opens the cache, waiting for a build that is under way. A user who may
    /// only read it may use what is in it.
    pub fn open(
        folder: PathBuf,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, BuildError> {
        let lock_path = folder.join("lock");
        let created = fs::create_dir_all(&folder).and_then(|()| File::create(&lock_path));
        let file = match created {
            Ok(file) => file,
            Err(_) if folder.join("images").is_dir() => {
                return Ok(Self {
                    folder,
                    _locked: None,
                });
            }
            Err(error) => return Err(io_error("create", &lock_path)(error)),
        };
        // Absolute, since programs are run in other folders.
        let folder = fs::canonicalize(&folder).map_err(io_error("open", &folder))?;
        let locked = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((file, _)) => {
                progress(Progress::Note("another build is under way; waiting".into()));
                Flock::lock(file, FlockArg::LockExclusive)
                    .map_err(|(_, errno)| io_error("lock", &lock_path)(errno.into()))?
            }
        };
        Ok(Self {
            folder,
            _locked: Some(locked),
        })
    }

    /// Its private apt.
    pub fn apt(&self) -> Result<Apt, BuildError> {
        Apt::open(self.folder.join("apt"))
    }

    /// The exact packages for `options`: those of last time, or (the first
    /// time, or when a refresh is asked for) the newest of the mirror,
    /// downloaded.
    pub fn packages(
        &self,
        options: &Options,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Lock, BuildError> {
        let name = format!("locks/{}.json", recipe::package_key(options));
        let path = self.folder.join(name);
        if !options.refresh && path.exists() {
            return read_json(&path);
        }
        self.require_root()?;
        let apt = self.apt()?;
        apt.update(progress)?;
        let lock = apt.resolve(&options.package_names())?;
        apt.download(&lock, progress)?;
        write_json(&path, &lock)?;
        Ok(lock)
    }

    /// An error unless this process may make images.
    pub fn require_root(&self) -> Result<(), BuildError> {
        if geteuid().is_root() {
            return Ok(());
        }
        Err(BuildError::NotRoot {
            cache: self.folder.clone(),
        })
    }

    /// The finished image under `key`, if it is there in full.
    pub fn image(&self, key: &str) -> Option<GuestImage> {
        let folder = self.folder.join("images").join(key);
        let manifest: Manifest = read_json(&folder.join(MANIFEST_FILE)).ok()?;
        let whole = manifest
            .files
            .iter()
            .all(|file| fs::metadata(folder.join(&file.name)).is_ok_and(|m| m.len() == file.bytes));
        whole.then(|| GuestImage {
            kernel: folder.join(KERNEL_FILE),
            initrd: folder.join(INITRD_FILE),
            disk: folder.join(DISK_FILE),
            cmdline: manifest.cmdline.clone(),
            manifest,
        })
    }

    /// Makes the image and puts it under `key` in one step.
    pub fn make_image(
        &self,
        options: &Options,
        lock: &Lock,
        key: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<GuestImage, BuildError> {
        self.require_root()?;
        let apt = self.apt()?;
        apt.download(lock, progress)?;
        let work = self.empty_folder("work")?;
        let made = work.join("image");
        fs::create_dir(&made).map_err(io_error("create", &made))?;

        let kernel_deb = apt.path_of(&lock.kernel);
        let kernel = kernel::unpack(&kernel_deb, &work.join("kernel"))?;
        let root = rootfs::build(&work, &apt, lock, &kernel, options, progress)?;
        progress(Progress::Step("Making the initramfs"));
        let modules = root.modules(&kernel.release);
        let archive = initrd::build(&root.path, &modules)?;
        let target = made.join(INITRD_FILE);
        fs::write(&target, archive).map_err(io_error("write", &target))?;
        let target = made.join(KERNEL_FILE);
        fs::copy(&kernel.image, &target).map_err(io_error("write", &target))?;
        progress(Progress::Step("Making the root disk"));
        disk::make(&root.path, &made.join(DISK_FILE), options.disk_bytes)?;
        write_manifest(&made, lock, key, &kernel.release)?;

        let home = self.empty_folder(&format!("images/{key}"))?;
        fs::rename(&made, &home).map_err(io_error("create", &home))?;
        fs::remove_dir_all(&work).map_err(io_error("delete", &work))?;
        self.image(key).ok_or_else(|| BuildError::Damaged {
            path: home,
            problem: "not whole right after it was made".into(),
        })
    }

    /// A path in the cache.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// An empty folder of this name, whatever was there before.
    pub fn empty_folder(&self, name: &str) -> Result<PathBuf, BuildError> {
        let path = self.folder.join(name);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(io_error("delete", &path))?;
        }
        fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        Ok(path)
    }
}

fn write_manifest(
    folder: &Path,
    lock: &Lock,
    key: &str,
    kernel_release: &str,
) -> Result<(), BuildError> {
    let mut packages: Vec<String> = lock
        .all()
        .map(|d| format!("{}={}", d.name, d.version))
        .collect();
    packages.sort();
    let record = |name: &str| {
        let path = folder.join(name);
        let meta = fs::metadata(&path).map_err(io_error("read", &path))?;
        Ok(FileRecord {
            name: name.into(),
            bytes: meta.len(),
        })
    };
    let manifest = Manifest {
        key: key.into(),
        kernel_release: kernel_release.into(),
        cmdline: recipe::default_cmdline(),
        packages,
        files: vec![
            record(KERNEL_FILE)?,
            record(INITRD_FILE)?,
            record(DISK_FILE)?,
        ],
    };
    write_json(&folder.join(MANIFEST_FILE), &manifest)
}

/// Reads what [`write_json`] wrote.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, BuildError> {
    let text = fs::read(path).map_err(io_error("read", path))?;
    serde_json::from_slice(&text).map_err(|error| BuildError::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    })
}

/// Writes a file of the cache in one step.
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), BuildError> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|e| BuildError::Unexpected(e.to_string()))?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
    }
    let partial = path.with_extension("partial");
    fs::write(&partial, text).map_err(io_error("write", &partial))?;
    fs::rename(&partial, path).map_err(io_error("create", path))
}
