//! The kernel's counters: `perf_event_open(2)`. **Not verified on real hardware.**
//!
//! Two events count the same thing. One only counts and is what is read: the kernel stops a sampling
//! event that interrupts too often, and it would then miss branches. The other samples, and only
//! kicks; should it be stopped, a landing overshoots and says so.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::counter::{BranchCounter, CounterError};
use crate::cpu::BranchEvent;
use crate::host::Pmu;

/// `perf_event_attr` up to `PERF_ATTR_SIZE_VER0`'s 64 bytes, which every kernel accepts.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

/// `PERF_ATTR_SIZE_VER0`.
const ATTR_SIZE: u32 = 64;

const DISABLED: u64 = 1;
const PINNED: u64 = 1 << 2;
const EXCLUDE_USER: u64 = 1 << 4;
const EXCLUDE_KERNEL: u64 = 1 << 5;
const EXCLUDE_HV: u64 = 1 << 6;
const EXCLUDE_HOST: u64 = 1 << 19;
const EXCLUDE_GUEST: u64 = 1 << 20;

/// `PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING`.
const TIMES: u64 = 3;
const FLAG_FD_CLOEXEC: libc::c_ulong = 8;

const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_DISABLE: libc::c_ulong = 0x2401;
const IOC_PERIOD: libc::c_ulong = 0x4008_2404;

/// A period that no machine gets to, and that fits the counters' 47 bits.
const NEVER: u64 = 1 << 46;

/// What an event counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The guest's user and kernel mode, on the calling thread's vCPU; nothing of the host.
    Guest,
    /// The calling thread's own user mode.
    OwnUserMode,
}

impl Scope {
    fn flags(self) -> u64 {
        match self {
            // Nothing of EXCLUDE_USER and EXCLUDE_KERNEL: with EXCLUDE_HOST they are the guest's.
            Scope::Guest => EXCLUDE_HOST,
            Scope::OwnUserMode => EXCLUDE_KERNEL | EXCLUDE_HV | EXCLUDE_GUEST,
        }
    }
}

/// One event on the calling thread, on any CPU (the thread should be pinned).
pub struct Event {
    fd: OwnedFd,
}

impl Event {
    /// A counter that runs from now on, pinned on the PMU.
    pub fn counting(pmu: Pmu, config: u64, scope: Scope) -> Result<Self, CounterError> {
        Self::open(pmu, config, 0, scope.flags() | PINNED)
    }

    /// One that interrupts; off.
    fn sampling(pmu: Pmu, config: u64, scope: Scope) -> Result<Self, CounterError> {
        Self::open(pmu, config, NEVER, scope.flags() | PINNED | DISABLED)
    }

