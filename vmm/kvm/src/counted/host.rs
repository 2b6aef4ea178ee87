//! The host's own counter on the vCPU's thread. **Never met a real PMU**: see [`landing`].
//!
//! A counter belongs to the thread that has opened it, and an engine may be made on another one than
//! it runs on; so it is opened where it is first used, and again where the engine has moved to.

use landing::{
    BranchCounter, BranchEvent, CounterError, Cpu, CpuId, Host, PerfCounter, UnknownCpu,
    pin_current_thread,
};

use crate::kick;

/// The branches of the guest that the calling thread runs.
pub struct HostCounter {
    cpu: Cpu,
    open: Option<Open>,
    /// What earlier threads' counters had counted.
    base: u64,
}

struct Open {
    thread: libc::pid_t,
    counter: PerfCounter,
}

impl HostCounter {
    /// Opens nothing yet.
    pub fn new() -> Result<Self, UnknownCpu> {
        Ok(Self {
            cpu: Cpu::of(&CpuId::of_host())?,
            open: None,
            base: 0,
        })
    }

    fn event(&self, on: usize) -> BranchEvent {
        let efficient = Host::this().pmu(on).efficient;
        self.cpu.for_core(efficient).event
    }

    fn here(&mut self) -> Result<&mut PerfCounter, CounterError> {
        let thread = kick::this_thread();
        if self.open.as_ref().is_none_or(|open| open.thread != thread) {
            if let Some(mut old) = self.open.take() {
                self.base += old.counter.read()?;
            }
            // On a hybrid part the type of the core decides the event.
            let on = if self.cpu.hybrid {
                pin_current_thread().map_err(CounterError::Host)?
            } else {
                0
            };
            kick::block_signal().map_err(CounterError::Host)?;
            let pmu = Host::this().pmu(on);
            let counter = PerfCounter::open(pmu, &self.event(on), kick::signal())?;
            self.open = Some(Open { thread, counter });
        }
        Ok(&mut self.open.as_mut().expect("opened above").counter)
    }
}

impl BranchCounter for HostCounter {
    fn read(&mut self) -> Result<u64, CounterError> {
        let here = self.here()?.read()?;
        Ok(self.base + here)
    }

    fn arm(&mut self, at: u64) -> Result<(), CounterError> {
        let base = self.base;
        let now = self.read()?;
        match at.checked_sub(base) {
            Some(own) => self.here()?.arm(own),
            None => Err(CounterError::Passed { asked: at, now }),
        }
    }

    fn disarm(&mut self) -> Result<(), CounterError> {
        self.here()?.disarm()
    }

    fn skid(&self) -> u64 {
        self.cpu.event.skid
    }
}
