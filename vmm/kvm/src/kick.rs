//! The timer that ends a run of the vCPU without an exit.
//!
//! A timer sends a signal to the thread that runs the vCPU. The signal is blocked there but while
//! KVM_RUN runs the guest (KVM_SET_SIGNAL_MASK), so none is lost, nothing else of the thread is
//! interrupted, and nothing need be armed for each exit: the timer is armed again when its signal was
//! taken, so that on a slow host the guest still gets the whole of each period.
#![allow(unsafe_code)]

use std::io;
use std::time::Duration;

/// The signal: any one that nothing else uses.
pub fn signal() -> i32 {
    libc::SIGRTMIN() + 3
}

/// A running timer of one thread.
pub struct Kick {
    timer: libc::timer_t,
    period: Duration,
    thread: libc::pid_t,
}

// SAFETY: a timer id is good in every thread of the process.
unsafe impl Send for Kick {}

/// The calling thread's id, as the kernel has it.
pub fn this_thread() -> libc::pid_t {
    thread_local!(static ID: libc::pid_t = {
        // SAFETY: no arguments, cannot fail.
        unsafe { libc::gettid() }
    });
    ID.with(|id| *id)
}

fn only_signal() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set, and the signal's number is a good one.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal());
        set.assume_init()
    }
}

/// Blocks the signal for the calling thread, so that it waits for KVM_RUN.
pub fn block_signal() -> io::Result<()> {
    let set = only_signal();
    // SAFETY: the set is initialised.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    Ok(())
}

impl Kick {
    /// Starts a timer that kicks the calling thread `period` from now.
    pub fn start(period: Duration) -> io::Result<Self> {
        block_signal()?;
        let thread = this_thread();
        // SAFETY: all-zero is a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = thread;
        let mut timer = std::ptr::null_mut();
        // SAFETY: both are valid for the call.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let kick = Self {
            timer,
            period,
            thread,
        };
        kick.arm()?;
        Ok(kick)
    }

    /// The next kick comes after one period from now.
    pub fn arm(&self) -> io::Result<()> {
        let times = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: self.period.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(self.period.subsec_nanos().max(1)),
            },
        };
        // SAFETY: the timer exists, and the times are valid for the call.
        if unsafe { libc::timer_settime(self.timer, 0, &times, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Whether this timer kicks the calling thread.
    pub fn is_mine(&self) -> bool {
        self.thread == this_thread()
    }

    /// Takes the signal that waits, if one does, and starts the next period.
    pub fn take(&self) -> io::Result<bool> {
        if !take_signal() {
            return Ok(false);
        }
        self.arm()?;
        Ok(true)
    }
}

/// Takes a signal that waits for this thread; whether one did.
pub fn take_signal() -> bool {
    let set = only_signal();
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the set and the time are valid for the call.
    unsafe { libc::sigtimedwait(&set, std::ptr::null_mut(), &now) == signal() }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // SAFETY: the timer exists, and is not used any more.
        unsafe { libc::timer_delete(self.timer) };
        if self.is_mine() {
            take_signal();
        }
    }
}

/// The signals that are blocked while KVM_RUN runs the guest: the calling thread's, but for the
/// kick. As the kernel's 64-bit set.
pub fn mask_in_guest() -> io::Result<u64> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: with no new set, the old one is written.
    let failed =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set.as_mut_ptr()) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    let mut mask = 0;
    for number in 1..=64 {
        // SAFETY: the set is initialised by the call above.
        let blocked = unsafe { libc::sigismember(set.as_ptr(), number) } == 1;
        if blocked && number != signal() {
            mask |= 1 << (number - 1);
        }
    }
    Ok(mask)
}
