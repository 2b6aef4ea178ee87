//! One raw image file: bounds-checked reads and writes, holes, flushing.

pub mod snapshot;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use crate::config::DiskConfig;

/// An image must be a multiple of this many bytes: what a virtio disk calls a sector.
pub const SECTOR: u64 = 512;

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("disk {name:?}: cannot open the image {path:?}: {source}")]
    Open {
        name: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("disk {name:?}: {path:?} is not a regular file")]
    NotAFile { name: String, path: PathBuf },
    #[error(
        "disk {name:?}: the image {path:?} has {size} bytes; \
         a raw image has a multiple of 512 bytes, and more than none"
    )]
    Size {
        name: String,
        path: PathBuf,
        size: u64,
    },
    #[error("disk {name:?}: another process serves the image {path:?}")]
    Locked { name: String, path: PathBuf },
}

/// An open image. Locked against other servers for as long as it is open.
pub struct Image {
    name: String,
    path: PathBuf,
    file: File,
    size: u64,
    read_only: bool,
    /// A flush has failed: what the page cache dropped then is lost, so no later flush may
    /// succeed.
    failed: AtomicBool,
}

impl Image {
    pub fn open(disk: &DiskConfig) -> Result<Image, OpenError> {
        let (name, path) = (disk.name.clone(), disk.path.clone());
        let opened = OpenOptions::new()
            .read(true)
            .write(!disk.read_only)
            .open(&path);
        let opened = opened.and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = match opened {
            Ok(found) => found,
            Err(source) => return Err(OpenError::Open { name, path, source }),
        };
        if !metadata.is_file() {
            return Err(OpenError::NotAFile { name, path });
        }
        let size = metadata.len();
        if size == 0 || size % SECTOR != 0 {
            return Err(OpenError::Size { name, path, size });
        }
        let locked = if disk.read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { name, path }),
            Err(TryLockError::Error(source)) => {
                return Err(OpenError::Open { name, path, source });
            }
        }
        let (read_only, failed) = (disk.read_only, AtomicBool::new(false));
        Ok(Image {
            name,
            path,
            file,
            size,
            read_only,
            failed,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether `length` bytes at `offset` are inside the image.
    pub fn contains(&self, offset: u64, length: u32) -> bool {
        offset
            .checked_add(u64::from(length))
            .is_some_and(|end| end <= self.size)
    }

    fn check(&self, offset: u64, length: u32) -> io::Result<()> {
        if self.contains(offset, length) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::InvalidInput))
        }
    }

    fn check_write(&self, offset: u64, length: u32) -> io::Result<()> {
        self.check(offset, length)?;
        if self.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("an earlier flush has failed"));
        }
        Ok(())
    }

    /// Reads exactly `buffer.len()` bytes.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let length = u32::try_from(buffer.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.check(offset, length)?;
        self.file.read_exact_at(buffer, offset)
    }

    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        let length =
            u32::try_from(data.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.check_write(offset, length)?;
        self.file.write_all_at(data, offset)
    }

    /// Puts every completed write on stable storage.
    pub fn flush(&self) -> io::Result<()> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other("an earlier flush has failed"));
        }
        self.file.sync_data().inspect_err(|error| {
            self.failed.store(true, Ordering::SeqCst);
            tracing::error!(disk = self.name, %error, "flush failed; the disk is failed for good");
        })
    }

    /// Gives the range's blocks back; it reads as zeroes where the file system can do that.
    pub fn trim(&self, offset: u64, length: u32) -> io::Result<()> {
        self.check_write(offset, length)?;
        self.punch(offset, length).map(drop)
    }

    /// Makes the range read as zeroes; `keep_blocks`: it must not become a hole.
    pub fn zero(&self, offset: u64, length: u32, keep_blocks: bool) -> io::Result<()> {
        self.check_write(offset, length)?;
        let done = if keep_blocks {
            self.zero_range(offset, length)
        } else {
            self.punch(offset, length)
        };
        if done? {
            Ok(())
        } else {
            self.write_zeroes(offset, length)
        }
    }

    /// Returns false where the file system has no holes.
    fn punch(&self, offset: u64, length: u32) -> io::Result<bool> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.allocate(flags, offset, length)
    }

    fn zero_range(&self, offset: u64, length: u32) -> io::Result<bool> {
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.allocate(flags, offset, length)
    }

    fn allocate(&self, flags: FallocateFlags, offset: u64, length: u32) -> io::Result<bool> {
        if length == 0 {
            return Ok(true);
        }
        // `check` has put offset + length within the file's size, which is an off_t.
        loop {
            match fallocate(&self.file, flags, offset as i64, i64::from(length)) {
                Ok(()) => return Ok(true),
                Err(Errno::EOPNOTSUPP) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn write_zeroes(&self, offset: u64, length: u32) -> io::Result<()> {
        let zeroes = [0u8; 64 << 10];
        let mut at = offset;
        let end = offset + u64::from(length);
        while at < end {
            let step = zeroes.len().min((end - at) as usize);
            self.file.write_all_at(&zeroes[..step], at)?;
            at += step as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
