//! `down`: the guest's power is cut, and everything that `up` started is ended and removed.

use std::time::Duration;

use wire::control::{ControlClient, Request, Role};
use wire::running::Running;

use crate::rundir::{RunDir, RunDirError};
use crate::status;

/// How long the replicas may take to switch off in order.
const POWER_OFF: Duration = Duration::from_secs(5);
const END: Duration = Duration::from_secs(3);
const CONTROL: Duration = Duration::from_secs(2);

/// Ends a machine and removes its folder.
pub fn down(dir: &RunDir, running: &Running) -> Result<(), RunDirError> {
    power_off(running);
    for process in running.processes() {
        process.end(END);
    }
    dir.remove()
}

/// Asks the live replica; one that does not answer is ended by signal anyway.
fn power_off(running: &Running) {
    let Some(live) = status::with_role(running, Role::Primary) else {
        return;
    };
    let asked = ControlClient::connect(&live.control, CONTROL)
        .and_then(|mut client| client.call(&Request::Poweroff));
    if asked.is_ok() {
        for replica in &running.replicas {
            replica.process.wait_end(POWER_OFF);
        }
    }
}
