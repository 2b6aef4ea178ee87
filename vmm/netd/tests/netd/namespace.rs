//! A network namespace for one test: it belongs to the test's thread and to what that starts, and
//! goes away with them.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs `ip`, in the caller's namespace.
pub fn ip(args: &str) {
    let output = Command::new("ip")
        .args(args.split(' '))
        .output()
        .unwrap_or_else(|error| panic!("ip: {error}; install the Debian package \"iproute2\""));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args}: {words}");
}

/// Runs `test` in a thread with a network namespace of its own, in which only loopback exists.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)
            .unwrap_or_else(|errno| panic!("no network namespace ({errno}); run as root"));
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
