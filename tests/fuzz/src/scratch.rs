//! Temporary files of the targets, in memory where the host has a file system for that.

use std::path::Path;

use tempfile::TempDir;

/// A new empty folder that goes when it is dropped.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("lockstep-fuzz-");
        builder
    };
    builder()
        .tempdir_in(memory)
        .or_else(|_| builder().tempdir())
        .expect("the host has room for temporary files")
}
