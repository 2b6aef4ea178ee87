//! Three hosts: the primary's loses its network and comes back later.

use std::time::Duration;

use anyhow::{Result, bail};
use tests::client::Load;
use wire::control::Role;

use super::{Context, LONG, Scenario, finish, load, wait_answers};
use crate::hosts::Network;
use crate::rig::{self, HOST_A, Layout};
use crate::wait;

/// Where the clients are.
const HOST_D: u8 = 4;

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "three-hosts",
        about: "hosts in network namespaces; the primary's cable is pulled out, and put back later",
        quick: 1,
        full: 5,
        run: three_hosts,
    }]
}

fn three_hosts(context: &Context, seed: u64) -> Result<()> {
    let base = context.base()?;
    let network = Network::new(HOST_D)?;
    let layout = Layout {
        network: Some(&network),
        ..Layout::default()
    };
    let mut rig = rig::start(base, layout)?;
    let machine = &mut rig.machine;
    machine.wait_protected(LONG)?;
    let (primary, _) = machine.pair()?;
    let address = machine.forward(6379)?;
    let options = load(machine, seed)?;
    let load = network.on(HOST_D, || {
        wait::until("Redis answers on host D", LONG, || {
            Ok(crate::machine::redis_pings(address).then_some(()))
        })?;
        Ok(Load::start(options)?)
    })?;
    wait_answers(&load, 500, LONG)?;

    network.plug(HOST_A, false)?;
    let alone = machine.wait_alone(Some(primary.id), LONG)?;
    wait_answers(&load, 500, LONG)?;
    // It cannot reach the register: it must neither live nor give up.
    wait::pass(Duration::from_secs(3))?;
    match crate::machine::status(&primary) {
        Some(status) if status.role != Role::Solo => {}
        other => bail!("the cut off primary says: {other:?}"),
    }
    network.plug(HOST_A, true)?;
    crate::process::wait_end(primary.process, LONG)?;
    let said = machine.log(&format!("replica-{}", primary.id));
    let Some(reason) = said.lines().find(|line| line.contains("halted:")) else {
        bail!("the old primary did not say why it ended:\n{said}");
    };
    wait_answers(&load, 500, LONG)?;
    let writes = finish(load)?;
    context.tell(&format!(
        "replica {} lived on in {} with {writes} writes; back on the network the other said: {reason}",
        alone.replica, alone.view
    ));
    Ok(())
}
