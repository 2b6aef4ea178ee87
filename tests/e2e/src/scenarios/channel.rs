//! The logging channel is cut while both replicas live: exactly one goes on, the other halts and says
//! why.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rand::Rng;
use tests::client::Load;
use wire::control::Role;

use super::{Context, LONG, Scenario, finish, load, rng, wait_answers};
use crate::proxy::Link;
use crate::rig::{self, Layout};
use crate::wait;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "cut-silent",
            about: "the logging channel goes silent: one replica survives, the other halts",
            quick: 1,
            full: 10,
            run: |context, seed| cut(context, seed, Link::Silent),
        },
        Scenario {
            name: "cut-closed",
            about: "the logging channel is closed: one replica survives, the other halts",
            quick: 1,
            full: 10,
            run: |context, seed| cut(context, seed, Link::Closed),
        },
    ]
}

fn cut(context: &Context, seed: u64, how: Link) -> Result<()> {
    let mut rig = rig::start(
        context.base()?,
        Layout {
            proxied: true,
            ..Layout::default()
        },
    )?;
    let proxies = rig.proxies.as_ref().context("no proxies")?;
    let machine = &mut rig.machine;
    machine.wait_protected(LONG)?;
    machine.wait_redis(LONG, |_| ())?;
    let (primary, backup) = machine.pair()?;
    let load = Load::start(load(machine, seed)?)?;
    wait::pass(Duration::from_millis(rng(seed).random_range(500..2000)))?;
    proxies.log.set(how);

    let alone = machine.wait_alone(None, LONG)?;
    let loser = if alone.replica == primary.id {
        backup
    } else {
        primary
    };
    crate::process::wait_end(loser.process, LONG)?;
    let code = machine.exit_code(loser.process);
    let said = machine.log(&format!("replica-{}", loser.id));
    let reason = said.lines().find(|line| line.contains("halted:"));
    let (Some(reason), Some(3)) = (reason, code) else {
        bail!("the loser ended with {code:?} and did not say why:\n{said}");
    };
    wait_answers(&load, 500, LONG)?;
    let live = machine.statuses();
    if live.len() != 1 || live[0].1.role != Role::Solo {
        bail!("more than one replica is there: {live:?}");
    }
    if machine.view()?.primary != alone.replica {
        bail!("the register has {}", machine.view()?);
    }
    let writes = finish(load)?;
    context.tell(&format!(
        "replica {} ({}) survived with {writes} writes; the other said: {reason}",
        alone.replica,
        if loser.id.0 == 1 {
            "once the backup"
        } else {
            "the primary"
        },
    ));
    Ok(())
}
