//! Copies of disk images that stay sparse: by reflink where the file system
//! can share blocks, otherwise extent by extent with holes kept.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use crate::BuildError;
use crate::error::io_error;

nix::ioctl_write_int!(ficlone, 0x94, 9);

/// Copies `from` to `to`, replacing what is there.
pub fn copy(from: &Path, to: &Path) -> Result<(), BuildError> {
    let source = File::open(from).map_err(io_error("open", from))?;
    let length = source.metadata().map_err(io_error("read", from))?.len();
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(to)
        .map_err(io_error("create", to))?;
    if reflink(&source, &target) {
        return Ok(());
    }
    target.set_len(length).map_err(io_error("resize", to))?;
    copy_extents(&source, &target, length).map_err(io_error("write", to))
}

#[allow(unsafe_code)]
fn reflink(source: &File, target: &File) -> bool {
    // SAFETY: FICLONE takes a descriptor by value and both are open files
    // for the duration of the call.
    unsafe { ficlone(target.as_raw_fd(), source.as_raw_fd() as u64).is_ok() }
}

fn copy_extents(source: &File, target: &File, length: u64) -> io::Result<()> {
    let mut position = 0;
    while position < length {
        let start = match lseek(source, position as i64, Whence::SeekData) {
            Ok(start) => start as u64,
            Err(Errno::ENXIO) => break, // Nothing but a hole is left.
            Err(error) => return Err(error.into()),
        };
        let end = lseek(source, start as i64, Whence::SeekHole)? as u64;
        copy_range(source, target, start, end)?;
        position = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut position = start;
    while position < end {
        let want = buffer.len().min((end - position) as usize);
        let chunk = &mut buffer[..want];
        source.read_exact_at(chunk, position)?;
        target.write_all_at(chunk, position)?;
        position += want as u64;
    }
    Ok(())
}
