//! What a disk server serves, and where it listens.

use std::path::PathBuf;
use std::str::FromStr;

use wire::register::check_name;

/// The settings of one server.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST:PORT` of the NBD server; port 0 lets the system pick.
    pub nbd: String,
    /// `HOST:PORT` of the view register.
    pub register: String,
    /// Where the register's state is kept; made if missing.
    pub state: PathBuf,
    pub disks: Vec<DiskConfig>,
    /// Snapshots may be written below these directories only.
    pub snapshots: Vec<PathBuf>,
}

/// One image file and its export name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    pub name: String,
    pub path: PathBuf,
    pub read_only: bool,
}

/// Why a `--disk` argument cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskConfigError {
    #[error("{0:?} is not of the form key=value; a disk is name=NAME,path=FILE[,readonly=on]")]
    NoValue(String),
    #[error("{0:?} is not one of name=, path=, readonly=")]
    Key(String),
    #[error("readonly={0:?} is neither on nor off")]
    ReadOnly(String),
    #[error("{0}= is missing; a disk is name=NAME,path=FILE[,readonly=on]")]
    Missing(&'static str),
    #[error("{0}")]
    Name(String),
}

impl FromStr for DiskConfig {
    type Err = DiskConfigError;

    fn from_str(text: &str) -> Result<DiskConfig, DiskConfigError> {
        let (mut name, mut path, mut read_only) = (None, None, false);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("name", value)) => {
                    check_name("disk", value).map_err(DiskConfigError::Name)?;
                    name = Some(value.to_owned());
                }
                Some(("path", value)) if !value.is_empty() => path = Some(PathBuf::from(value)),
                Some(("path", _)) => return Err(DiskConfigError::Missing("path")),
                Some(("readonly", "on")) => read_only = true,
                Some(("readonly", "off")) => read_only = false,
                Some(("readonly", value)) => {
                    return Err(DiskConfigError::ReadOnly(value.to_owned()));
                }
                Some((key, _)) => return Err(DiskConfigError::Key(key.to_owned())),
                None => return Err(DiskConfigError::NoValue(part.to_owned())),
            }
        }
        Ok(DiskConfig {
            name: name.ok_or(DiskConfigError::Missing("name"))?,
            path: path.ok_or(DiskConfigError::Missing("path"))?,
            read_only,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_argument_is_read_or_explained() {
        let disk: DiskConfig = "name=disk0,path=/tmp/a b,readonly=on".parse().unwrap();
        let path = PathBuf::from("/tmp/a b");
        assert_eq!(
            disk,
            DiskConfig {
                name: "disk0".to_owned(),
                path,
                read_only: true
            }
        );
        for (text, error) in [
            ("path=/x", DiskConfigError::Missing("name")),
            ("name=d", DiskConfigError::Missing("path")),
            ("name=d,path=", DiskConfigError::Missing("path")),
            (
                "name=d,path=/x,size=3",
                DiskConfigError::Key("size".to_owned()),
            ),
            (
                "name=d,path=/x,readonly=yes",
                DiskConfigError::ReadOnly("yes".to_owned()),
            ),
            ("disk.img", DiskConfigError::NoValue("disk.img".to_owned())),
        ] {
            assert_eq!(text.parse::<DiskConfig>(), Err(error), "{text}");
        }
        assert!(matches!(
            "name=a?b,path=/x".parse::<DiskConfig>(),
            Err(DiskConfigError::Name(_))
        ));
    }
}
