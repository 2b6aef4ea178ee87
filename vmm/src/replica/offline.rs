//! Replay of a log file without a primary: the backup's loop, with a file where the protocol is.
//!
//! Every entry is checked as a backup checks it: its position, each output against its mark, each
//! state hash. The replay ends at the end of the file or at the first difference.

use std::io::Read;
use std::path::PathBuf;

use ftlog::codec::{Hello, LogFile, LogFileError, Tail};
use ftlog::replay::{self, Divergence, Hashes, Made};
use ftlog::{Entry, Header, Mismatch, Position};

use super::clock::Pace;
use super::convert::Marked;
use super::protocol::Next;
use super::replay::{Log, Replayed, Replayer};
use super::setup::{self, SetupError};
use super::view_of_vcpu::VcpuView;
use crate::config::Config;
use crate::engines::MakeEngine;
use crate::machine::{Machine, MachineError, Off};

/// The driver is told how far the replay is every so many entries.
const TELL_EVERY: u64 = 1024;

/// Why a log could not be replayed. That the replay differs is not among them: [`Outcome`] says so.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    #[error(transparent)]
    File(#[from] LogFileError),
    #[error("the log does not belong to this machine")]
    Mismatch(#[from] Mismatch),
    #[error(
        "the configuration has no {0}, which the recorded machine had: give the configuration that \
         was written beside the log"
    )]
    Incomplete(&'static str),
    #[error("the machine of the log cannot be built")]
    Setup(#[from] SetupError),
    #[error("the machine cannot go on")]
    Machine(#[from] MachineError),
}

/// The machine that a log is replayed on.
#[derive(Clone, Debug)]
pub struct Replica {
    /// As the recorded machine had it; its disk is not needed, only how large it was.
    pub config: Config,
    /// Makes the CPU engine: [`crate::engines::make`].
    pub engine: MakeEngine,
    /// Bytes of the disk; `None`: the machine had none.
    pub disk_bytes: Option<u64>,
    /// The saved state that it began from, if not from power-on.
    pub from: Option<PathBuf>,
}

/// How far a replay is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    pub entries: u64,
    pub position: Position,
    /// Virtual nanoseconds since power-on.
    pub clock_ns: u64,
}

/// Where the replay and the log part.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Number of the entry.
    pub seq: u64,
    /// The entry that was recorded, if the log has it.
    pub recorded: Option<Entry>,
    pub divergence: Divergence,
    /// The registers of the replay where it was found.
    pub registers: engine::CpuState,
}

/// What a replay found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Entries that were replayed and agreed.
    pub entries: u64,
    /// Outputs that were what their marks say.
    pub marks: u64,
    /// State hashes that agreed, and those of them that covered all of memory.
    pub hashes: u64,
    pub memory_hashes: u64,
    /// Where the replay ended.
    pub position: Position,
    pub clock_ns: u64,
    /// The guest's end, if the log has it.
    pub off: Option<Off>,
    /// How the file ends; unknown if the replay ended before it.
    pub tail: Option<Tail>,
    pub difference: Option<Difference>,
}

