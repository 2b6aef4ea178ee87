//! `log dump`: a log file as text or JSON.

use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use ftlog::codec::{Hello, KindBytes, LogEncoder, Tail};
use ftlog::{CountUnit, Entry, EntryKind, Event, digest};
use serde_json::{Map, Value, json};

/// What is shown.
#[derive(Clone, Copy, Debug)]
pub struct What {
    pub json: bool,
    pub entries: bool,
    /// The bytes that entries carry.
    pub data: bool,
}

/// Writes the log to stdout. A reader that has seen enough (`| head`) is no error.
pub fn dump(path: &Path, what: What) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match write(path, what, &mut out).and_then(|()| Ok(out.flush()?)) {
        Err(why) if is_broken_pipe(&why) => Ok(()),
        outcome => outcome,
    }
}

fn is_broken_pipe(why: &anyhow::Error) -> bool {
    why.downcast_ref::<io::Error>()
        .is_some_and(|why| why.kind() == io::ErrorKind::BrokenPipe)
}

fn write(path: &Path, what: What, out: &mut impl Write) -> Result<()> {
    let (file, file_bytes) = super::open(path)?;
    let mut log = super::open_log(BufReader::new(file), path)?;
    write_header(log.hello(), what, out)?;
    // Entries are differences to each other; encoding them again gives each one's share.
    let mut encoder = LogEncoder::new(&log.hello().header);
    let (mut count, mut clock_ns) = (0, log.hello().header.start_clock_ns);
    while let Some((seq, entry)) = log
        .next_entry()
        .with_context(|| path.display().to_string())?
    {
        let kind = entry.kind();
        let before = encoder.stats().bytes(kind);
        encoder.push(&entry)?;
        encoder.take_frames().for_each(drop);
        let bytes = encoder.stats().bytes(kind) - before;
        count = entry.at().count;
        if let Entry::Event { clock_ns: now, .. } = &entry {
            clock_ns = *now;
        }
        if what.entries {
            write_entry(seq, bytes, &entry, what, out)?;
        }
    }
    let summary = Summary {
        stats: encoder.stats(),
        file_bytes,
        instructions: count.saturating_sub(log.hello().header.start.count),
        counted: log.hello().header.counts,
        guest_ns: clock_ns.saturating_sub(log.hello().header.start_clock_ns),
        cut_off: match log.tail() {
            Some(Tail::Truncated { bytes }) => bytes,
            _ => 0,
        },
    };
    summary.write(what, out)
}

fn write_header(hello: &Hello, what: What, out: &mut impl Write) -> Result<()> {
    let header = &hello.header;
    if what.json {
        writeln!(
            out,
            "{}",
            json!({ "header": header, "replica": hello.replica })
        )?;
        return Ok(());
    }
    writeln!(
        out,
        "log of VM {}, view {}, recorded by replica {} with engine {}, build {}",
        header.vm, header.view, hello.replica, header.engine, header.build
    )?;
    writeln!(
        out,
        "positions count {}; starts at {}, clock {:.6} s",
        header.counts,
        header.start,
        seconds(header.start_clock_ns)
    )?;
    let memory: u64 = header.memory.iter().map(|region| region.len).sum();
    writeln!(
        out,
        "memory {} MiB, CPUID {:016x}, board {:016x}, host's arithmetic {:016x}, state {:016x}",
        memory >> 20,
        header.cpuid,
        header.board,
        header.host_math,
        header.initial_state
    )?;
    Ok(())
}

fn write_entry(
    seq: u64,
    bytes: u64,
    entry: &Entry,
    what: What,
    out: &mut impl Write,
) -> Result<()> {
    let at = entry.at();
    let details = details(entry, what.data);
    if what.json {
        let mut object = Map::new();
        object.insert("seq".into(), seq.into());
        object.insert("kind".into(), entry.kind().name().into());
        object.insert("bytes".into(), bytes.into());
        object.insert("at".into(), json!(at));
        object.extend(details);
        writeln!(out, "{}", Value::Object(object))?;
        return Ok(());
    }
    write!(
        out,
        "{seq:9} {:14} {:14} rip {:016x} rcx {:016x}",
        entry.kind().name(),
        at.count,
        at.rip,
        at.rcx
    )?;
    for (name, value) in details {
        match value {
            Value::String(text) => write!(out, " {name} {text}")?,
            other => write!(out, " {name} {other}")?,
        }
    }
    writeln!(out, " ({bytes} B)")?;
    Ok(())
}

/// What an entry has beside its position, under the names of the JSON form.
fn details(entry: &Entry, data: bool) -> Vec<(String, Value)> {
    let mut fields: Vec<(&str, Value)> = Vec::new();
    match entry {
        Entry::Event {
            clock_ns, event, ..
        } => {
            fields.push(("clock_ns", (*clock_ns).into()));
            event_details(event, data, &mut fields);
        }
        Entry::Mark {
            ordinal,
            kind,
            digest,
            ..
        } => {
            fields.push(("output", (*ordinal).into()));
            fields.push(("of", json!(kind)));
            fields.push(("digest", hex(u64::from(*digest), 8)));
        }
        Entry::Progress { .. } => {}
        Entry::Hash {
            registers,
            memory,
            devices,
            ..
        } => {
            fields.push(("registers", hex(*registers, 16)));
            fields.push(("devices", hex(*devices, 16)));
            if let Some(memory) = memory {
                fields.push(("memory", hex(*memory, 16)));
            }
        }
        Entry::Pages { pages, .. } => {
            fields.push(("pages", pages.len().into()));
            fields.push(("frames", ranges(pages.frames()).into()));
        }
        Entry::Stretch {
            interrupts, cpu, ..
        } => {
            fields.push(("interrupts", (*interrupts).into()));
            fields.push(("cpu", hex(u64::from(digest(cpu)), 8)));
        }
    }
    let named = |(name, value): (&str, Value)| (name.to_owned(), value);
    fields.into_iter().map(named).collect()
}

