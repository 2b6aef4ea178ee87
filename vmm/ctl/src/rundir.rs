//! Where the files of a running machine are, and which processes are its own.
//!
//! One folder for each machine, mode 0700, under `$LOCKSTEP_DIR`, or `$XDG_RUNTIME_DIR/lockstep`, or
//! `/tmp/lockstep-UID`. `ft-ctl down` removes it.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use wire::running::Running;

#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("no machine named {0:?} is up; see `ft-ctl up`")]
    NotUp(String),
    #[error("no machine is up; see `ft-ctl up`")]
    NoneUp,
    #[error("the machine {name:?} is up already (in {dir}); see `ft-ctl status`, `ft-ctl down`")]
    Up { name: String, dir: PathBuf },
    #[error("several machines are up; say which with --machine (-m): {0}")]
    Which(String),
    #[error("{path} belongs to somebody else; set LOCKSTEP_DIR to a folder of your own")]
    Foreign { path: PathBuf },
    #[error("{path} cannot be used")]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is damaged; end the machine's processes by hand and remove the folder")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// A machine's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The folder of the machine `name`, which need not be there.
    pub fn of(name: &str) -> Self {
        Self(base().join(name))
    }

    /// The folder of the machine `name`, or of the only one that is up.
    pub fn find(name: Option<&str>) -> Result<(Self, Running), RunDirError> {
        let dir = match name {
            Some(name) => Self::of(name),
            None => only()?,
        };
        let running = dir.load()?;
        Ok((dir, running))
    }

    /// Makes the folder. What a machine left that is not up any more is removed.
    pub fn create(name: &str) -> Result<Self, RunDirError> {
        let dir = Self::of(name);
        make_base()?;
        if let Ok(running) = dir.load()
            && running.is_alive()
        {
            return Err(RunDirError::Up {
                name: name.to_owned(),
                dir: dir.0,
            });
        }
        dir.remove()?;
        make_private(&dir.0)?;
        Ok(dir)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn save(&self, running: &Running) -> Result<(), RunDirError> {
        let path = self.file("running.json");
        let temporary = self.file("running.json.new");
        let text = serde_json::to_vec_pretty(running).map_err(|source| RunDirError::Damaged {
            path: path.clone(),
            source,
        })?;
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| RunDirError::Io { path, source })
    }

    pub fn load(&self) -> Result<Running, RunDirError> {
        let path = self.file("running.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => {
                let name = self.0.file_name().unwrap_or_default().to_string_lossy();
                return Err(RunDirError::NotUp(name.into_owned()));
            }
            Err(source) => return Err(RunDirError::Io { path, source }),
        };
        serde_json::from_slice(&text).map_err(|source| RunDirError::Damaged { path, source })
    }

    pub fn remove(&self) -> Result<(), RunDirError> {
        match fs::remove_dir_all(&self.0) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(RunDirError::Io {
                path: self.0.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// The folder of all machines' folders.
pub fn base() -> PathBuf {
    if let Some(dir) = std::env::var_os("LOCKSTEP_DIR") {
        return dir.into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_dir() => Path::new(&dir).join("lockstep"),
        _ => PathBuf::from(format!("/tmp/lockstep-{}", nix::unistd::geteuid())),
    }
}

/// Makes that folder, or sees that it is ours.
pub fn make_base() -> Result<(), RunDirError> {
    make_private(&base())
}

fn only() -> Result<RunDir, RunDirError> {
    let mut names: Vec<String> = fs::read_dir(base())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            RunDir::of(name)
                .load()
                .is_ok_and(|running| running.is_alive())
        })
        .collect();
    names.sort();
    match names.as_slice() {
        [] => Err(RunDirError::NoneUp),
        [name] => Ok(RunDir::of(name)),
        _ => Err(RunDirError::Which(names.join(", "))),
    }
}

/// Makes a folder that only its owner can look into; one that is there must be ours.
fn make_private(path: &Path) -> Result<(), RunDirError> {
    let failed = |source| RunDirError::Io {
        path: path.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed)?;
    let found = fs::symlink_metadata(path).map_err(failed)?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(RunDirError::Foreign {
            path: path.to_owned(),
        });
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
}