    fn open(pmu: Pmu, config: u64, sample_period: u64, flags: u64) -> Result<Self, CounterError> {
        debug_assert!(flags & EXCLUDE_USER == 0, "user mode is always counted");
        let attr = Attr {
            kind: pmu.kind,
            size: ATTR_SIZE,
            config,
            sample_period,
            read_format: TIMES,
            flags,
            ..Attr::default()
        };
        let (this_thread, any_cpu, no_group) = (0, -1, -1);
        // SAFETY: the structure is as the kernel's of the size that it gives, and outlives the call.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attr,
                this_thread,
                any_cpu,
                no_group,
                FLAG_FD_CLOEXEC,
            )
        };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return Err(match Errno::last() {
                Errno::EACCES | Errno::EPERM => CounterError::Forbidden(error),
                Errno::ENOENT | Errno::EOPNOTSUPP | Errno::ENODEV | Errno::ENOSYS => {
                    CounterError::Hidden(error)
                }
                _ => CounterError::Host(error),
            });
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self { fd })
    }

    /// The count since the event was opened; refused unless it has been on the PMU all the time.
    pub fn read(&self) -> Result<u64, CounterError> {
        let mut bytes = [0; 24];
        let len = nix::unistd::read(&self.fd, &mut bytes).map_err(host)?;
        if len != bytes.len() {
            // A pinned event that could not be scheduled reads as end of file.
            return Err(CounterError::Lost);
        }
        checked(&bytes)
    }

    fn ioctl(&self, request: libc::c_ulong, argument: *const u64) -> Result<(), CounterError> {
        // SAFETY: the argument is a valid u64 for IOC_PERIOD and not looked at (null) otherwise.
        let rc = unsafe { libc::ioctl(self.fd.as_raw_fd(), request, argument) };
        if rc < 0 {
            return Err(CounterError::Host(io::Error::last_os_error()));
        }
        Ok(())
    }

    fn disable(&self) -> Result<(), CounterError> {
        self.ioctl(IOC_DISABLE, std::ptr::null())
    }

    /// Interrupts after `period` more events.
    fn enable(&self, period: u64) -> Result<(), CounterError> {
        self.disable()?;
        self.ioctl(IOC_PERIOD, &raw const period)?;
        self.ioctl(IOC_ENABLE, std::ptr::null())
    }

    /// Sends `signal` to the calling thread at each interrupt.
    fn signal_here(&self, signal: i32) -> Result<(), CounterError> {
        let owner = OwnerEx {
            kind: F_OWNER_TID,
            pid: nix::unistd::gettid().as_raw(),
        };
        let fd = self.fd.as_raw_fd();
        // SAFETY: F_SETOWN_EX takes a pointer to a structure of two ints, which lives through the
        // call.
        let mut rc = unsafe { libc::fcntl(fd, F_SETOWN_EX, &raw const owner) };
        if rc >= 0 {
            // SAFETY: an integer argument.
            rc = unsafe { libc::fcntl(fd, F_SETSIG, signal) };
        }
        if rc >= 0 {
            // SAFETY: an integer argument.
            rc = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) };
        }
        if rc < 0 {
            return Err(CounterError::Host(io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// `struct f_owner_ex`.
#[repr(C)]
struct OwnerEx {
    kind: i32,
    pid: i32,
}

const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const F_OWNER_TID: i32 = 0;

/// Takes what a read gave apart: value, time enabled, time running.
fn checked(bytes: &[u8; 24]) -> Result<u64, CounterError> {
    let [value, enabled, running] = [0, 8, 16].map(|at| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    });
    if running != enabled {
        return Err(CounterError::NotScheduled { enabled, running });
    }
    Ok(value)
}

fn host(errno: Errno) -> CounterError {
    CounterError::Host(errno.into())
}

/// The branches of the vCPU that the thread which has opened it runs.
///
/// Every call must come from that thread; it should be pinned ([`pin_current_thread`]). The signal
/// must have a handler, and must end `KVM_RUN`.
pub struct PerfCounter {
    count: Event,
    kick: Event,
    skid: u64,
}

impl PerfCounter {
    /// Opens the counter for the vCPU of the calling thread; `signal` kicks it.
    pub fn open(pmu: Pmu, event: &BranchEvent, signal: i32) -> Result<Self, CounterError> {
        let count = Event::counting(pmu, event.config, Scope::Guest)?;
        let kick = Event::sampling(pmu, event.config, Scope::Guest)?;
        kick.signal_here(signal)?;
        Ok(Self {
            count,
            kick,
            skid: event.skid,
        })
    }
}

impl BranchCounter for PerfCounter {
    fn read(&mut self) -> Result<u64, CounterError> {
        self.count.read()
    }

    fn arm(&mut self, at: u64) -> Result<(), CounterError> {
        let now = self.count.read()?;
        match at.checked_sub(now) {
            None | Some(0) => Err(CounterError::Passed { asked: at, now }),
            Some(period) => self.kick.enable(period.min(NEVER)),
        }
    }

    fn disarm(&mut self) -> Result<(), CounterError> {
        self.kick.disable()
    }

    fn skid(&self) -> u64 {
        self.skid
    }
}

/// Keeps the calling thread on the CPU on which it is, whose number is returned: counters of
/// different cores need not agree, and on a hybrid part a core's type decides the event.
pub fn pin_current_thread() -> io::Result<usize> {
    let cpu = sched_getcpu()?;
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(cpu)
}

/// Retires exactly `n` conditional branches in a loop, and none beside.
#[inline(never)]
pub fn retire_branches(n: u32) {
    // SAFETY: a countdown in one register; no memory, no stack.
    unsafe {
        std::arch::asm!(
            "2:",
            "sub {n:e}, 1",
            "jnz 2b",
            n = inout(reg) n.max(1) => _,
            options(nomem, nostack),
        );
    }
}

/// One locked addition to a word on the stack.
#[inline(never)]
pub fn locked_add() {
    let mut word = 0u32;
    // SAFETY: the pointer is to a live local.
    unsafe {
        std::arch::asm!("lock add dword ptr [{p}], 1", p = in(reg) &raw mut word, options(nostack));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_the_kernels() {
        assert_eq!(size_of::<Attr>(), ATTR_SIZE as usize);
        assert_eq!(std::mem::offset_of!(Attr, flags), 40);
        assert_eq!(std::mem::offset_of!(Attr, config1), 56);
    }

    #[test]
    fn a_count_that_missed_time_is_refused() {
        let reading = |words: [u64; 3]| {
            let mut bytes = [0; 24];
            for (i, word) in words.iter().enumerate() {
                bytes[8 * i..8 * i + 8].copy_from_slice(&word.to_le_bytes());
            }
            checked(&bytes)
        };
        assert_eq!(reading([7, 100, 100]).expect("all the time"), 7);
        let missed = reading([7, 100, 99]).expect_err("not all the time");
        assert!(missed.to_string().contains("99 ns of 100 ns"), "{missed}");
    }
}
