//! The rules of the view register, as functions on its state.
//!
//! A view is (number, primary, backup). Numbers only grow. A claim moves a machine from view n
//! to (n+1, claimant, none) if n is current and the claimant was its primary or backup; the same
//! claimant asking again gets the same answer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wire::register::{Record, ReplicaId, View, VmId, check_name};

use crate::access::Standing;
use crate::image::snapshot::SnapshotError;
use crate::store::StoreError;

/// Machines that one register keeps, at most.
const MAX_MACHINES: usize = 256;
/// Disks of one machine, at most.
const MAX_DISKS: usize = 16;

/// What the register keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub machines: BTreeMap<VmId, Machine>,
}

/// What it keeps of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    pub view: View,
    pub on: bool,
    pub disks: Vec<String>,
    /// Whether the current view was won by a claim of its primary, rather than created.
    pub claimed: bool,
}

impl Machine {
    pub fn standing(&self) -> Standing {
        Standing {
            view: self.view,
            on: self.on,
            disks: self.disks.iter().cloned().collect(),
        }
    }

    pub fn record(&self, vm: VmId) -> Record {
        Record {
            vm,
            view: self.view,
            disks: self.disks.clone(),
            on: self.on,
        }
    }
}

/// The answer to a claim that was understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Won(View),
    Lost(View),
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("machine {vm} has no record; it is created when it is powered on")]
    NoRecord { vm: VmId },
    #[error(
        "machine {vm} has a record already (view {view}); ask with reset if none of its \
         replicas runs any more"
    )]
    Exists { vm: VmId, view: u64 },
    #[error("machine {vm} is off since view {view}")]
    Off { vm: VmId, view: u64 },
    #[error("view {asked} of machine {vm} is not the current one, which is {current}")]
    NotCurrent { vm: VmId, asked: u64, current: u64 },
    #[error("primary and backup are both replica {0}")]
    SameReplica(ReplicaId),
    #[error("the disk {disk:?} belongs to machine {vm}, which is on")]
    DiskInUse { disk: String, vm: VmId },
    #[error("this server has no disk {disk:?}")]
    NoSuchDisk { disk: String },
    #[error("a machine may have {MAX_DISKS} disks at most, each named once; {0}")]
    Disks(String),
    #[error("this register keeps {MAX_MACHINES} machines at most, and has that many")]
    Full,
    #[error("the disk {disk:?} is being copied already")]
    Busy { disk: String },
    #[error("view numbers of machine {vm} are used up")]
    NumbersUsedUp { vm: VmId },
    #[error(transparent)]
    Storage(StoreError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("this request is answered elsewhere")]
    NotHere,
}

fn check_disks(state: &State, vm: VmId, disks: &[String]) -> Result<(), Refusal> {
    if disks.len() > MAX_DISKS {
        return Err(Refusal::Disks(format!("{} were named", disks.len())));
    }
    for (at, disk) in disks.iter().enumerate() {
        check_name("disk", disk).map_err(Refusal::Disks)?;
        if disks[..at].contains(disk) {
            return Err(Refusal::Disks(format!("{disk:?} was named twice")));
        }
        let other = state
            .machines
            .iter()
            .find(|(other, machine)| **other != vm && machine.on && machine.disks.contains(disk));
        if let Some((other, _)) = other {
            return Err(Refusal::DiskInUse {
                disk: disk.clone(),
                vm: *other,
            });
        }
    }
    Ok(())
}

/// Starts a machine. View 1 for a new one; after a reset, one more than any view before.
pub fn create(
    state: &mut State,
    vm: VmId,
    primary: ReplicaId,
    backup: Option<ReplicaId>,
    disks: &[String],
    reset: bool,
) -> Result<(), Refusal> {
    if backup == Some(primary) {
        return Err(Refusal::SameReplica(primary));
    }
    check_disks(state, vm, disks)?;
    let number = match state.machines.get(&vm) {
        None if state.machines.len() >= MAX_MACHINES => return Err(Refusal::Full),
        None => 1,
        Some(old) if !reset => {
            return Err(Refusal::Exists {
                vm,
                view: old.view.number,
            });
        }
        Some(old) => old
            .view
            .number
            .checked_add(1)
            .ok_or(Refusal::NumbersUsedUp { vm })?,
    };
    let view = View {
        number,
        primary,
        backup,
    };
    let machine = Machine {
        view,
        on: true,
        disks: disks.to_vec(),
        claimed: false,
    };
    state.machines.insert(vm, machine);
    Ok(())
}

/// A replica wants to go on alone.
pub fn claim(
    state: &mut State,
    vm: VmId,
    from_view: u64,
    claimant: ReplicaId,
) -> Result<Verdict, Refusal> {
    let machine = state
        .machines
        .get_mut(&vm)
        .ok_or(Refusal::NoRecord { vm })?;
    let current = machine.view;
    if !machine.on {
        return Err(Refusal::Off {
            vm,
            view: current.number,
        });
    }
    if from_view > current.number {
        return Err(Refusal::NotCurrent {
            vm,
            asked: from_view,
            current: current.number,
        });
    }
    if from_view < current.number {
        let repeated = machine.claimed
            && from_view.checked_add(1) == Some(current.number)
            && current.primary == claimant;
        return Ok(if repeated {
            Verdict::Won(current)
        } else {
            Verdict::Lost(current)
        });
    }
    if claimant != current.primary && Some(claimant) != current.backup {
        return Ok(Verdict::Lost(current));
    }
    let number = current
        .number
        .checked_add(1)
        .ok_or(Refusal::NumbersUsedUp { vm })?;
    machine.view = View {
        number,
        primary: claimant,
        backup: None,
    };
    machine.claimed = true;
    Ok(Verdict::Won(machine.view))
}

/// The machine is off.
pub fn off(state: &mut State, vm: VmId, view: u64) -> Result<(), Refusal> {
    let machine = state
        .machines
        .get_mut(&vm)
        .ok_or(Refusal::NoRecord { vm })?;
    if view != machine.view.number {
        return Err(Refusal::NotCurrent {
            vm,
            asked: view,
            current: machine.view.number,
        });
    }
    machine.on = false;
    Ok(())
}

#[cfg(test)]
mod tests;
