//! `bench log`: what protection costs, workload by workload.
//!
//! Runs with and without a backup alternate, so that a change of the host's mood hits both. The
//! ratio is that of the median times.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cli::{print, println};
use e2e::machine::Machine;
use serde::Serialize;
use wire::control::{Quantiles, Status, Stretches};

use super::base::{self, Base};
use super::workload::{self, Work, Workload};
use super::{Teller, beside, chart, quantile, sorted, write_json};

const BOOT: Duration = Duration::from_secs(600);
const PROTECTED: Duration = Duration::from_secs(120);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// A few seconds for each workload, and one run of each kind
    #[arg(long)]
    quick: bool,
    /// Only this workload; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<Workload>,
    /// Runs of each workload with and without a backup; default: 3, with --quick 1
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: Option<u32>,
    /// Write the figures to this file, and the chart beside it as SVG and PNG
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What VMware's paper and documents say, for the workload that is most like ours.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Reference {
    pub of: &'static str,
    pub ratio: Option<f64>,
    /// From, to.
    pub log_mbit_per_s: (f64, f64),
}

/// A workload's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    pub workload: Workload,
    pub work: Work,
    /// Seconds of each run without and with a backup.
    pub solo_s: Vec<f64>,
    pub ft_s: Vec<f64>,
    /// Speed with a backup over speed without; none for the idle guest.
    pub ratio: Option<f64>,
    /// Work per second: medians.
    pub solo_per_s: f64,
    pub ft_per_s: f64,
    /// With a backup, of all its runs together.
    pub log_mbit_per_s: f64,
    pub log_bytes: BTreeMap<String, u64>,
    pub log_entries: u64,
    /// With an engine that counts exits: stretches that were closed by state, of all runs together.
    pub stretches: Stretches,
    /// With a backup, of all its runs together: the guest's exits by kind, if the engine gives them.
    pub exits: BTreeMap<String, u64>,
    /// Milliseconds, of the last run.
    pub output_hold_ms: Quantiles,
    pub lag_ms: Quantiles,
    pub vmware: Option<Reference>,
}

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    quick: bool,
    engine: String,
    cores: usize,
    workloads: Vec<Figures>,
}

/// What a run with a backup left in the log.
struct Logged {
    seconds: f64,
    bytes: BTreeMap<String, u64>,
    entries: u64,
    stretches: Stretches,
    exits: BTreeMap<String, u64>,
    hold: Quantiles,
    lag: Quantiles,
    engine: String,
}

pub fn run(options: &Options) -> Result<()> {
    let teller = Teller::new();
    let wanted: Vec<Workload> = workload::ALL
        .into_iter()
        .filter(|workload| options.only.is_empty() || options.only.contains(workload))
        .collect();
    let runs = options.runs.unwrap_or(if options.quick { 1 } else { 3 });
    let base = if wanted == [Workload::Boot] {
        None
    } else {
        Some(Base::make(&teller)?)
    };
    let mut report = Report {
        bench: "log",
        quick: options.quick,
        engine: String::new(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        workloads: Vec::new(),
    };
    for workload in wanted {
        let work = workload.work(options.quick);
        let (figures, engine) = measure(workload, work, runs, base.as_ref(), &teller)
            .with_context(|| format!("workload {}", workload.name()))?;
        report.workloads.push(figures);
        report.engine = engine;
    }
    print!("{}", table(&report.workloads));
    if let Some(path) = &options.json {
        write_json(path, &report)?;
        println!("figures: {}", path.display());
        let (svg, png) = (beside(path, "svg"), beside(path, "png"));
        chart::draw(&report.workloads, &svg, &png)?;
        println!("chart: {}, {}", svg.display(), png.display());
    }
    Ok(())
}

fn measure(
    workload: Workload,
    work: Work,
    runs: u32,
    base: Option<&Base>,
    teller: &Teller,
) -> Result<(Figures, String)> {
    let (mut solo_s, mut logged) = (Vec::new(), Vec::new());
    for number in 1..=runs {
        let name = workload.name();
        let solo = one(workload, work, base, false)?;
        teller.say(&format!(
            "{name} {number}/{runs}: alone {:.2} s",
            solo.seconds
        ));
        let ft = one(workload, work, base, true)?;
        teller.say(&format!(
            "{name} {number}/{runs}: protected {:.2} s",
            ft.seconds
        ));
        solo_s.push(solo.seconds);
        logged.push(ft);
    }
    let ft_s: Vec<f64> = logged.iter().map(|run| run.seconds).collect();
    let (solo, ft) = (median(&solo_s), median(&ft_s));
    let bytes = sums(logged.iter().map(|run| &run.bytes));
    let mut stretches = Stretches::default();
    for run in &logged {
        stretches.closed += run.stretches.closed;
        stretches.pages += run.stretches.pages;
        stretches.interrupts += run.stretches.interrupts;
        stretches.bytes += run.stretches.bytes;
    }
    let all: u64 = bytes.values().sum();
    let last = logged.last().context("there was no run")?;
    let figures = Figures {
        workload,
        work,
        ratio: workload.has_ratio().then_some(solo / ft),
        solo_per_s: work.amount as f64 / solo,
        ft_per_s: work.amount as f64 / ft,
        log_mbit_per_s: all as f64 * 8.0 / 1e6 / ft_s.iter().sum::<f64>(),
        log_entries: logged.iter().map(|run| run.entries).sum(),
        log_bytes: bytes,
        stretches,
        exits: sums(logged.iter().map(|run| &run.exits)),
        output_hold_ms: last.hold,
        lag_ms: last.lag,
        vmware: reference(workload),
        solo_s,
        ft_s,
    };
    Ok((figures, last.engine.clone()))
}

/// The sum of each name's numbers.
fn sums<'a>(maps: impl Iterator<Item = &'a BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (name, number) in maps.flatten() {
        *sums.entry(name.clone()).or_insert(0) += number;
    }
    sums
}

