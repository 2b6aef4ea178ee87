//! What `doctor` says of the branch counter on this host: what was tried, what came out, what to do.

use serde::Serialize;

use crate::counter::CounterError;
use crate::cpu::{Cpu, CpuId, Erratum};
use crate::host::Host;
use crate::perf::{Event, Scope, locked_add, pin_current_thread, retire_branches};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Ok,
    /// It works, but something may not be exact here, or may get past the log.
    Warn,
    /// What was looked at cannot be used here.
    Fail,
    /// Could not be looked at, since something else failed before, or does not apply.
    Skipped,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub result: Outcome,
    /// What was tried, measured or missing.
    pub detail: String,
    /// What to do, if there is anything to do.
    pub fix: Option<String>,
}

impl Check {
    /// With nothing to do.
    pub fn new(name: &'static str, result: Outcome, detail: impl Into<String>) -> Self {
        Self {
            name,
            result,
            detail: detail.into(),
            fix: None,
        }
    }

    /// This is what to do.
    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// Loops of this many branches, counted one after the other.
const LOOPS: [u32; 4] = [1_000, 50_000, 1_000, 1_000_000];
const LOCKED: u32 = 1_000;
/// AMD's LS_CFG2, where bit 54 turns SpecLockMap off.
const SPEC_LOCK_MAP_MSR: u32 = 0xc001_1020;
const SPEC_LOCK_MAP_OFF: u64 = 1 << 54;
/// Retired lock instructions, unit mask SpecLockMapCommit: raw 0x510825.
const SPEC_LOCK_MAP_EVENT: u64 = 0x0825;

/// Looks at everything, on a thread of its own that is pinned for the moment. Takes a few
/// milliseconds.
pub fn checks() -> Vec<Check> {
    let look = || {
        let cpu = pin_current_thread().unwrap_or(0);
        look(&Host::this(), &CpuId::of_host(), cpu)
    };
    match std::thread::spawn(look).join() {
        Ok(checks) => checks,
        Err(_) => vec![Check::new(
            "counter",
            Outcome::Fail,
            "looking at it failed; this is a mistake in the program",
        )],
    }
}

fn look(host: &Host, id: &CpuId, on: usize) -> Vec<Check> {
    let pmu = host.pmu(on);
    let known = Cpu::of(id).map(|cpu| cpu.for_core(pmu.efficient));
    let mut all = vec![
        Check::new(
            "counter",
            Outcome::Warn,
            "the kvm engine uses it where its self-test passes; not verified on real hardware, only \
             with counters made of the software CPU and of stepping",
        ),
        model(&known),
        paranoid(host),
    ];
    let Ok(cpu) = known else { return all };
    all.push(opens(
        host,
        &pmu_text(id),
        Event::counting(pmu, cpu.event.config, Scope::Guest),
    ));
    all.push(exact(Event::counting(
        pmu,
        cpu.event.config,
        Scope::OwnUserMode,
    )));
    for erratum in cpu.errata {
        all.push(match erratum {
            Erratum::SpecLockMap => {
                let event = Event::counting(pmu, SPEC_LOCK_MAP_EVENT, Scope::OwnUserMode);
                spec_lock_map(host, event.and_then(|event| locked(&event)))
            }
            Erratum::CountsInSmm => freeze_on_smi(host),
        });
    }
    all
}

fn model(known: &Result<Cpu, crate::cpu::UnknownCpu>) -> Check {
    let name = "counter: CPU";
    match known {
        Ok(cpu) => {
            let late = if cpu.event.unbounded {
                ", at times more"
            } else {
                ""
            };
            Check::new(
                name,
                Outcome::Ok,
                format!(
                    "{}: event {:#x}, interrupts late by up to {} branches{late}",
                    cpu.name, cpu.event.config, cpu.event.skid
                ),
            )
        }
        Err(unknown) => Check::new(name, Outcome::Fail, unknown.to_string()),
    }
}

fn paranoid(host: &Host) -> Check {
    let name = "counter: perf events";
    let fix = "sysctl kernel.perf_event_paranoid=1, or give the program CAP_PERFMON";
    match host.paranoid() {
        Some(level @ ..=1) => Check::new(
            name,
            Outcome::Ok,
            format!("perf_event_paranoid is {level}"),
        ),
        Some(level) if nix::unistd::geteuid().is_root() => Check::new(
            name,
            Outcome::Ok,
            format!("perf_event_paranoid is {level}; does not matter with the rights of this user"),
        ),
        Some(level) => Check::new(
            name,
            Outcome::Warn,
            format!("perf_event_paranoid is {level}: counting a guest's kernel mode needs 1 or lower, or CAP_PERFMON"),
        )
        .fix(fix),
        None => Check::new(
            name,
            Outcome::Fail,
            "the kernel was built without perf events",
        ),
    }
}

fn pmu_text(id: &CpuId) -> String {
    if id.in_vm {
        "this host is itself a virtual machine, whose hypervisor shows no PMU".to_owned()
    } else {
        "the kernel has no driver for this CPU's PMU".to_owned()
    }
}

fn opens(host: &Host, hidden: &str, event: Result<Event, CounterError>) -> Check {
    let name = "counter: for a guest";
    match event {
        Ok(_) => Check::new(name, Outcome::Ok, "pinned, the host excluded"),
        Err(error @ CounterError::Hidden(_)) => {
            let why = if host.has_pmu() {
                String::new()
            } else {
                format!("; {hidden}")
            };
            Check::new(name, Outcome::Fail, format!("{error}{why}"))
                .fix("use a host whose PMU is not hidden, or an engine that needs no counter")
        }
        Err(error) => Check::new(name, Outcome::Fail, error.to_string()),
    }
}

/// Counts loops of known length in the program's own code.
fn exact(event: Result<Event, CounterError>) -> Check {
    let name = "counter: exact";
    let fix = "nothing else may use the PMU (kernel.nmi_watchdog=0); in a VM the hypervisor's PMU is \
               at fault";
    let counts = event.and_then(|event| LOOPS.iter().map(|n| count_loop(&event, *n)).collect());
    let counts: Vec<u64> = match counts {
        Ok(counts) => counts,
        Err(error) => {
            return Check::new(name, Outcome::Skipped, format!("not counted: {error}"));
        }
    };
    let wrong = miscounted(&counts);
    if wrong.is_empty() {
        let longest = LOOPS[LOOPS.len() - 1];
        return Check::new(
            name,
            Outcome::Ok,
            format!(
                "{} loops of up to {longest} branches, each exact",
                LOOPS.len()
            ),
        );
    }
    Check::new(name, Outcome::Fail, wrong).fix(fix)
}

/// The count of a loop, with what the reading itself adds.
fn count_loop(event: &Event, n: u32) -> Result<u64, CounterError> {
    let before = event.read()?;
    retire_branches(n);
    Ok(event.read()?.wrapping_sub(before))
}

/// What is wrong in the counts of `LOOPS`; empty if they differ by exactly what the loops differ.
/// Between two readings the program itself has a few branches, always the same.
fn miscounted(counts: &[u64]) -> String {
    let overhead = |(n, count): (&u32, &u64)| count.wrapping_sub(u64::from(*n)) as i64;
    let overheads: Vec<i64> = LOOPS.iter().zip(counts).map(overhead).collect();
    let first = overheads[0];
    if overheads.iter().all(|o| *o == first) && (0..1000).contains(&first) {
        return String::new();
    }
    let list: Vec<String> = LOOPS
        .iter()
        .zip(counts)
        .map(|(n, count)| format!("{count} of {n}"))
        .collect();
    format!("loops of known length were miscounted: {}", list.join(", "))
}

/// How many locked additions of `LOCKED` went through SpecLockMap.
fn locked(event: &Event) -> Result<u64, CounterError> {
    let before = event.read()?;
    for _ in 0..LOCKED {
        locked_add();
    }
    Ok(event.read()?.wrapping_sub(before))
}

fn spec_lock_map(host: &Host, mapped: Result<u64, CounterError>) -> Check {
    let name = "counter: SpecLockMap";
    let fix = "set bit 54 of MSR C001_1020 on every core: modprobe msr, then for each core wrmsr -p \
               CORE 0xc0011020 with the bit added";
    let on: Vec<usize> = host
        .cpus()
        .into_iter()
        .filter(|cpu| {
            let value = host.msr(*cpu, SPEC_LOCK_MAP_MSR);
            value.is_ok_and(|value| value & SPEC_LOCK_MAP_OFF == 0)
        })
        .collect();
    if !on.is_empty() {
        let detail = format!("bit 54 of MSR C001_1020 is clear on CPUs {on:?}");
        return Check::new(name, Outcome::Fail, detail).fix(fix);
    }
    match mapped {
        Ok(0) => Check::new(
            name,
            Outcome::Ok,
            format!("{LOCKED} locked additions, none mapped"),
        ),
        Ok(n) => Check::new(
            name,
            Outcome::Fail,
            format!("{n} of {LOCKED} locked additions were mapped: branches are miscounted"),
        )
        .fix(fix),
        Err(error) => Check::new(name, Outcome::Skipped, format!("not counted: {error}")),
    }
}

fn freeze_on_smi(host: &Host) -> Check {
    let name = "counter: SMI";
    match host.freeze_on_smi() {
        Some(true) => Check::new(name, Outcome::Ok, "freeze_on_smi is set"),
        Some(false) => Check::new(
            name,
            Outcome::Warn,
            "freeze_on_smi is not set: branches of the firmware's system management mode may be counted",
        )
        .fix("echo 1 > /sys/devices/cpu/freeze_on_smi (cpu_core on a hybrid CPU)"),
        None => Check::new(
            name,
            Outcome::Skipped,
            "the kernel has no such setting here",
        ),
    }
}

#[cfg(test)]
mod tests;
