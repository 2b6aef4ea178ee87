//! What the guest does of itself: power off, reboot, memory of several sizes.

use anyhow::{Context as _, Result, bail};
use wire::control::Protection;

use super::{Context, LONG, Scenario};
use crate::base::BOOT;
use crate::home::Home;
use crate::wait;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "poweroff",
            about: "the guest switches itself off: both replicas end in order",
            quick: 1,
            full: 3,
            run: poweroff,
        },
        Scenario {
            name: "reboot",
            about: "the guest reboots itself: both replicas follow, still protected",
            quick: 1,
            full: 3,
            run: reboot,
        },
        Scenario {
            name: "memory-sizes",
            about: "the guest boots with 256 MiB, 512 MiB and 2 GiB",
            quick: 1,
            full: 1,
            run: memory_sizes,
        },
    ]
}

fn poweroff(context: &Context, _seed: u64) -> Result<()> {
    let machine = context.pair(&[])?;
    machine.wait_shell(LONG)?;
    machine.type_line("poweroff")?;
    for replica in machine.replicas() {
        crate::process::wait_end(replica.process, LONG)?;
        let said = machine.log(&format!("replica-{}", replica.id));
        if said.contains("halted:") || said.contains("panicked") {
            bail!("replica {} did not end in order:\n{said}", replica.id);
        }
    }
    let view = machine.view()?;
    if view.number != 1 {
        bail!("the end of the machine was taken for a failure: {view}");
    }
    context.tell("off, both replicas, in view 1");
    machine.down()
}

fn reboot(context: &Context, _seed: u64) -> Result<()> {
    let machine = context.pair(&[])?;
    let before = machine.shell("cat /proc/sys/kernel/random/boot_id", LONG)?;
    machine.type_line("reboot")?;
    wait::until("Redis goes away", LONG, || {
        Ok((!crate::machine::redis_pings(machine.forward(6379)?)).then_some(()))
    })?;
    machine.wait_redis(BOOT, |_| ())?;
    let after = machine.shell("cat /proc/sys/kernel/random/boot_id", LONG)?;
    // Among what the terminal makes of the prompt.
    let id = |text: &str| {
        let mut words = text.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
        words.find(|word| word.len() == 36).map(str::to_owned)
    };
    let ids = (
        id(&before).context("no boot id before")?,
        id(&after).context("no boot id after")?,
    );
    if ids.0 == ids.1 {
        bail!("it is the same boot");
    }
    let (_, live) = machine.live().context("no replica is live")?;
    if live.state != Protection::Protected || live.view.number != 1 {
        bail!("after the reboot: {} in {}", live.state, live.view);
    }
    machine.hash_memory()?;
    context.tell("rebooted, still protected");
    machine.down()
}

fn memory_sizes(context: &Context, _seed: u64) -> Result<()> {
    for (size, least, most) in [
        ("256MiB", 180_000, 262_144),
        ("512MiB", 400_000, 524_288),
        ("2GiB", 1_800_000, 2_097_152),
    ] {
        let machine = Home::temporary()?.up(&["--memory", size])?;
        machine.wait_protected(LONG)?;
        machine.wait_redis(BOOT, |_| ())?;
        let said = machine.shell("grep MemTotal /proc/meminfo", LONG)?;
        let words: Vec<&str> = said.split_whitespace().collect();
        let total = words.windows(2).find_map(|words| match words {
            [number, "kB"] => number.parse::<u64>().ok(),
            _ => None,
        });
        match total {
            Some(kib) if (least..=most).contains(&kib) => {
                context.tell(&format!("{size}: the guest has {kib} KiB"));
            }
            _ => bail!("with {size} the guest says: {said}"),
        }
        machine.down()?;
    }
    Ok(())
}
