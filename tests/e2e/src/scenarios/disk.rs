//! The disk server dies: during a claim, and under load.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use rand::Rng;
use tests::client::Load;
use wire::control::{Protection, Role};

use super::{Context, LONG, SOON, Scenario, finish, load, rng, wait_answers};
use crate::machine::Machine;
use crate::wait;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "disk-down-at-claim",
            about: "the register is unreachable when the primary dies: nobody lives until it is back",
            quick: 1,
            full: 10,
            run: down_at_claim,
        },
        Scenario {
            name: "disk-restart",
            about: "the disk server is killed and started again under load, with every write synced",
            quick: 1,
            full: 10,
            run: restart,
        },
    ]
}

/// Has Redis sync every write before it answers.
fn sync_always(machine: &Machine) -> Result<()> {
    let mut stream = TcpStream::connect(machine.forward(6379)?)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"CONFIG SET appendfsync always\r\n")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    if &answer != b"+OK\r\n" {
        bail!("Redis refused: {:?}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

fn down_at_claim(context: &Context, seed: u64) -> Result<()> {
    let mut machine = context.pair(&[])?;
    sync_always(&machine)?;
    let (primary, backup) = machine.pair()?;
    let load = Load::start(load(&machine, seed)?)?;
    wait_answers(&load, 200, LONG)?;
    wait::pass(Duration::from_millis(rng(seed).random_range(0..1500)))?;
    let stopped = machine.kill_diskd()?;
    primary.process.signal(Signal::SIGKILL)?;

    // Long enough for several attempts to claim.
    let watch = std::time::Instant::now();
    let mut claiming = false;
    while watch.elapsed() < Duration::from_secs(6) {
        wait::pass(Duration::from_millis(100))?;
        let Some((_, status)) = machine.statuses().pop() else {
            bail!(
                "the backup is gone: {}",
                machine.log(&format!("replica-{}", backup.id))
            );
        };
        if status.role == Role::Solo
            || status
                .last_failover
                .is_some_and(|f| f.live_unix_us.is_some())
        {
            bail!("the backup went live without the register: {status:?}");
        }
        claiming |= status
            .last_failover
            .is_some_and(|f| f.suspected_unix_us.is_some());
    }
    if !claiming {
        bail!("the backup has not even suspected the primary");
    }
    machine.restart_diskd(&stopped)?;
    let alone = machine.wait_alone(Some(primary.id), LONG)?;
    wait_answers(&load, 500, LONG)?;
    let writes = finish(load)?;
    context.tell(&format!(
        "nobody lived for 6 s; then replica {} in {}; {writes} writes",
        alone.replica, alone.view
    ));
    machine.down()
}

fn restart(context: &Context, seed: u64) -> Result<()> {
    let mut machine = context.pair(&[])?;
    sync_always(&machine)?;
    let load = Load::start(load(&machine, seed)?)?;
    let mut rng = rng(seed);
    for _ in 0..3 {
        wait_answers(&load, 200, LONG)?;
        wait::pass(Duration::from_millis(rng.random_range(0..1000)))?;
        let stopped = machine.kill_diskd()?;
        wait::pass(Duration::from_millis(rng.random_range(0..1500)))?;
        machine.restart_diskd(&stopped)?;
    }
    wait_answers(&load, 500, LONG)?;
    let live = machine.live();
    match &live {
        Some((_, status)) if status.state == Protection::Protected => {}
        other => bail!("the pair did not stay protected: {other:?}"),
    }
    let writes = finish(load)?;
    context.tell(&format!("three restarts, still protected; {writes} writes"));
    machine.down()
}
