//! Saving the machine while the vCPU stands: its state, and a copy of its disk at the same point.

use std::path::Path;
use std::time::Duration;

use wire::register::{RegisterClient, RegisterError};

use crate::machine::Machine;
use crate::save::{About, SaveError, SavedEngine, SavedMachine};

/// How long the disk server may take for the copy.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(100);

/// What a saved state says of its machine, and who copies the disk.
#[derive(Clone, Debug)]
pub struct Saver {
    pub vm_name: String,
    pub vm_uuid: String,
    /// The configuration as TOML.
    pub config: String,
    /// The disk server's register address, if there is a disk.
    pub disk_server: Option<String>,
}

/// Why the machine was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SavingError {
    #[error(transparent)]
    State(#[from] SaveError),
    #[error("the state was saved, but its disk was not: the pair of them is of no use")]
    Disk(#[source] RegisterError),
    #[error("the saved state cannot be looked at again")]
    File(#[from] std::io::Error),
}

impl Saver {
    /// Writes the state to `path` and the disk beside it, to `path` with `.disk` appended (on the
    /// disk server's host). Gives the size of the state's file in bytes. Disk requests in flight are
    /// part of the state and are issued again when the machine goes on from it.
    pub fn save(&self, machine: &Machine, path: &Path) -> Result<u64, SavingError> {
        let about = About {
            vm_name: self.vm_name.clone(),
            vm_uuid: self.vm_uuid.clone(),
            ram_bytes: machine.ram().size(),
            engine: SavedEngine::from(&machine.engine_info()),
            boot_digest: machine.boot_spec().digest(),
            position: machine.position(),
            config: self.config.clone(),
        };
        let saved = SavedMachine {
            about,
            state: machine.state(),
        };
        crate::save::save(path, &saved, machine.ram(), &mut |_| ())?;
        if let Some(addr) = &self.disk_server {
            let copy = format!("{}.disk", path.display());
            RegisterClient::new(addr, SNAPSHOT_TIMEOUT)
                .snapshot(&self.vm_name, &copy, SNAPSHOT_TIMEOUT)
                .map_err(SavingError::Disk)?;
        }
        Ok(std::fs::metadata(path)?.len())
    }
}
