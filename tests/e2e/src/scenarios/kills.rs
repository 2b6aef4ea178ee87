//! Kills of either replica under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use rand::Rng;
use tests::client::Load;
use tests::http::KeepAlive;
use wire::control::{Protection, Role};

use super::{Context, LONG, Scenario, finish, load, rng, wait_answers};
use crate::failover::{self, Plan};
use crate::wait;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario {
            name: "kill-primary",
            about: "the primary is killed under Redis load and a web client: nobody notices",
            quick: 3,
            full: 50,
            run: kill_primary,
        },
        Scenario {
            name: "kill-backup",
            about: "the backup is killed under Redis load: the primary goes on alone",
            quick: 2,
            full: 20,
            run: kill_backup,
        },
    ]
}

/// A web client that asks for the same page over one connection until it is stopped.
struct Browser {
    stop: Arc<AtomicBool>,
    pages: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Result<()>>,
}

impl Browser {
    fn start(mut connection: KeepAlive) -> Result<Self> {
        let first = connection.get("/")?;
        if first.status != 200 || first.body.is_empty() {
            bail!("the web server answered {}", first.status);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let pages = Arc::new(AtomicU64::new(1));
        let (stopped, count) = (stop.clone(), pages.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let page = connection.get("/").context("the web client")?;
                if page != first {
                    bail!("the web server answered something else: {}", page.status);
                }
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        Ok(Self {
            stop,
            pages,
            thread,
        })
    }

    fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result.map(|()| self.pages.load(Ordering::Relaxed)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn kill_primary(context: &Context, seed: u64) -> Result<()> {
    let machine = context.pair(&[])?;
    let browser = Browser::start(KeepAlive::connect(machine.forward(80)?, LONG)?)?;
    let total = Duration::from_secs(6);
    let plan = Plan::random(load(&machine, seed)?, total, &mut rng(seed));
    let outcome = failover::kill_primary(&machine, &plan, |_| ())?;
    let pages = browser.stop()?;
    outcome.judge()?;
    let view = machine.view()?;
    if view.number != 2 || outcome.failover.view != 2 {
        bail!("one failover was due, but the register has {view}");
    }
    context.tell(&format!(
        "killed after {:.2} s, live after {:.1} ms, longest wait {:.1} ms; {} writes, {pages} pages",
        plan.before.as_secs_f64(),
        outcome.timeline.live,
        outcome.interruption_ms,
        outcome.verdict.acknowledged
    ));
    machine.down()
}

fn kill_backup(context: &Context, seed: u64) -> Result<()> {
    let machine = context.pair(&[])?;
    let (primary, backup) = machine.pair()?;
    let load = Load::start(load(&machine, seed)?)?;
    wait::pass(Duration::from_millis(rng(seed).random_range(500..3000)))?;
    backup.process.signal(Signal::SIGKILL)?;
    let alone = machine.wait_alone(Some(backup.id), LONG)?;
    if alone.role != Role::Solo || alone.state != Protection::NeedBackup {
        bail!("the survivor says it is {} and {}", alone.role, alone.state);
    }
    if alone.replica != primary.id || alone.view.number != 2 {
        bail!("replica {} is live in {}", alone.replica, alone.view);
    }
    wait_answers(&load, 500, LONG)?;
    let writes = finish(load)?;
    context.tell(&format!("the primary went on alone; {writes} writes"));
    machine.down()
}
