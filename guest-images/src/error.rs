//! The one error type of a build: what went wrong and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a guest image could not be built or copied.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An option is out of its range or malformed.
    #[error("{option}: {problem}")]
    Option {
        /// The option's name as on the command line.
        option: &'static str,
        /// What is wrong with the value and what is accepted.
        problem: String,
    },
    /// Making an image (not using a cached one) needs root.
    #[error(
        "building a guest image needs root (it unpacks packages with their owners and runs their \
         scripts in a chroot); run it once as root with the same cache directory ({cache}), \
         afterwards any user who can read that can use it"
    )]
    NotRoot {
        /// The cache directory in use.
        cache: PathBuf,
    },
    /// A host program that the build needs is not there.
    #[error(
        "'{program}' was not found; the build needs a Debian host with the package '{package}'"
    )]
    MissingProgram {
        /// The program looked for in PATH.
        program: String,
        /// The Debian package that brings it.
        package: &'static str,
    },
    /// apt could not bring its package lists up to date.
    #[error(
        "the package lists could not be fetched; the first build (and --refresh) need a Debian 12 \
         mirror that apt can reach: {0}"
    )]
    NoPackageLists(Box<BuildError>),
    /// A command ended with a failure.
    #[error("{command}\n  failed ({status}):\n{output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status in words.
        status: String,
        /// The last lines that it wrote.
        output: String,
    },
    /// A file operation failed.
    #[error("{action} {path}: {cause}")]
    Io {
        /// What was tried, as a verb: "read", "create" …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A package does not contain what the recipe expects of it.
    #[error("{0}")]
    Unexpected(String),
    /// A cache file is not what this program wrote.
    #[error("{path} is damaged ({problem}); delete it and build again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
}

/// Turns an `io::Error` into a [`BuildError`] that names the file.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError {
    let path = path.to_owned();
    move |cause| BuildError::Io {
        action,
        path,
        cause,
    }
}
