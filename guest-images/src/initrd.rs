//! The initramfs: a static busybox, the virtio modules as they come from the
//! kernel package, and a short script that mounts the root disk. Left
//! uncompressed, because the guest would pay for the decompression.

use std::fs;
use std::path::Path;

use crate::BuildError;
use crate::cpio::Archive;
use crate::error::io_error;
use crate::kernel::load_order;
use crate::recipe::{INITRD_INIT, INITRD_MODULES};

/// Builds the guest's archive from the finished root tree and its modules folder.
pub fn build(root: &Path, modules: &Path) -> Result<Vec<u8>, BuildError> {
    archive(
        &root.join("bin/busybox"),
        modules,
        INITRD_MODULES,
        INITRD_INIT,
    )
}

/// An archive with the static program `busybox`, the modules `wanted` (numbered in load order, those
/// that they need before them) and the script `init`.
pub fn archive(
    busybox: &Path,
    modules: &Path,
    wanted: &[&str],
    init: &str,
) -> Result<Vec<u8>, BuildError> {
    let read_text = |name: &str| {
        let path = modules.join(name);
        fs::read_to_string(&path).map_err(io_error("read", &path))
    };
    let order = load_order(
        &read_text("modules.dep")?,
        &read_text("modules.builtin")?,
        wanted,
    )?;

    let mut archive = Archive::default();
    for folder in ["dev", "proc", "sys", "root", "bin", "m"] {
        archive.folder(folder);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    let program = fs::read(busybox).map_err(io_error("read", busybox))?;
    archive.file("bin/busybox", 0o755, &program);
    archive.symlink("bin/sh", "busybox");
    let mut names = Vec::new();
    for (number, file) in order.iter().enumerate() {
        let path = modules.join(file);
        let module = fs::read(&path).map_err(io_error("read", &path))?;
        let base = file.rsplit('/').next().unwrap_or(file);
        // Numbered, so that the shell's sorted `/m/*` is the load order.
        let name = format!("m/{number:02}-{base}");
        archive.file(&name, 0o644, &module);
        names.push(name);
    }
    tracing::debug!(?names, "initramfs modules");
    archive.file("init", 0o755, init.as_bytes());
    Ok(archive.finish())
}
