//! A machine's whole state, in a file or on a stream.
//!
//! The format is a magic, a version, and sections, each with its kind, length and checksum:
//!
//! | section | content |
//! |---|---|
//! | about | JSON: which machine this is ([`About`]) |
//! | state | postcard: vCPU, clock, devices ([`State`]) |
//! | memory, any number | runs of frames, compressed; frames that are zero are left out |
//! | end | the number of sections and a checksum over all section headers |
//!
//! A reader believes nothing before it is checked: lengths are bounded, memory outside RAM is
//! refused, and the state is handed out only after the end section has been seen.

mod chunk;
mod file;
mod memory;
mod section;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};

use engine::{ClockBase, CpuState, EngineInfo};
use ftlog::Position;
use serde::{Deserialize, Serialize};

use crate::memory::{GuestRam, MemoryError};
use section::{Kind, Reader, Writer};

pub use file::{load, load_about, save};

/// The format's version. A reader takes only its own.
pub const VERSION: u32 = 1;

/// Bound of the about section, in bytes.
const MAX_ABOUT: u64 = 1 << 20;
/// Bound of the state section, in bytes: devices keep the data of disk writes in flight.
const MAX_STATE: u64 = 1 << 28;
/// Bytes of an FXSAVE image.
const FXSAVE: usize = 512;

/// Which machine a saved state is of; what must match before it can go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    pub vm_name: String,
    pub vm_uuid: String,
    /// Bytes of RAM.
    pub ram_bytes: u64,
    pub engine: SavedEngine,
    /// [`crate::boot::BootSpec::digest`] of what was booted.
    pub boot_digest: u64,
    /// Where the vCPU stands.
    pub position: Position,
    /// The machine's configuration, as TOML.
    pub config: String,
}

/// What of [`EngineInfo`] must be the same where the state goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEngine {
    pub name: String,
    /// What a position's count counts.
    pub counts: String,
    pub cpuid_hash: u64,
    pub host_math: u64,
}

impl SavedEngine {
    /// Why a state of this engine cannot go on with `ours`; `None` if it can.
    pub fn differs(&self, ours: &SavedEngine) -> Option<String> {
        let said =
            |engine: &SavedEngine| format!("{} (which counts {})", engine.name, engine.counts);
        if (&self.name, &self.counts) != (&ours.name, &ours.counts) {
            let (saved, ours) = (said(self), said(ours));
            Some(format!(
                "it was saved with engine {saved}, this machine has engine {ours}; start it with \
                 the same --engine and --positions"
            ))
        } else if self.cpuid_hash != ours.cpuid_hash {
            Some(format!(
                "the CPUID table that its guest has seen ({:#x}) is not this engine's ({:#x}); \
                 start it with the version that has saved it",
                self.cpuid_hash, ours.cpuid_hash
            ))
        } else if self.host_math != ours.host_math {
            Some(format!(
                "the processor that it was saved on computes differently ({:#x}, this one {:#x}); \
                 use a host with the same processor family",
                self.host_math, ours.host_math
            ))
        } else {
            None
        }
    }
}

impl From<EngineInfo> for SavedEngine {
    fn from(info: EngineInfo) -> Self {
        Self::from(&info)
    }
}

impl From<&EngineInfo> for SavedEngine {
    fn from(info: &EngineInfo) -> Self {
        Self {
            name: info.name.to_owned(),
            counts: info.counts.to_string(),
            cpuid_hash: info.cpuid_hash,
            host_math: info.host_math,
        }
    }
}

/// The state besides RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub cpu: CpuState,
    pub clock: ClockBase,
    /// The devices, as the machine serialised them.
    #[serde(with = "serde_bytes")]
    pub board: Vec<u8>,
    /// Outputs that the guest has made so far: the number of the next output mark.
    pub outputs: u64,
}

/// A saved machine; RAM goes beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedMachine {
    pub about: About,
    pub state: State,
}

