//! Turns the finished tree into a raw ext4 image with the guest's own
//! `mke2fs -d`: no loop device, no mount.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use crate::BuildError;
use crate::command::run;
use crate::error::io_error;

/// Fixed, so that the same tree gives the same file system.
const UUID: &str = "6c6f636b-7374-4570-8000-000000000001";

/// Makes `image`, `bytes` long and sparse, from the tree `root`.
///
/// The journal is on. Metadata checksums are off: the guest's CPU may be
/// software, and a CRC over every metadata block would be paid on every
/// commit. Inode tables are written here, so that the guest's kernel has no
/// lazy initialisation to do.
pub fn make(root: &Path, image: &Path, bytes: u64) -> Result<(), BuildError> {
    let file = File::create(image).map_err(io_error("create", image))?;
    file.set_len(bytes).map_err(io_error("resize", image))?;
    // The guest's mke2fs by the guest's loader: /lib64/ld-linux… is an
    // absolute link, which would lead to the host's.
    let libraries = root.join("lib/x86_64-linux-gnu");
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(&libraries)
        .arg(root.join("sbin/mke2fs"))
        .env("MKE2FS_CONFIG", root.join("etc/mke2fs.conf"))
        .env("LC_ALL", "C")
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", "root",
        ])
        .args([
            "-O",
            "^metadata_csum,^metadata_csum_seed,^orphan_file,^uninit_bg",
        ])
        .args(["-U", UUID])
        .arg("-E")
        .arg(format!(
            "hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
        ))
        .arg("-d")
        .arg(root)
        .arg(image);
    run(&mut command, "libc6").map(|_| ())
}