/// Replays a log from its header to its end.
///
/// A log of another build is replayed too, since that build may be gone: its header has the name
/// ([`Header::build`]), for the caller to warn.
///
/// # Errors
/// A file that is damaged or of another machine. A log whose disk reads are not in it
/// (`disk-reads=backup`) ends with a difference at the first read.
pub fn replay<R: Read>(
    log: LogFile<R>,
    replica: &Replica,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, OfflineError> {
    let mut config = replica.config.clone();
    let recorded = &log.hello().header;
    config.vm.engine = config.vm.engine.or_named(&recorded.engine);
    config.vm.positions = config.vm.positions.or_counting(recorded.counts);
    let machine = setup::machine(
        &config,
        replica.engine,
        replica.from.as_ref(),
        replica.disk_bytes,
    )?;
    own_header(log.hello(), replica, &machine)?.check_compatible(&log.hello().header)?;
    let vcpu = VcpuView::default();
    vcpu.show(&machine);
    let mut file = FileLog {
        file: log,
        next: None,
        made: 0,
        checked: Checked::default(),
        failed: None,
        found: None,
        vcpu: vcpu.clone(),
        progress,
    };
    let machine = match Replayer::new(machine, &mut file, None, vcpu, Pace::default()).run()? {
        Replayed::Ended(machine) | Replayed::Live { machine, .. } => machine,
    };
    if let Some(why) = file.failed {
        return Err(why.into());
    }
    Ok(Outcome {
        entries: file.checked.entries,
        marks: file.checked.marks,
        hashes: file.checked.hashes,
        memory_hashes: file.checked.memory_hashes,
        position: machine.position(),
        clock_ns: machine.now(),
        off: machine.off(),
        tail: file.file.tail(),
        difference: file.found.map(|(seq, recorded, divergence)| Difference {
            seq,
            recorded,
            divergence,
            registers: machine.state().cpu,
        }),
    })
}

/// The header as this replica would write it. View and build are whatever the log's are.
fn own_header(hello: &Hello, replica: &Replica, machine: &Machine) -> Result<Header, OfflineError> {
    let vm = &replica.config.vm;
    if replica.from.is_none() {
        // They are part of the machine's first state; a new one would only be said to differ.
        vm.seed.ok_or(OfflineError::Incomplete("vm.seed"))?;
        vm.start_time
            .ok_or(OfflineError::Incomplete("vm.start_time"))?;
    }
    let id = vm.uuid.unwrap_or(hello.header.vm);
    Ok(Header {
        build: hello.header.build.clone(),
        ..setup::header(id, hello.header.view, &replica.config, machine)
    })
}

/// A log file as the replayer's log.
struct FileLog<'a, R> {
    file: LogFile<R>,
    /// The entry that is due, and its number.
    next: Option<(u64, Entry)>,
    /// Outputs that the replay made.
    made: u64,
    checked: Checked,
    failed: Option<LogFileError>,
    found: Option<(u64, Option<Entry>, Divergence)>,
    vcpu: VcpuView,
    progress: &'a mut dyn FnMut(Progress),
}

#[derive(Default)]
struct Checked {
    entries: u64,
    marks: u64,
    hashes: u64,
    memory_hashes: u64,
}

impl<R: Read> FileLog<'_, R> {
    fn judge(&mut self, outcome: Result<(), Divergence>) -> bool {
        if let Err(divergence) = outcome {
            let (seq, recorded) = match self.next.take() {
                Some((seq, entry)) => (seq, Some(entry)),
                None => (self.checked.entries, None),
            };
            self.found.get_or_insert((seq, recorded, divergence));
        }
        self.found.is_none()
    }

    /// The entry that is due has been replayed.
    fn consume(&mut self) {
        let Some((_, entry)) = self.next.take() else {
            return;
        };
        self.checked.entries += 1;
        match entry {
            Entry::Mark { .. } => self.checked.marks += 1,
            Entry::Hash { memory, .. } => {
                self.checked.hashes += 1;
                self.checked.memory_hashes += u64::from(memory.is_some());
            }
            Entry::Event { .. }
            | Entry::Progress { .. }
            | Entry::Pages { .. }
            | Entry::Stretch { .. } => {}
        }
        if self.checked.entries.is_multiple_of(TELL_EVERY) {
            (self.progress)(Progress {
                entries: self.checked.entries,
                position: entry.at(),
                clock_ns: self.vcpu.clock_ns(),
            });
        }
    }
}

impl<R: Read> Log for &mut FileLog<'_, R> {
    fn next(&mut self) -> Next {
        if self.next.is_none() {
            match self.file.next_entry() {
                Ok(next) => self.next = next,
                Err(why) => self.failed = Some(why),
            }
        }
        match &self.next {
            Some((seq, entry)) => Next::Entry(*seq, entry.clone()),
            None => Next::Halted,
        }
    }

    fn arrived(&mut self, at: Position) -> bool {
        let outcome = match &self.next {
            Some((seq, entry)) => replay::check_arrival(*seq, entry, at),
            None => Ok(()),
        };
        self.judge(outcome)
    }

    fn suppressed(&mut self, at: Position, marked: Marked) -> bool {
        let made = Made {
            at,
            ordinal: self.made,
            kind: marked.kind,
            bytes: &marked.bytes,
        };
        let seq = self
            .next
            .as_ref()
            .map_or(self.checked.entries, |(seq, _)| *seq);
        let outcome = replay::check_output(seq, self.next.as_ref().map(|(_, entry)| entry), made);
        let fine = self.judge(outcome);
        if fine {
            self.made += 1;
            self.consume();
        }
        fine
    }

    fn hashed(&mut self, hashes: Hashes) -> bool {
        let outcome = match &self.next {
            Some((seq, entry)) => replay::check_hashes(*seq, entry, hashes),
            None => Ok(()),
        };
        self.judge(outcome)
    }

    fn applied(&mut self) -> bool {
        self.consume();
        true
    }

    fn diverged(&mut self, divergence: Divergence) {
        self.judge(Err(divergence));
    }
}

#[cfg(test)]
mod tests;
