//! What the replicas of a machine say of themselves, as one answer.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use wire::control::{ControlClient, PositionStatus, Protection, Role, Status};
use wire::register::{ReplicaId, View};
use wire::running::{ReplicaProcess, Running};

/// How long a replica may take to answer; one that is stopped does not.
const TIMEOUT: Duration = Duration::from_millis(500);

/// A machine's state, in the words that users of fault-tolerant machines know.
#[derive(Clone, Debug, Serialize)]
pub struct Overview {
    pub name: String,
    pub state: Protection,
    /// Of the live replica, or the highest that any knows.
    pub view: Option<View>,
    pub replicas: Vec<ReplicaStatus>,
    /// By how much the backup is behind, in ms (the vLockstep interval).
    pub lag_ms: f64,
    pub log_mbit_per_s: f64,
    /// Guest port to host address.
    pub forwards: BTreeMap<u16, String>,
}

/// One replica.
#[derive(Clone, Debug, Serialize)]
pub struct ReplicaStatus {
    pub replica: ReplicaId,
    pub role: Role,
    pub state: Protection,
    pub pid: i32,
    pub engine: String,
    pub position: PositionStatus,
    /// Of its control API.
    pub address: String,
    /// Everything that it said; `None` if it is gone or does not answer.
    pub details: Option<Status>,
}

impl ReplicaStatus {
    /// Whether it answers for the guest.
    pub fn is_live(&self) -> bool {
        matches!(self.role, Role::Primary | Role::Solo) && self.details.is_some()
    }
}

/// Asks all replicas.
pub fn status(running: &Running) -> Overview {
    let mut replicas: Vec<ReplicaStatus> = running.replicas.iter().map(replica).collect();
    replicas.sort_by_key(|replica| replica.replica);
    // After a split the live one is the one of the highest view.
    let live = replicas
        .iter()
        .filter(|replica| replica.is_live())
        .max_by_key(|r| view_number(r));
    let details = live.and_then(|live| live.details.as_ref());
    let view = replicas
        .iter()
        .filter_map(|r| r.details.as_ref())
        .map(|d| d.view);
    Overview {
        name: running.name.clone(),
        state: details.map_or(Protection::NotRunning, |details| details.state.clone()),
        view: details
            .map(|details| details.view)
            .or(view.max_by_key(|view| view.number)),
        lag_ms: details.map_or(0.0, |details| details.lag_ms),
        log_mbit_per_s: details.map_or(0.0, |details| details.log_mbit_per_s),
        forwards: running
            .forwards
            .iter()
            .map(|forward| (forward.guest_port, forward.host.to_string()))
            .collect(),
        replicas,
    }
}

fn view_number(replica: &ReplicaStatus) -> u64 {
    replica
        .details
        .as_ref()
        .map_or(0, |details| details.view.number)
}

/// Asks one replica.
pub fn replica(replica: &ReplicaProcess) -> ReplicaStatus {
    let details = ask(replica);
    let gone = || {
        let words = if replica.process.is_alive() {
            "it does not answer"
        } else {
            "it has ended"
        };
        Protection::Halted(words.to_owned())
    };
    ReplicaStatus {
        replica: replica.id,
        role: details
            .as_ref()
            .map_or(Role::Halted, |details| details.role),
        state: details
            .as_ref()
            .map_or_else(gone, |details| details.state.clone()),
        pid: replica.process.pid,
        engine: details
            .as_ref()
            .map_or_else(String::new, |details| details.engine.clone()),
        position: details
            .as_ref()
            .map(|details| details.position.clone())
            .unwrap_or_default(),
        address: replica.control.to_string(),
        details,
    }
}

fn ask(replica: &ReplicaProcess) -> Option<Status> {
    if !replica.process.is_alive() {
        return None;
    }
    ControlClient::connect(&replica.control, TIMEOUT)
        .ok()?
        .status()
        .ok()
}

/// The replica that has the role now.
pub fn with_role(running: &Running, role: Role) -> Option<ReplicaProcess> {
    let seen = status(running);
    let wanted = |replica: &&ReplicaStatus| {
        replica.role == role || role == Role::Primary && replica.role == Role::Solo
    };
    let found = seen
        .replicas
        .iter()
        .filter(|r| r.details.is_some())
        .find(wanted)?;
    running
        .replicas
        .iter()
        .find(|replica| replica.id == found.replica)
        .cloned()
}
