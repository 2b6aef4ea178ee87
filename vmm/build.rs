//! Makes `LOCKSTEP_SOURCES`: a hash of the sources on which a replay depends, so that replicas of
//! different builds can refuse each other. The files are taken in the order of their paths and named
//! by them, so that the same sources give the same hash wherever and by whomever they are built.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

/// Folders of Rust sources, relative to the workspace.
const FOLDERS: [&str; 6] = [
    "devices/src",
    "ftlog/src",
    "vmm/engine/src",
    "vmm/kvm/src",
    "vmm/soft/src",
    "vmm/src",
];
/// The versions of dependencies, the instruction decoder among them.
const LOCK: &str = "Cargo.lock";

fn main() -> io::Result<()> {
    let root = Path::new("..");
    let mut files = vec![PathBuf::from(LOCK)];
    println!("cargo::rerun-if-changed=../{LOCK}");
    for folder in FOLDERS {
        println!("cargo::rerun-if-changed=../{folder}");
        collect(root, Path::new(folder), &mut files)?;
    }
    files.sort();
    let mut hasher = Xxh3::new();
    for file in &files {
        let text = fs::read(root.join(file))?;
        for part in [file.as_os_str().as_encoded_bytes(), &text] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    println!("cargo::rustc-env=LOCKSTEP_SOURCES={:016x}", hasher.digest());
    Ok(())
}

/// Adds the Rust sources in a folder and those below it, by their paths from `root`.
fn collect(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
