//! Takes the kernel package apart: the kernel image, its modules, and in
//! which order the modules must be loaded that the initramfs needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::BuildError;
use crate::command::run;
use crate::error::io_error;

/// An unpacked kernel package.
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The folder `lib/modules/<release>`.
    pub modules: PathBuf,
}

/// Unpacks the package file `deb` into `folder`.
pub fn unpack(deb: &Path, folder: &Path) -> Result<Kernel, BuildError> {
    let mut command = Command::new("dpkg-deb");
    run(command.arg("--extract").arg(deb).arg(folder), "dpkg")?;
    let modules = folder.join("lib/modules");
    let entries = fs::read_dir(&modules).map_err(io_error("read", &modules))?;
    let release = entries
        .flatten()
        .find_map(|e| e.file_name().into_string().ok())
        .ok_or_else(|| BuildError::Unexpected("the kernel package has no modules".into()))?;
    let image = folder.join("boot").join(format!("vmlinuz-{release}"));
    if !image.is_file() {
        return Err(BuildError::Unexpected(format!(
            "the kernel package has no boot/vmlinuz-{release}"
        )));
    }
    let modules = modules.join(&release);
    Ok(Kernel {
        release,
        image,
        modules,
    })
}

/// The files (relative to the modules folder) to load for `wanted`, in an
/// order in which every module comes after those that it depends on.
///
/// `dep` is the text of `modules.dep`, `builtin` that of `modules.builtin`: a
/// wanted module that is built into the kernel needs no file.
pub fn load_order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>, BuildError> {
    let mut order: Vec<String> = Vec::new();
    for &name in wanted {
        if builtin.lines().any(|path| module_name(path) == name) {
            continue;
        }
        let line = dep
            .lines()
            .find(|l| {
                l.split(':')
                    .next()
                    .is_some_and(|path| module_name(path) == name)
            })
            .ok_or_else(|| {
                BuildError::Unexpected(format!("the kernel package has no module '{name}'"))
            })?;
        // modules.dep lists dependencies with the deepest last.
        let (path, dependencies) = line.split_once(':').unwrap_or((line, ""));
        for file in dependencies.split_whitespace().rev().chain([path]) {
            if !order.iter().any(|f| f == file) {
                order.push(file.to_string());
            }
        }
    }
    Ok(order)
}

/// `kernel/drivers/virtio/virtio_pci.ko.xz` is the module `virtio_pci`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split('.').next().unwrap_or(file);
    stem.replace('-', "_")
}