/// How far a save or a load is. Both numbers are bytes of RAM; frames that are skipped count as
/// done, so the last call has `done == total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// Why a state could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    #[error("cannot write the saved state")]
    Io(#[from] io::Error),
    #[error("the state says that RAM has {said} bytes, but it has {actual}")]
    RamSize { said: u64, actual: u64 },
    #[error("the {what} of {size} bytes is larger than the format allows")]
    TooBig { what: &'static str, size: u64 },
    #[error("the state could not be encoded: {0}")]
    Encode(String),
    #[error("{path} is not a file name to save to")]
    NoFileName { path: std::path::PathBuf },
}

/// Why a saved state could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read the saved state")]
    Io(#[source] io::Error),
    #[error("this is not a saved machine state: it does not begin with its signature")]
    NotASavedState,
    #[error("the saved state has format version {found}, but this program reads version {VERSION}")]
    Version { found: u32 },
    #[error("the saved state is truncated: it ends within its {within}")]
    Truncated { within: &'static str },
    #[error("the saved state is damaged: the checksum of its {what} section is wrong")]
    Checksum { what: &'static str },
    #[error("the saved state is damaged: {0}")]
    Malformed(String),
    #[error("the saved state has {saved} bytes of RAM, but this machine has {machine}")]
    RamSize { saved: u64, machine: u64 },
    #[error("there are further bytes after the saved state's end")]
    TrailingBytes,
    #[error("guest memory refused the saved state")]
    Memory(#[from] MemoryError),
}

/// Writes a machine and its RAM to a stream. The vCPU must be stopped at a boundary.
///
/// # Errors
/// What the stream refuses; a machine whose RAM size is not that of `ram`.
pub fn write_to(
    out: &mut dyn Write,
    machine: &SavedMachine,
    ram: &GuestRam,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), SaveError> {
    let said = machine.about.ram_bytes;
    if said != ram.size() {
        return Err(SaveError::RamSize {
            said,
            actual: ram.size(),
        });
    }
    let encode = |e: &dyn std::fmt::Display| SaveError::Encode(e.to_string());
    let about = serde_json::to_vec(&machine.about).map_err(|e| encode(&e))?;
    let state = postcard::to_stdvec(&machine.state).map_err(|e| encode(&e))?;
    let mut writer = Writer::begin(out)?;
    for (kind, payload) in [(Kind::About, &about), (Kind::State, &state)] {
        let size = payload.len() as u64;
        if size > kind.max_len() {
            let what = kind.name();
            return Err(SaveError::TooBig { what, size });
        }
        writer.section(kind, payload)?;
    }
    memory::write(&mut writer, ram, progress)?;
    writer.end()?;
    Ok(())
}

/// Reads a machine from a stream and puts its RAM into `ram`, which counts as written from outside.
/// On an error RAM is cleared. Reads nothing past the state's end.
///
/// # Errors
/// A stream that breaks off, is damaged, of another version, or of a machine with another RAM size.
pub fn read_from(
    input: &mut dyn Read,
    ram: &GuestRam,
    progress: &mut dyn FnMut(Progress),
) -> Result<SavedMachine, LoadError> {
    ram.clear()?;
    let result = read_all(input, ram, progress);
    if result.is_err() {
        ram.clear()?;
    }
    result
}

/// Reads only what the state is of.
pub fn read_about(input: &mut dyn Read) -> Result<About, LoadError> {
    about(&mut Reader::begin(input)?)
}

fn read_all(
    input: &mut dyn Read,
    ram: &GuestRam,
    progress: &mut dyn FnMut(Progress),
) -> Result<SavedMachine, LoadError> {
    let mut reader = Reader::begin(input)?;
    let about = about(&mut reader)?;
    if about.ram_bytes != ram.size() {
        return Err(LoadError::RamSize {
            saved: about.ram_bytes,
            machine: ram.size(),
        });
    }
    let state = state(&reader.expect(Kind::State)?, &about)?;
    memory::read(&mut reader, ram, progress)?;
    Ok(SavedMachine { about, state })
}

fn about(reader: &mut Reader<'_>) -> Result<About, LoadError> {
    let payload = reader.expect(Kind::About)?;
    serde_json::from_slice(&payload)
        .map_err(|e| LoadError::Malformed(format!("its about section is not understood: {e}")))
}

fn state(payload: &[u8], about: &About) -> Result<State, LoadError> {
    let malformed = |why: &str| LoadError::Malformed(format!("its state section {why}"));
    let (state, rest): (State, _) = postcard::take_from_bytes(payload)
        .map_err(|e| malformed(&format!("is not understood: {e}")))?;
    if !rest.is_empty() {
        return Err(malformed("is longer than the state"));
    }
    if state.cpu.fxsave.len() != FXSAVE {
        return Err(malformed("has an FPU state of a wrong size"));
    }
    let position = Position {
        count: state.cpu.count,
        rip: state.cpu.rip,
        rcx: state.cpu.gpr[1],
    };
    if position != about.position {
        return Err(malformed(
            "stands at another position than the about section",
        ));
    }
    Ok(state)
}
