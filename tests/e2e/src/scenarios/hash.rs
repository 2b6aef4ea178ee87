//! Primary and backup are compared, all of memory included, through boot, Redis, disk and compute
//! load.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tests::client::Load;
use wire::control::Protection;

use super::{Context, LONG, Scenario, finish, load, rng, wait_answers};
use crate::base::BOOT;
use crate::failover::{self, Plan};
use crate::home::Home;
use crate::machine::Machine;
use crate::wait;

/// All of memory, every so many instructions. That keeps both cores of a small host busy: here no
/// host is to be suspected for being slow.
const HASH: [&str; 5] = [
    "--hash-memory",
    "--hash-interval",
    "100000000",
    "--suspect-ms",
    "10000",
];

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "hash-memory",
            about: "all of memory compared through boot, Redis, disk and compute load",
            quick: 1,
            full: 3,
            run: hash_memory,
        },
        Scenario {
            name: "disk-reads-backup",
            about: "the backup reads the disk itself; all of memory compared; then a kill",
            quick: 1,
            full: 5,
            run: disk_reads_backup,
        },
    ]
}

/// Reads and writes of files, and arithmetic on integers and floats, as programs of the guest do it.
const WORK: &[&str] = &[
    "echo 3 >/proc/sys/vm/drop_caches; cat /usr/bin/[o-r]* /usr/lib/x86_64-linux-gnu/libc[a-z]* | md5sum",
    "dd if=/dev/urandom of=/root/junk bs=64k count=64 conv=fsync; sync; md5sum /root/junk; rm /root/junk",
    "openssl speed -seconds 1 -bytes 1024 sha256 aes-128-cbc",
    "python3 -c 'print(sum(x ** 0.5 * (x % 7) for x in range(300000)))'",
];

fn work(machine: &Machine) -> Result<()> {
    for command in WORK {
        let said = machine.shell(command, LONG)?;
        for bad in ["not found", "Segmentation", "I/O error"] {
            if said.contains(bad) {
                bail!("`{command}` in the guest: {said}");
            }
        }
    }
    Ok(())
}

/// Waits until the backup has compared `more` states than `before`, with the pair still protected.
fn wait_compared(machine: &Machine, at_least: u64) -> Result<u64> {
    wait::until("the backup compares states", LONG, || {
        let (_, live) = machine.live().context("no replica is live")?;
        if live.state != Protection::Protected {
            bail!("the pair is not protected any more: {}", live.state);
        }
        let (_, backup) = machine.backup().context("the backup is gone")?;
        Ok((backup.hashes_compared >= at_least).then_some(backup.hashes_compared))
    })
}

fn hash_memory(context: &Context, seed: u64) -> Result<()> {
    let machine = Home::temporary()?.up(&HASH)?;
    machine.wait_protected(LONG)?;
    machine.wait_redis(BOOT, |_| ())?;
    let booted = wait_compared(&machine, 5)?;
    let load = Load::start(load(&machine, seed)?)?;
    wait_answers(&load, 1000, LONG)?;
    work(&machine)?;
    let writes = finish(load)?;
    machine.hash_memory()?;
    let compared = wait_compared(&machine, booted + 5)?;
    context.tell(&format!(
        "{booted} comparisons while booting, {} under load ({writes} writes): no difference",
        compared - booted
    ));
    machine.down()
}

fn disk_reads_backup(context: &Context, seed: u64) -> Result<()> {
    let machine = context.pair(&[&HASH[..], &["--disk-reads", "backup"]].concat())?;
    work(&machine)?;
    machine.hash_memory()?;
    let compared = wait_compared(&machine, 3)?;
    let plan = Plan::random(
        load(&machine, seed)?,
        Duration::from_secs(5),
        &mut rng(seed),
    );
    let outcome = failover::kill_primary(&machine, &plan, |_| ())?;
    outcome.judge()?;
    work(&machine)?;
    context.tell(&format!(
        "{compared} comparisons without a difference; {} writes over a kill",
        outcome.verdict.acknowledged
    ));
    machine.down()
}
