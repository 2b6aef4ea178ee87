//! Where a control API listens: `unix:PATH` or `HOST:PORT`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a control API listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum ControlAddr {
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

/// Why a string is not a control address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a control address: write unix:PATH or HOST:PORT")]
pub struct ControlAddrError(String);

impl fmt::Display for ControlAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlAddr::Unix(path) => write!(f, "unix:{}", path.display()),
            ControlAddr::Tcp(addr) => write!(f, "{addr}"),
        }
    }
}

impl FromStr for ControlAddr {
    type Err = ControlAddrError;

    fn from_str(text: &str) -> Result<ControlAddr, ControlAddrError> {
        let bad = || ControlAddrError(text.to_owned());
        match text.strip_prefix("unix:") {
            Some("") => Err(bad()),
            Some(path) => Ok(ControlAddr::Unix(PathBuf::from(path))),
            None => {
                let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
                if host.is_empty() || port.parse::<u16>().is_err() {
                    return Err(bad());
                }
                Ok(ControlAddr::Tcp(text.to_owned()))
            }
        }
    }
}

impl From<ControlAddr> for String {
    fn from(addr: ControlAddr) -> String {
        addr.to_string()
    }
}

impl TryFrom<String> for ControlAddr {
    type Error = ControlAddrError;

    fn try_from(text: String) -> Result<ControlAddr, ControlAddrError> {
        text.parse()
    }
}
