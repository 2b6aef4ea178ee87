//! Starting programs of Lockstep.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wire::running::Process;

/// The end of a log file that is shown when a program fails.
const LOG_TAIL: usize = 2000;

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(
        "{program} was not found beside this program ({dir}); build all of Lockstep \
             (cargo build --release)"
    )]
    Missing { program: String, dir: PathBuf },
    #[error("{program} could not be started")]
    Spawn {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{program} ended before it was ready; it said:\n{said}")]
    Ended { program: String, said: String },
    #[error("{program} said something that is not understood when it was ready: {line:?}")]
    Ready { program: String, line: String },
    #[error("its log file {path} cannot be made")]
    Log {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A program of Lockstep: it lies beside this one.
pub fn program(name: &str) -> Result<PathBuf, StartError> {
    let own = std::env::current_exe().unwrap_or_default();
    let dir = own.parent().unwrap_or(Path::new("")).to_owned();
    // Tests and examples lie one folder deeper.
    let dirs = [
        dir.clone(),
        dir.parent().unwrap_or(Path::new("")).to_owned(),
    ];
    dirs.iter()
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| StartError::Missing {
            program: name.to_owned(),
            dir,
        })
}

/// A program that has said that it is ready.
pub struct Started<T> {
    pub process: Process,
    pub ready: T,
    pub end: End,
}

/// How a child of this process ended, once it has.
#[derive(Clone)]
pub struct End(Arc<OnceLock<ExitStatus>>);

impl End {
    /// The status with which it ended, if it has and no signal ended it.
    pub fn code(&self) -> Option<u8> {
        self.0.get()?.code()?.try_into().ok()
    }

    /// Whether it has ended and [`code`](Self::code) knows.
    pub fn is_known(&self) -> bool {
        self.0.get().is_some()
    }
}

/// Starts a program in the background, its log going to `log`, and waits for the line of JSON that
/// it prints when it is ready.
pub fn start<T: serde::de::DeserializeOwned>(
    name: &str,
    args: &[OsString],
    log: &Path,
) -> Result<Started<T>, StartError> {
    let path = program(name)?;
    let failed = |source| StartError::Log {
        path: log.to_owned(),
        source,
    };
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(failed)?;
    let mut child = Command::new(path)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(file)
        // Ctrl-C in the terminal is for whoever waits there, not for the machine.
        .process_group(0)
        .spawn()
        .map_err(|source| StartError::Spawn {
            program: name.to_owned(),
            source,
        })?;
    let line = first_line(&mut child);
    let process = i32::try_from(child.id()).ok().and_then(Process::of);
    let end = reap(child);
    let (Some(process), Some(line)) = (process, line) else {
        return Err(StartError::Ended {
            program: name.to_owned(),
            said: tail(log),
        });
    };
    match serde_json::from_str(&line) {
        Ok(ready) => Ok(Started {
            process,
            ready,
            end,
        }),
        Err(_) => {
            process.end(Duration::from_secs(1));
            Err(StartError::Ready {
                program: name.to_owned(),
                line,
            })
        }
    }
}

fn first_line(child: &mut Child) -> Option<String> {
    let mut line = String::new();
    let stdout = child.stdout.take()?;
    let read = BufReader::new(stdout.take(64 << 10))
        .read_line(&mut line)
        .ok()?;
    (read > 0).then(|| line.trim_end().to_owned())
}

/// A child that ends must not stay a zombie while its parent lives.
fn reap(mut child: Child) -> End {
    let end = Arc::new(OnceLock::new());
    let told = Arc::clone(&end);
    std::thread::spawn(move || {
        if let Ok(status) = child.wait() {
            // Nobody else sets it.
            let _ = told.set(status);
        }
    });
    End(end)
}

/// The end of a log file.
pub fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    // A character that is cut is shown as a replacement.
    let end = &text[text.len().saturating_sub(LOG_TAIL)..];
    String::from_utf8_lossy(end).trim_end().to_owned()
}
