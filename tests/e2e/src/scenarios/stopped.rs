//! The primary is stopped past the bound (SIGSTOP, as if its host had hung) and goes on after the
//! backup went live: nothing of it may come through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use rand::Rng;
use tests::client::Load;

use super::{Context, LONG, Scenario, finish, load, rng, wait_answers};
use crate::rig::{self, Layout, Rig};
use crate::wait;

/// An NBD write request's magic, flags (any) and type (NBD protocol, "Request message").
const NBD_REQUEST: [u8; 4] = [0x25, 0x60, 0x95, 0x13];
const NBD_WRITE: [u8; 2] = [0, 1];

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario {
        name: "stopped-primary",
        about: "the primary hangs, the backup goes live, the primary wakes: no frame, no write, a halt",
        quick: 1,
        full: 10,
        run: stopped_primary,
    }]
}

/// What the old primary sent after it woke.
#[derive(Default)]
struct Sent {
    frames: AtomicU64,
    writes: AtomicU64,
}

fn stopped_primary(context: &Context, seed: u64) -> Result<()> {
    let layout = Layout {
        proxied: true,
        ..Layout::default()
    };
    let mut rig = rig::start(context.base()?, layout)?;
    rig.machine.wait_protected(LONG)?;
    rig.machine.wait_redis(LONG, |_| ())?;
    let (primary, _) = rig.machine.pair()?;
    let load = Load::start(load(&rig.machine, seed)?)?;
    wait_answers(&load, 200, LONG)?;
    wait::pass(Duration::from_millis(rng(seed).random_range(0..1500)))?;

    primary.process.signal(Signal::SIGSTOP)?;
    let alone = rig.machine.wait_alone(Some(primary.id), LONG)?;
    wait_answers(&load, 300, LONG)?;
    let sent = watch(&rig)?;
    primary.process.signal(Signal::SIGCONT)?;
    crate::process::wait_end(primary.process, LONG)?;

    let code = rig.machine.exit_code(primary.process);
    let said = rig.machine.log(&format!("replica-{}", primary.id));
    let reason = said.lines().find(|line| line.contains("halted:"));
    let (Some(reason), Some(3)) = (reason, code) else {
        bail!("the old primary ended with {code:?} and did not say why:\n{said}");
    };
    wait_answers(&load, 500, LONG)?;
    let writes = finish(load)?;
    let sent = (
        sent.frames.load(Ordering::SeqCst),
        sent.writes.load(Ordering::SeqCst),
    );
    if sent != (0, 0) {
        bail!(
            "after it woke the old primary sent {} frames and {} disk writes",
            sent.0,
            sent.1
        );
    }
    context.tell(&format!(
        "replica {} lived on with {writes} writes; the old primary sent nothing and said: {reason}",
        alone.replica
    ));
    Ok(())
}

/// Counts what the primary sends from now on.
fn watch(rig: &Rig) -> Result<Arc<Sent>> {
    let proxies = rig.proxies.as_ref().context("no proxies")?;
    let sent = Arc::new(Sent::default());
    let (net, disk) = (sent.clone(), sent.clone());
    // The switch's messages begin with a byte that says what they are; a stopped process had at most
    // one under way, and the connection is quiet when the watch begins.
    let mut left = 0usize;
    let mut header = Vec::new();
    proxies.net.watch(move |mut bytes| {
        while !bytes.is_empty() {
            let skipped = left.min(bytes.len());
            (left, bytes) = (left - skipped, &bytes[skipped..]);
            let wanted = (4 - header.len()).min(bytes.len());
            header.extend_from_slice(&bytes[..wanted]);
            bytes = &bytes[wanted..];
            if let [kind, a, b, c] = header[..] {
                left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                net.frames.fetch_add(u64::from(kind == 0), Ordering::SeqCst);
                header.clear();
            }
        }
    });
    let mut last = Vec::new();
    proxies.disk.watch(move |bytes| {
        last.extend_from_slice(bytes);
        let writes = last
            .windows(8)
            .filter(|w| w[..4] == NBD_REQUEST && w[6..] == NBD_WRITE);
        disk.writes
            .fetch_add(writes.count() as u64, Ordering::SeqCst);
        last.drain(..last.len().saturating_sub(7));
    });
    Ok(sent)
}
