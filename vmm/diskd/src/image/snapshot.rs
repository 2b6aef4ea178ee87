//! A consistent copy of an image to another file of this host, holes kept.
//!
//! The caller keeps writers out while it runs. `copy_file_range` lets a file system that can
//! share blocks do so, which makes the copy nearly free.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};
use wire::register::SnapshotInfo;

use super::Image;

/// Why a snapshot was not taken. Nothing is left behind at the path.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the path {0:?} is not absolute")]
    Relative(PathBuf),
    #[error(
        "snapshots are not allowed at {path:?}; start ft-diskd with --snapshots DIR \
         for a directory above it"
    )]
    NotAllowed { path: PathBuf },
    #[error("{0:?} exists already; choose another path or remove it")]
    Exists(PathBuf),
    #[error("cannot write {path:?}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot copy the image: {0}")]
    Copy(io::Error),
}

/// The path with its directory resolved (no symbolic links, no `..`), if it is below one of
/// `allowed`.
pub fn permitted(path: &Path, allowed: &[PathBuf]) -> Result<PathBuf, SnapshotError> {
    if !path.is_absolute() {
        return Err(SnapshotError::Relative(path.to_owned()));
    }
    let refused = || SnapshotError::NotAllowed {
        path: path.to_owned(),
    };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(refused());
    };
    let parent = parent
        .canonicalize()
        .map_err(|source| SnapshotError::Write {
            path: path.to_owned(),
            source,
        })?;
    let below = |dir: &PathBuf| dir.canonicalize().is_ok_and(|dir| parent.starts_with(dir));
    if allowed.iter().any(below) {
        Ok(parent.join(name))
    } else {
        Err(refused())
    }
}

/// Copies `image` to the new file `path`; it is on stable storage, under its name, or not there.
pub fn take(image: &Image, path: &Path) -> Result<SnapshotInfo, SnapshotError> {
    let fail = |source| SnapshotError::Write {
        path: path.to_owned(),
        source,
    };
    if path.symlink_metadata().is_ok() {
        return Err(SnapshotError::Exists(path.to_owned()));
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&partial)
        .map_err(fail)?;
    let done = copy(image, &target)
        .map_err(SnapshotError::Copy)
        .and_then(|()| target.sync_all().map_err(fail))
        .and_then(|()| publish(&partial, path));
    // Gone already where it was renamed.
    let _ = std::fs::remove_file(&partial);
    done?;
    let allocated = target.metadata().map_err(fail)?.blocks() * 512;
    Ok(SnapshotInfo {
        size: image.size(),
        allocated,
    })
}

/// Gives the copy its name without replacing what another process put there meanwhile.
fn publish(partial: &Path, path: &Path) -> Result<(), SnapshotError> {
    std::fs::hard_link(partial, path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => SnapshotError::Exists(path.to_owned()),
        _ => SnapshotError::Write {
            path: path.to_owned(),
            source,
        },
    })?;
    let fail = |source| SnapshotError::Write {
        path: path.to_owned(),
        source,
    };
    let dir = path.parent().unwrap_or(Path::new("/"));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(fail)
}

/// The next run of data at or after `from`: its start and end. `None`: only holes follow.
fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let start = match lseek(file, from as i64, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let end = lseek(file, start, Whence::SeekHole)?;
    Ok(Some((start as u64, end as u64)))
}

fn copy(image: &Image, target: &File) -> io::Result<()> {
    target.set_len(image.size())?;
    // An own open file: seeking in it does not disturb anybody.
    let source = File::open(image.path())?;
    let mut at = 0;
    while let Some((start, end)) = next_data(&source, at)? {
        copy_range(&source, target, start, end.min(image.size()))?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut from, mut to) = (start as i64, start as i64);
    let mut buffer = Vec::new();
    while (from as u64) < end {
        let want = (end - from as u64).min(64 << 20) as usize;
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), want) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EXDEV | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                buffer.resize(want.min(1 << 20), 0);
                source.read_exact_at(&mut buffer, from as u64)?;
                target.write_all_at(&buffer, to as u64)?;
                from += buffer.len() as i64;
                to = from;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
