//! Saved states as files: written beside the name and renamed when whole, so that a file with the
//! name is always a whole one.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{About, LoadError, Progress, SaveError, SavedMachine, read_about, read_from, write_to};
use crate::memory::GuestRam;

const BUFFER: usize = 1 << 20;

/// Saves a machine to a file, readable by its owner only (it holds the guest's memory). A file of
/// that name is replaced, but only by a whole one that is on stable storage.
pub fn save(
    path: &Path,
    machine: &SavedMachine,
    ram: &GuestRam,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), SaveError> {
    let temporary = Temporary::beside(path)?;
    // One left by a process of the same number that was killed. A new file is made in its place
    // rather than it reused: it could be a link, or another user's.
    let _ = std::fs::remove_file(&temporary.path);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary.path)?;
    let mut out = BufWriter::with_capacity(BUFFER, file);
    write_to(&mut out, machine, ram, progress)?;
    out.flush()?;
    out.get_ref().sync_all()?;
    temporary.rename(path)?;
    Ok(())
}

/// Loads a machine from a file, its RAM into `ram`. On an error RAM is zero.
///
/// # Errors
/// As [`read_from`]; also bytes after the state's end.
pub fn load(
    path: &Path,
    ram: &GuestRam,
    progress: &mut dyn FnMut(Progress),
) -> Result<SavedMachine, LoadError> {
    let mut input = open(path)?;
    let machine = read_from(&mut input, ram, progress)?;
    match input.read(&mut [0]).map_err(LoadError::Io)? {
        0 => Ok(machine),
        _ => {
            ram.clear()?;
            Err(LoadError::TrailingBytes)
        }
    }
}

/// What a file is the state of, without reading all of it.
pub fn load_about(path: &Path) -> Result<About, LoadError> {
    read_about(&mut open(path)?)
}

fn open(path: &Path) -> Result<BufReader<File>, LoadError> {
    let file = File::open(path).map_err(LoadError::Io)?;
    Ok(BufReader::with_capacity(BUFFER, file))
}

/// A file beside the one to be written; removed unless renamed.
struct Temporary {
    path: PathBuf,
    directory: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> Result<Self, SaveError> {
        let name = path.file_name().ok_or_else(|| SaveError::NoFileName {
            path: path.to_owned(),
        })?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.tmp", std::process::id()));
        Ok(Self {
            path: directory.join(temporary),
            directory,
        })
    }

    fn rename(self, path: &Path) -> std::io::Result<()> {
        std::fs::rename(&self.path, path)?;
        // The name, too, must outlive a crash of the host.
        File::open(&self.directory)?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing to remove; after an error the cause is already told.
        let _ = std::fs::remove_file(&self.path);
    }
}
