//! The register's state on stable storage.
//!
//! One file, replaced as a whole: written beside, synced, renamed, and the directory synced. A
//! first line names the format, its version, the length and a CRC-32C of the body, which is
//! JSON. A process killed at any moment leaves the old state or the new one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::register::State;

const MAGIC: &str = "lockstep-view-register";
const VERSION: u32 = 1;
const FILE: &str = "register.state";
const NEW: &str = "register.state.new";

/// Why the state cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot use the state directory {path:?}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("another process uses the state directory {path:?}")]
    Locked { path: PathBuf },
    #[error("cannot read {path:?}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot keep the register's state in {path:?}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "{path:?} is damaged ({what}); views must never go back, so the register does not start \
         without it: restore the file, or remove it if no replica of its machines runs any more"
    )]
    Damaged { path: PathBuf, what: String },
    #[error("{path:?} has version {found}, this program reads version {VERSION}")]
    Version { path: PathBuf, found: u32 },
}

/// A directory that holds the state. Locked against other processes.
pub struct Store {
    dir: PathBuf,
    _lock: File,
}

#[derive(Debug, PartialEq, Eq)]
struct Header {
    version: u32,
    length: usize,
    checksum: u32,
}

impl Header {
    fn line(body: &[u8]) -> String {
        format!(
            "{MAGIC} {VERSION} {} {:08x}\n",
            body.len(),
            crc32c::crc32c(body)
        )
    }

    fn parse(line: &str) -> Option<Header> {
        let mut words = line.split(' ');
        if words.next() != Some(MAGIC) {
            return None;
        }
        let version = words.next()?.parse().ok()?;
        let length = words.next()?.parse().ok()?;
        let checksum = u32::from_str_radix(words.next()?, 16).ok()?;
        words.next().is_none().then_some(Header {
            version,
            length,
            checksum,
        })
    }
}

/// The body of the file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<S> {
    state: S,
}

impl Store {
    /// Makes the directory if needed, locks it, and reads the state; none yet is an empty one.
    pub fn open(dir: &Path) -> Result<(Store, State), StoreError> {
        let fail = |source| StoreError::Directory {
            path: dir.to_owned(),
            source,
        };
        fs::create_dir_all(dir).map_err(fail)?;
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        let lock = options.open(dir.join("lock")).map_err(fail)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked {
                    path: dir.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        let store = Store {
            dir: dir.to_owned(),
            _lock: lock,
        };
        let state = store.load()?;
        Ok((store, state))
    }

    fn load(&self) -> Result<State, StoreError> {
        let path = self.dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        decode(&bytes).map_err(|error| match error {
            DecodeError::Version(found) => StoreError::Version { path, found },
            DecodeError::Damaged(what) => StoreError::Damaged { path, what },
        })
    }

    /// Replaces the state. On return it is on stable storage.
    pub fn save(&self, state: &State) -> Result<(), StoreError> {
        let path = self.dir.join(FILE);
        self.try_save(state, &path)
            .map_err(|source| StoreError::Write { path, source })
    }

    fn try_save(&self, state: &State, path: &Path) -> io::Result<()> {
        let beside = self.dir.join(NEW);
        let mut file = File::create(&beside)?;
        file.write_all(&encode(state)?)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(&self.dir)?.sync_all()
    }
}

fn encode(state: &State) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec_pretty(&Body { state })?;
    Ok([Header::line(&body).as_bytes(), &body].concat())
}

#[derive(Debug)]
enum DecodeError {
    Version(u32),
    Damaged(String),
}

fn decode(bytes: &[u8]) -> Result<State, DecodeError> {
    let damaged = |what: &str| DecodeError::Damaged(what.to_owned());
    let end = bytes
        .iter()
        .take(128)
        .position(|&byte| byte == b'\n')
        .ok_or_else(|| damaged("no header line"))?;
    let (line, body) = (&bytes[..end], &bytes[end + 1..]);
    let header = std::str::from_utf8(line)
        .ok()
        .and_then(Header::parse)
        .ok_or_else(|| damaged("the header line is not one of a view register"))?;
    if header.version != VERSION {
        return Err(DecodeError::Version(header.version));
    }
    if header.length != body.len() {
        return Err(DecodeError::Damaged(format!(
            "{} bytes instead of {}",
            body.len(),
            header.length
        )));
    }
    if header.checksum != crc32c::crc32c(body) {
        return Err(damaged("the checksum does not match"));
    }
    let body: Body<State> =
        serde_json::from_slice(body).map_err(|error| DecodeError::Damaged(error.to_string()))?;
    Ok(body.state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::Machine;
    use ftlog::register::Record;
    use wire::register::{ReplicaId, View, VmId};

    fn some_state() -> State {
        let view = View {
            number: 3,
            primary: ReplicaId(1),
            backup: Some(ReplicaId(2)),
        };
        let record = Record {
            view,
            claimed: false,
            on: true,
        };
        let machine = Machine {
            record,
            disks: vec!["disk0".to_owned()],
        };
        State {
            machines: [(VmId([7; 16]), machine)].into(),
        }
    }

    #[test]
    fn what_was_saved_is_read_and_the_directory_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let (store, state) = Store::open(dir.path()).unwrap();
        assert_eq!(state, State::default());
        store.save(&some_state()).unwrap();
        assert!(matches!(
            Store::open(dir.path()),
            Err(StoreError::Locked { .. })
        ));
        drop(store);
        assert_eq!(Store::open(dir.path()).unwrap().1, some_state());
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let good = encode(&some_state()).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x01;
            assert!(decode(&bad).is_err(), "byte {at} flipped and not noticed");
            assert!(
                decode(&good[..at]).is_err(),
                "cut to {at} bytes and not noticed"
            );
        }
        assert_eq!(decode(&good).unwrap(), some_state());
    }

    #[test]
    fn a_damaged_file_stops_the_start_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), b"nonsense\n{}").unwrap();
        let error = Store::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("views must never go back"), "{error}");
    }
}
