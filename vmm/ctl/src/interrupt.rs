//! Ctrl-C: what was started is ended in order; a second one ends this program at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The exit status of a command that was interrupted, as shells have it.
pub const EXIT_CODE: u8 = 130;

static REQUESTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From here on Ctrl-C, SIGTERM and SIGHUP only make [`requested`] true.
pub fn catch() -> std::io::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let flag = Arc::clone(&REQUESTED);
        signal_hook::flag::register_conditional_shutdown(signal, EXIT_CODE.into(), flag)?;
        signal_hook::flag::register(signal, Arc::clone(&REQUESTED))?;
    }
    Ok(())
}

/// Whether the user wants the command to end.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}