fn median(values: &[f64]) -> f64 {
    quantile(&sorted(values.to_vec()), 0.5)
}

/// One run on a machine of its own.
fn one(workload: Workload, work: Work, base: Option<&Base>, ft: bool) -> Result<Logged> {
    let machine = match (workload, base) {
        (Workload::Boot, _) => base::boot(ft)?,
        (_, Some(base)) => base.resume(ft, &[])?,
        (_, None) => bail!("there is no saved guest to go on from"),
    };
    if ft {
        machine.wait_protected(PROTECTED)?;
    }
    let (before, seconds) = if workload == Workload::Boot {
        machine.wait_redis(BOOT, |_| ())?;
        // The process's whole life is the boot.
        (None, live(&machine)?.uptime_ms as f64 / 1e3)
    } else {
        let before = live(&machine)?;
        let took = workload.run(&machine, work);
        let took = took.with_context(|| machine.console_tail())?;
        (Some(before), took.as_secs_f64())
    };
    let after = live(&machine)?;
    machine.down()?;
    Ok(logged(before.as_ref(), after, seconds))
}

fn live(machine: &Machine) -> Result<Status> {
    let (_, status) = machine.live().context("no replica is live")?;
    Ok(status)
}

fn logged(before: Option<&Status>, after: Status, seconds: f64) -> Logged {
    let bytes = growth(before.map(|status| &status.log_bytes), &after.log_bytes);
    let exits = growth(before.map(|status| &status.exits), &after.exits);
    let stretches_before = before.map(|status| status.stretches).unwrap_or_default();
    Logged {
        seconds,
        bytes,
        entries: after
            .log_entries
            .saturating_sub(before.map_or(0, |status| status.log_entries)),
        stretches: after.stretches.since(&stretches_before),
        exits,
        hold: after.output_hold_ms,
        lag: after.lag_quantiles_ms,
        engine: after.engine,
    }
}

/// By how much each number has grown; those that have not are left out.
fn growth(
    before: Option<&BTreeMap<String, u64>>,
    after: &BTreeMap<String, u64>,
) -> BTreeMap<String, u64> {
    let earlier = |name: &String| before.and_then(|all| all.get(name)).copied().unwrap_or(0);
    after
        .iter()
        .map(|(name, number)| (name.clone(), number.saturating_sub(earlier(name))))
        .filter(|(_, grown)| *grown > 0)
        .collect()
}

