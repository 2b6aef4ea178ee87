//! `log replay`: a log file's machine runs again, without servers and without a primary.

use std::cell::Cell;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cli::{eprintln, println};
use ftlog::CountUnit;
use ftlog::codec::Tail;
use serde_json::json;
use vmm::config::Config;
use vmm::replica::offline::{self, Difference, Outcome, Replica};

use crate::progress::Teller;

/// How to replay.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The machine's configuration; default: the file beside the log.
    pub config: Option<PathBuf>,
    /// The saved state that the machine began from.
    pub from: Option<PathBuf>,
    /// No warning if another build made the log.
    pub any_build: bool,
    pub json: bool,
}

/// Replays the log and says what was found; `false`: a difference.
pub fn replay(path: &Path, options: Options) -> Result<bool> {
    let json = options.json;
    let replica = Replica {
        from: options.from,
        ..machine_of(path, options.config)?
    };
    let (file, total) = super::open(path)?;
    let read = Rc::new(Cell::new(0));
    let counted = Counted {
        inner: file,
        read: Rc::clone(&read),
    };
    let log = super::open_log(BufReader::new(counted), path)?;
    let build = log.hello().header.build.clone();
    if build != vmm::BUILD && !options.any_build {
        eprintln!(
            "ft-ctl: this is build {} of Lockstep, the log was made by build {build}: a difference \
             may come from that (--any-build: do not warn)",
            vmm::BUILD
        );
    }
    let mut teller = Teller::new(json);
    teller.step(&format!("replaying {}", path.display()));
    let begun = Instant::now();
    let first = log.hello().header.start.count;
    let counted = log.hello().header.counts;
    let outcome = offline::replay(log, &replica, &mut |_| {
        teller.amount(read.get(), total, "bytes");
    })?;
    drop(teller);
    let took = begun.elapsed().as_secs_f64();
    let per_s = (outcome.position.count - first) as f64 / took;
    let mips = per_s / 1e6;
    if json {
        print_json(&outcome, &build, took, mips)?;
    } else {
        let rate = match counted {
            CountUnit::Instructions => format!("{mips:.0} MIPS"),
            other => format!("{:.1} k {other}/s", per_s / 1e3),
        };
        print(&outcome, took, &rate);
    }
    Ok(outcome.difference.is_none())
}

/// The machine by its configuration file.
fn machine_of(log: &Path, config: Option<PathBuf>) -> Result<Replica> {
    let path = config.unwrap_or_else(|| super::config_beside(log));
    if !path.exists() {
        bail!(
            "there is no configuration {} of the recorded machine; name it with --config",
            path.display()
        );
    }
    let config = Config::load(&path)?;
    let disk_bytes = match (&config.disk.size, &config.disk.path) {
        (Some(size), _) => Some(size.0),
        (None, Some(disk)) => Some(
            std::fs::metadata(disk)
                .with_context(|| {
                    format!(
                        "the size of the machine's disk is not known: set disk.size in {}, or keep \
                         {}",
                        path.display(),
                        disk.display()
                    )
                })?
                .len(),
        ),
        (None, None) => None,
    };
    Ok(Replica {
        config,
        engine: vmm::engines::make,
        disk_bytes,
        from: None,
    })
}

struct Counted<R> {
    inner: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.read.set(self.read.get() + length as u64);
        Ok(length)
    }
}

fn print(outcome: &Outcome, took: f64, rate: &str) {
    println!(
        "{} entries agree: {} outputs, {} state hashes ({} of them of all of memory)",
        outcome.entries, outcome.marks, outcome.hashes, outcome.memory_hashes
    );
    println!(
        "ends at {}, clock {:.3} s{}; {took:.1} s, {rate}",
        outcome.position,
        outcome.clock_ns as f64 / 1e9,
        if outcome.off.is_some() {
            ", the machine off"
        } else {
            ""
        }
    );
    if let Some(Tail::Truncated { bytes }) = outcome.tail {
        println!("the last frame was not written to its end: {bytes} bytes left out");
    }
    match &outcome.difference {
        None => println!("no difference"),
        Some(difference) => print_difference(difference),
    }
}

fn print_difference(difference: &Difference) {
    println!("DIVERGED at entry {}", difference.seq);
    println!("  {}", difference.divergence);
    match &difference.recorded {
        Some(entry) => println!("  recorded: {entry:?}"),
        None => println!("  recorded: nothing more"),
    }
    let cpu = &difference.registers;
    println!(
        "  replayed: count {} rip {:016x} rflags {:08x}",
        cpu.count, cpu.rip, cpu.rflags
    );
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    for (names, values) in NAMES.chunks(4).zip(cpu.gpr.chunks(4)) {
        let row: Vec<String> = names
            .iter()
            .zip(values)
            .map(|(name, value)| format!("{name:>3} {value:016x}"))
            .collect();
        println!("    {}", row.join("  "));
    }
    println!(
        "    cr0 {:016x}  cr2 {:016x}  cr3 {:016x}  cr4 {:016x}",
        cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4
    );
}

fn print_json(outcome: &Outcome, log_build: &str, took: f64, mips: f64) -> Result<()> {
    let difference = outcome.difference.as_ref().map(|difference| {
        json!({
            "seq": difference.seq,
            "what": difference.divergence.to_string(),
            "recorded": difference.recorded.as_ref().map(|entry| format!("{entry:?}")),
            "registers": difference.registers,
        })
    });
    let report = json!({
        "build": vmm::BUILD,
        "log_build": log_build,
        "agrees": outcome.difference.is_none(),
        "entries": outcome.entries,
        "marks": outcome.marks,
        "hashes": outcome.hashes,
        "memory_hashes": outcome.memory_hashes,
        "position": outcome.position,
        "clock_ns": outcome.clock_ns,
        "off": outcome.off,
        "seconds": took,
        "mips": mips,
        "difference": difference,
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
