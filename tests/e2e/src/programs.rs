//! Where Lockstep's programs are: beside the one that runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The path of `name` (such as `ft-ctl`).
pub fn path(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let dir = own.parent().unwrap_or(Path::new("/"));
    // A test's own program lies one folder deeper.
    let candidates = [dir.join(name), dir.join("..").join(name)];
    match candidates.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => bail!(
            "{name} is not in {}; build it: cargo build --release -p vmm -p ft-diskd -p ft-netd -p ft-ctl",
            dir.display()
        ),
    }
}

/// `name`, ready to be started.
pub fn command(name: &str) -> Result<Command> {
    Ok(Command::new(path(name)?))
}