fn event_details(event: &Event, data: bool, fields: &mut Vec<(&'static str, Value)>) {
    let carried = match event {
        Event::NetReceive(bytes) | Event::ConsoleInput(bytes) | Event::SerialInput(bytes) => {
            Some(bytes)
        }
        Event::DiskDone {
            id,
            status,
            data: read,
        } => {
            fields.push(("request", (*id).into()));
            fields.push(("status", (*status).into()));
            read.as_ref()
        }
        Event::Control(control) => {
            fields.push(("control", json!(control)));
            None
        }
        Event::GoLive { view } => {
            fields.push(("view", (*view).into()));
            None
        }
        Event::Timer => None,
    };
    if let Some(bytes) = carried {
        fields.push(("length", bytes.len().into()));
        fields.push(("digest", hex(u64::from(digest(bytes)), 8)));
        if data {
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            fields.push(("data", text.into()));
        }
    }
}

/// Frame numbers, those that follow each other joined: `3-5,9`.
fn ranges(frames: impl Iterator<Item = u64>) -> String {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for frame in frames {
        match joined.last_mut() {
            Some((_, last)) if *last + 1 == frame => *last = frame,
            _ => joined.push((frame, frame)),
        }
    }
    let name = |(first, last): (u64, u64)| match last - first {
        0 => format!("{first:x}"),
        _ => format!("{first:x}-{last:x}"),
    };
    joined.into_iter().map(name).collect::<Vec<_>>().join(",")
}

fn hex(value: u64, digits: usize) -> Value {
    format!("{value:0digits$x}").into()
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

struct Summary<'a> {
    stats: &'a KindBytes,
    file_bytes: u64,
    /// How far the position went, and what it counts; in JSON the name is an old one.
    instructions: u64,
    counted: CountUnit,
    guest_ns: u64,
    /// Bytes of a last frame that was not written to its end.
    cut_off: usize,
}

impl Summary<'_> {
    fn write(&self, what: What, out: &mut impl Write) -> Result<()> {
        if what.json {
            writeln!(out, "{}", json!({ "summary": self.json() }))?;
            return Ok(());
        }
        writeln!(
            out,
            "\n{:15} {:>10} {:>14} {:>7} {:>11}",
            "kind", "entries", "bytes", "share", "B/entry"
        )?;
        for (kind, entries, bytes) in self.used() {
            writeln!(
                out,
                "{:15} {entries:10} {bytes:14} {:6.1}% {:11.1}",
                kind.name(),
                self.share(bytes),
                bytes as f64 / entries as f64
            )?;
        }
        let overhead = self.overhead();
        writeln!(
            out,
            "{:15} {:>10} {overhead:14} {:6.1}%",
            "overhead",
            "",
            self.share(overhead)
        )?;
        writeln!(
            out,
            "{:15} {:10} {:14}   100%",
            "all",
            self.stats.total_entries(),
            self.file_bytes
        )?;
        writeln!(
            out,
            "{} {} in {:.3} s of the guest's time: {:.3} Mbit/s",
            self.instructions,
            self.counted,
            seconds(self.guest_ns),
            self.mbit_per_s()
        )?;
        if self.cut_off > 0 {
            writeln!(
                out,
                "the last frame was not written to its end: {} bytes left out",
                self.cut_off
            )?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let kinds: Map<String, Value> = self
            .used()
            .map(|(kind, entries, bytes)| {
                (
                    kind.name().to_owned(),
                    json!({ "entries": entries, "bytes": bytes }),
                )
            })
            .collect();
        json!({
            "entries": self.stats.total_entries(),
            "bytes": self.file_bytes,
            "kinds": kinds,
            "overhead_bytes": self.overhead(),
            "instructions": self.instructions,
            "counts": self.counted.to_string(),
            "guest_ns": self.guest_ns,
            "log_mbit_per_s": self.mbit_per_s(),
            "cut_off_bytes": self.cut_off,
        })
    }

    fn used(&self) -> impl Iterator<Item = (EntryKind, u64, u64)> + '_ {
        self.stats.iter().filter(|(_, entries, _)| *entries > 0)
    }

    /// Everything that is not entries: headers, heartbeats, frames' lengths and checksums.
    fn overhead(&self) -> u64 {
        let entries: u64 = self.stats.iter().map(|(_, _, bytes)| bytes).sum();
        self.file_bytes.saturating_sub(entries)
    }

    fn share(&self, bytes: u64) -> f64 {
        bytes as f64 * 100.0 / self.file_bytes.max(1) as f64
    }

    fn mbit_per_s(&self) -> f64 {
        self.file_bytes as f64 * 8.0 / 1e6 / seconds(self.guest_ns).max(1e-9)
    }
}

#[cfg(test)]
mod tests;
