//! Until when this replica may put anything out.
//!
//! A released output still has to get from its queue to a socket. A process that is stopped in
//! between (SIGSTOP, a host that hangs) and wakes when the other replica has gone live must not send
//! it. So each output looks at the time once more: what the protocol has allowed holds only as long
//! as the peer's silence would not be suspicious. After that an output waits until the view register
//! has decided. (The switch and the disk server fence the old view in any case.)

use std::sync::{Condvar, Mutex, PoisonError};

use super::clock::Monotonic;
use crate::link::lock;

pub struct Lease {
    clock: Monotonic,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By `clock`.
    until_ns: u64,
    ended: bool,
}

impl Lease {
    pub fn new(clock: Monotonic) -> Self {
        Self {
            clock,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The protocol allows outputs until then; `u64::MAX`: nobody else can be live.
    pub fn set(&self, until_ns: u64) {
        let mut state = lock(&self.state);
        if until_ns != state.until_ns {
            state.until_ns = until_ns;
            self.changed.notify_all();
        }
    }

    /// Nothing is put out any more.
    pub fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }

    /// Waits until an output may leave; `false`: it never may.
    pub fn holds(&self) -> bool {
        let mut state = lock(&self.state);
        while !state.ended && self.clock.now() >= state.until_ns {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        !state.ended
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    /// What an output that is about to leave comes to, once `then` has happened.
    fn outcome(until_ns: u64, then: fn(&Lease)) -> bool {
        let lease = Arc::new(Lease::new(Monotonic::start()));
        lease.set(until_ns);
        let (tell, told) = channel();
        let waiting = Arc::clone(&lease);
        let thread = std::thread::spawn(move || tell.send(waiting.holds()));
        then(&lease);
        let held = told.recv().expect("the thread answers");
        thread.join().expect("it ends").expect("it was heard");
        held
    }

    #[test]
    fn an_output_leaves_while_the_lease_holds() {
        assert!(outcome(u64::MAX, |_| ()));
    }

    #[test]
    fn an_output_waits_for_the_decision_when_the_lease_is_over() {
        assert!(outcome(0, |lease| lease.set(u64::MAX)));
        assert!(!outcome(0, Lease::end));
    }
}
