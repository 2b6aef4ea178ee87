//! Export names: a disk, and for a replica the view that its connection belongs to.
//!
//! `NAME` is what an administrator's tool asks for. `NAME?vm=ID&view=N&replica=R` is a connection
//! of replica R of the virtual machine ID in view N: `ft-diskd` refuses it once a later view has
//! been won (the design's rule 6).

use std::fmt;
use std::str::FromStr;

use crate::register::{ReplicaId, VmId, check_name};

/// Which disk, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportName {
    pub disk: String,
    /// `None`: not a replica's connection.
    pub view: Option<ViewTag>,
}

/// The view that a connection belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewTag {
    pub vm: VmId,
    pub view: u64,
    pub replica: ReplicaId,
}

/// Why a string is not an export name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportNameError {
    #[error("{0}")]
    Name(String),
    #[error("the export's parameter {0:?} is not one of vm=, view=, replica=")]
    Parameter(String),
    #[error("the export's view {0:?} is not a number")]
    View(String),
    #[error("the export's replica {0:?} is not a replica: {1}")]
    Replica(String, String),
    #[error("the export names {0}= twice")]
    Twice(&'static str),
    #[error("a replica's export needs vm=, view= and replica=; {0}= is missing")]
    Missing(&'static str),
}

impl fmt::Display for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.disk)?;
        match &self.view {
            Some(tag) => write!(
                f,
                "?vm={}&view={}&replica={}",
                tag.vm, tag.view, tag.replica
            ),
            None => Ok(()),
        }
    }
}

fn put<T>(slot: &mut Option<T>, key: &'static str, value: T) -> Result<(), ExportNameError> {
    match slot.replace(value) {
        Some(_) => Err(ExportNameError::Twice(key)),
        None => Ok(()),
    }
}

fn parse_tag(query: &str) -> Result<ViewTag, ExportNameError> {
    let (mut vm, mut view, mut replica) = (None, None, None);
    for part in query.split('&') {
        match part.split_once('=') {
            Some(("vm", id)) => {
                let parsed = id.parse().map_err(|error: <VmId as FromStr>::Err| {
                    ExportNameError::Name(error.to_string())
                })?;
                put(&mut vm, "vm", parsed)?;
            }
            Some(("view", number)) => {
                let parsed = number
                    .parse()
                    .map_err(|_| ExportNameError::View(number.to_owned()))?;
                put(&mut view, "view", parsed)?;
            }
            Some(("replica", id)) => {
                let parsed = id.parse().map_err(|error: <ReplicaId as FromStr>::Err| {
                    ExportNameError::Replica(id.to_owned(), error.to_string())
                })?;
                put(&mut replica, "replica", parsed)?;
            }
            _ => return Err(ExportNameError::Parameter(part.to_owned())),
        }
    }
    Ok(ViewTag {
        vm: vm.ok_or(ExportNameError::Missing("vm"))?,
        view: view.ok_or(ExportNameError::Missing("view"))?,
        replica: replica.ok_or(ExportNameError::Missing("replica"))?,
    })
}

impl FromStr for ExportName {
    type Err = ExportNameError;

    fn from_str(text: &str) -> Result<ExportName, ExportNameError> {
        let (disk, query) = match text.split_once('?') {
            Some((disk, query)) => (disk, Some(query)),
            None => (text, None),
        };
        check_name("disk", disk).map_err(ExportNameError::Name)?;
        let view = query.map(parse_tag).transpose()?;
        Ok(ExportName {
            disk: disk.to_owned(),
            view,
        })
    }
}
