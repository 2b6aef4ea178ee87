//! Waiting for something to become true. A bound catches hangs only; Ctrl-C ends every wait, so that
//! what was started can be ended in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::conditions::patient;
use anyhow::{Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

const POLL: Duration = Duration::from_millis(20);

fn flag() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default)
}

/// From here on Ctrl-C makes [`interrupted`] fail instead of ending the process at once; a second one
/// ends it.
pub fn catch_signals() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag().clone())?;
        signal_hook::flag::register(signal, flag().clone())?;
    }
    Ok(())
}

/// An error once the user wants the program to end.
pub fn interrupted() -> Result<()> {
    if flag().load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits until `probe` gives something.
pub fn until<T>(
    what: &str,
    bound: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let bound = patient(bound);
    let begun = Instant::now();
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        interrupted()?;
        if begun.elapsed() > bound {
            bail!("{what}: not within {} s", bound.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// Lets time pass.
pub fn pass(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        interrupted()?;
        std::thread::sleep(left.min(POLL));
    }
    Ok(())
}
