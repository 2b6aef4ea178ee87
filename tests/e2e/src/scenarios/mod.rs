//! The end-to-end tests. Each is a function of a seed; a run of it fails with an error that says what
//! was seen.

mod channel;
mod disk;
mod engine;
mod errors;
mod guest;
mod hash;
mod kills;
mod state;
mod stopped;
mod three_hosts;

use std::cell::OnceCell;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cli::println;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tests::check::check;
use tests::client::{self, Load};

use crate::base::Base;
use crate::conditions::patient;
use crate::failover;
use crate::home::Home;
use crate::machine::Machine;

/// Bounds of waits that are far from what they take, so that only hangs reach them.
pub const SOON: Duration = Duration::from_secs(60);
pub const LONG: Duration = Duration::from_secs(300);

/// A client whose answer takes longer has lost its connection.
const ANSWER: Duration = Duration::from_secs(60);

/// A test.
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    /// How often it runs in the share of the test command, and with `--full`.
    pub quick: u32,
    pub full: u32,
    pub run: fn(&Context, u64) -> Result<()>,
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    [
        kills::scenarios(),
        channel::scenarios(),
        disk::scenarios(),
        stopped::scenarios(),
        hash::scenarios(),
        state::scenarios(),
        guest::scenarios(),
        three_hosts::scenarios(),
        errors::scenarios(),
        engine::scenarios(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What the tests of a run share.
pub struct Context {
    base: OnceCell<Base>,
    keep: Option<PathBuf>,
    started: Instant,
}

impl Context {
    /// With a folder, in which the booted guest's state is kept for the next run.
    pub fn new(keep: Option<PathBuf>) -> Self {
        Self {
            base: OnceCell::new(),
            keep,
            started: Instant::now(),
        }
    }

    /// One line of what goes on.
    pub fn tell(&self, text: &str) {
        println!("  [{:7.1} s] {text}", self.started.elapsed().as_secs_f64());
    }

    /// The booted guest's saved state.
    pub fn base(&self) -> Result<&Base> {
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let kept = match &self.keep {
            Some(dir) => Base::kept(dir)?,
            None => None,
        };
        let base = match kept {
            Some(base) => base,
            None => self.make_base().context("the state to start from")?,
        };
        Ok(self.base.get_or_init(|| base))
    }

    fn make_base(&self) -> Result<Base> {
        self.tell("booting the guest once, and saving it");
        match &self.keep {
            Some(dir) => Base::make_in(dir),
            None => Base::make(),
        }
    }

    /// A pair that goes on from the saved state, protected, with Redis answering.
    pub fn pair(&self, flags: &[&str]) -> Result<Machine> {
        let state = self.base()?.state();
        let mut args = vec!["--from".into(), state.into_os_string()];
        args.extend(flags.iter().map(Into::into));
        let machine = Home::temporary()?.up(&args)?;
        machine.wait_protected(LONG)?;
        machine.wait_redis(LONG, |_| ())?;
        Ok(machine)
    }
}

pub fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// The usual load of a machine.
pub fn load(machine: &Machine, seed: u64) -> Result<client::Options> {
    Ok(client::Options {
        clients: 3,
        timeout: patient(ANSWER),
        ..client::Options::new(machine.forward(6379)?, seed)
    })
}

/// Ends a load and checks what its clients saw; gives the number of acknowledged writes.
pub fn finish(load: Load) -> Result<u64> {
    let record = load.stop();
    let verdict = check(&record.history);
    failover::judge(&record, &verdict)?;
    if verdict.acknowledged == 0 {
        bail!("the load got nothing acknowledged: nothing was shown");
    }
    Ok(verdict.acknowledged)
}

/// Waits until a load got more answers than it has now.
pub fn wait_answers(load: &Load, more: u64, bound: Duration) -> Result<()> {
    let before = load.live().answered;
    crate::wait::until("the load gets answers", bound, || {
        Ok((load.live().answered >= before + more).then_some(()))
    })
}
