//! The records of the log.
//!
//! Entries are numbered from 0 in the order of the log; the number is implied. Each has the
//! position at which it took effect, and positions never go back, so a backup may execute up to
//! the position of the last entry that it holds.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::position::Position;
use crate::stretch::PageBlock;

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// An asynchronous event taken at `at`. The guest's clock reads `clock_ns` (virtual
    /// nanoseconds since power-on) there and is re-based on it.
    Event {
        at: Position,
        clock_ns: u64,
        event: Event,
    },
    /// The guest made its output number `ordinal` (from 0) at `at`. The output may leave once the
    /// backup has acknowledged this entry. `digest` is that of the output's bytes ([`digest`]).
    Mark {
        at: Position,
        ordinal: u64,
        kind: MarkKind,
        digest: u32,
    },
    /// The primary has reached `at` and nothing happened since the entry before.
    Progress { at: Position },
    /// Hashes of the state at `at`; `memory` only when the whole of it was hashed.
    Hash {
        at: Position,
        registers: u64,
        memory: Option<u64>,
        devices: u64,
    },
    /// Memory of a stretch that is about to be closed; kept aside until then. Stands at the position
    /// before the stretch; of `at` only the count says so, RIP and RCX are those of the closing
    /// entry: where the vCPU stood at the count an engine need not have stopped to see.
    Pages { at: Position, pages: PageBlock },
    /// Closes a stretch: the vCPU ran on from the count before without an exit, and stands at `at`.
    Stretch {
        at: Position,
        /// Interrupts that the vCPU took from the interrupt controller on the way.
        interrupts: u32,
        /// The whole state of the vCPU, in the engine's form.
        cpu: Bytes,
    },
}

/// An asynchronous event: what the guest could not have known by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Only the clock moves; the timers that are then due are a function of it.
    Timer,
    /// A network frame enters the receive queue.
    NetReceive(Bytes),
    /// A disk request ends. `status` is virtio-blk's (0 OK, 1 I/O error, 2 unsupported). `data`
    /// is what was read; `None` if the request reads nothing, failed, or the backup is to read
    /// the shared disk itself.
    DiskDone {
        id: u64,
        status: u8,
        data: Option<Bytes>,
    },
    /// Bytes typed on the virtio console.
    ConsoleInput(Bytes),
    /// Bytes received by the UART.
    SerialInput(Bytes),
    /// An administrator's request.
    Control(Control),
    /// The replica that records from here on went live in this view.
    GoLive { view: u64 },
}

/// What an administrator can do to the machine from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Cut the power.
    PowerOff,
    /// Press the reset button.
    Reset,
}

/// What kind of output a mark stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MarkKind {
    /// A network frame.
    Net,
    /// A change of the shared disk: write, discard, write zeroes, flush.
    DiskWrite,
    /// Bytes on a console.
    Console,
    /// The machine switched itself off.
    Power,
}

impl Entry {
    /// The position at which the entry took effect.
    pub fn at(&self) -> Position {
        match self {
            Entry::Event { at, .. }
            | Entry::Mark { at, .. }
            | Entry::Progress { at }
            | Entry::Hash { at, .. }
            | Entry::Pages { at, .. }
            | Entry::Stretch { at, .. } => *at,
        }
    }

    /// The count to which a replay runs the guest before it takes the entry up: the position's, but
    /// not into a stretch, which only the primary has run.
    pub fn runs_to(&self) -> u64 {
        match self {
            Entry::Stretch { at, .. } => at.count.saturating_sub(1),
            entry => entry.at().count,
        }
    }

    /// What the entry is counted as in statistics.
    pub fn kind(&self) -> EntryKind {
        match self {
            Entry::Event { event, .. } => match event {
                Event::Timer => EntryKind::Timer,
                Event::NetReceive(_) => EntryKind::NetReceive,
                Event::DiskDone { .. } => EntryKind::DiskDone,
                Event::ConsoleInput(_) => EntryKind::ConsoleInput,
                Event::SerialInput(_) => EntryKind::SerialInput,
                Event::Control(_) => EntryKind::Control,
                Event::GoLive { .. } => EntryKind::GoLive,
            },
            Entry::Mark { .. } => EntryKind::Mark,
            Entry::Progress { .. } => EntryKind::Progress,
            Entry::Hash { .. } => EntryKind::Hash,
            Entry::Pages { .. } => EntryKind::Pages,
            Entry::Stretch { .. } => EntryKind::Stretch,
        }
    }
}

/// The kinds of entries. The discriminants are the tags on the wire. Tag 0 is never used; tag 11
/// is reserved for answers to synchronous reads of engines whose clock is not a function of the
/// position; 14 and 15 are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum EntryKind {
    Timer = 1,
    NetReceive = 2,
    DiskDone = 3,
    ConsoleInput = 4,
    SerialInput = 5,
    Control = 6,
    GoLive = 7,
    Mark = 8,
    Progress = 9,
    Hash = 10,
    Pages = 12,
    Stretch = 13,
}

impl EntryKind {
    pub const ALL: [EntryKind; 12] = [
        EntryKind::Timer,
        EntryKind::NetReceive,
        EntryKind::DiskDone,
        EntryKind::ConsoleInput,
        EntryKind::SerialInput,
        EntryKind::Control,
        EntryKind::GoLive,
        EntryKind::Mark,
        EntryKind::Progress,
        EntryKind::Hash,
        EntryKind::Pages,
        EntryKind::Stretch,
    ];

    /// The name in statistics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            EntryKind::Timer => "timer",
            EntryKind::NetReceive => "net_receive",
            EntryKind::DiskDone => "disk_done",
            EntryKind::ConsoleInput => "console_input",
            EntryKind::SerialInput => "serial_input",
            EntryKind::Control => "control",
            EntryKind::GoLive => "go_live",
            EntryKind::Mark => "mark",
            EntryKind::Progress => "progress",
            EntryKind::Hash => "hash",
            EntryKind::Pages => "pages",
            EntryKind::Stretch => "stretch",
        }
    }
}

/// The digest of an output's bytes that its mark carries: CRC-32C.
pub fn digest(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}