/// VMware FT's figures: Scales, Nelson, Venkitachalam 2010, tables 1 and 2 (1 Gbit/s channel for the
/// network), on hardware of its time.
fn reference(workload: Workload) -> Option<Reference> {
    let (of, ratio, log) = match workload {
        Workload::Idle => ("idle guest", None, (0.5, 1.5)),
        Workload::Boot => return None,
        Workload::Compute => ("SPECjbb2005", Some(0.98), (1.5, 1.5)),
        Workload::Redis => ("MS-SQL DVD Store", Some(0.94), (18.0, 18.0)),
        Workload::DiskRead | Workload::DiskWrite => ("Oracle Swingbench", Some(0.99), (12.0, 12.0)),
        Workload::NetReceive => ("receive, 1 Gb", Some(604.0 / 940.0), (730.0, 730.0)),
        Workload::NetTransmit => ("transmit, 1 Gb", Some(855.0 / 940.0), (42.0, 42.0)),
    };
    Some(Reference {
        of,
        ratio,
        log_mbit_per_s: log,
    })
}

fn table(workloads: &[Figures]) -> String {
    let mut text = format!(
        "{:13} {:>6} {:>11} {:>11} {:>9} {:>15} {:>15}  VMware FT: ratio, Mbit/s\n",
        "workload", "ratio", "alone/s", "FT/s", "Mbit/s", "hold p50/p99 ms", "lag p50/p99 ms"
    );
    for row in workloads {
        let ratio = row
            .ratio
            .map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let rate = |per_s: f64| match row.work.unit {
            "s" => "-".to_owned(),
            "boots" => format!("{:.1} s", 1.0 / per_s),
            "iterations" => format!("{:.0} k", per_s / 1e3),
            "operations" => format!("{per_s:.0} op"),
            unit => format!("{per_s:.1} {unit}"),
        };
        let pair = |quantiles: Quantiles| format!("{:.2}/{:.2}", quantiles.p50, quantiles.p99);
        text.push_str(&format!(
            "{:13} {ratio:>6} {:>11} {:>11} {:9.2} {:>15} {:>15}  {}\n",
            row.workload.name(),
            rate(row.solo_per_s),
            rate(row.ft_per_s),
            row.log_mbit_per_s,
            pair(row.output_hold_ms),
            pair(row.lag_ms),
            row.vmware.map_or_else(String::new, describe),
        ));
    }
    text.push_str("\nbytes of the log by kind of entry\n");
    for row in workloads {
        let mut kinds: Vec<_> = row.log_bytes.iter().collect();
        kinds.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        let kinds: Vec<String> = kinds
            .into_iter()
            .map(|(kind, bytes)| format!("{kind} {bytes}"))
            .collect();
        text.push_str(&format!(
            "{:13} {}\n",
            row.workload.name(),
            kinds.join(", ")
        ));
    }
    text.push_str(&exits_table(workloads));
    text
}

/// Of engines that count exits: how often a stretch had to be closed, how large that was, and what
/// the exits were. Empty with other engines.
fn exits_table(workloads: &[Figures]) -> String {
    if workloads
        .iter()
        .all(|row| row.exits.is_empty() && row.stretches.closed == 0)
    {
        return String::new();
    }
    let mut text = "\nstretches without an exit, closed by state; exits by kind\n".to_owned();
    for row in workloads {
        let seconds: f64 = row.ft_s.iter().sum();
        let Stretches {
            closed,
            pages,
            bytes,
            ..
        } = row.stretches;
        let each = |of: u64| of as f64 / closed.max(1) as f64;
        let exits: Vec<String> = (row.exits.iter())
            .map(|(kind, number)| format!("{kind} {:.0}/s", *number as f64 / seconds))
            .collect();
        text.push_str(&format!(
            "{:13} {closed} closed ({:.1}/s), each {:.0} pages and {:.0} KiB of log; {}\n",
            row.workload.name(),
            closed as f64 / seconds,
            each(pages),
            each(bytes) / 1024.0,
            exits.join(", ")
        ));
    }
    text
}

fn describe(reference: Reference) -> String {
    let ratio = reference
        .ratio
        .map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
    let log = match reference.log_mbit_per_s {
        (from, to) if from == to => format!("{from}"),
        (from, to) => format!("{from} to {to}"),
    };
    format!("{ratio}, {log} ({})", reference.of)
}
