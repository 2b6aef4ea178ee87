//! Entries as differences to the entry before.
//!
//! An entry is a tag byte and then the fields that the tag leaves open:
//!
//! ```text
//!   7   6   5   4   3   2   1   0
//! +---+---+---+---+---------------+
//! | N | X | C | R |     kind      |   R: RIP as before    C: RCX as before
//! +---+---+---+---+---------------+   X: has data (DiskDone) or a memory hash (Hash)
//!                                     N: ordinal is the next one (Mark)
//! ```
//!
//! then the count's difference (varint; counts never go back), RIP's and RCX's (zigzag varints,
//! unless R, C), for events the clock's difference (varint; it never goes back), and the fields of
//! the kind. Between the pages of a stretch and the entry that closes it nothing else may stand.

use super::error::{EncodeError, Problem};
use super::pages;
use super::varint::{Reader, put, put_data, unzigzag, zigzag};
use super::{DISK_BYTES_MAX, INPUT_BYTES_MAX, NET_BYTES_MAX};
use crate::codec::header::Header;
use crate::entry::{Control, Entry, EntryKind, Event, MarkKind};
use crate::position::Position;
use crate::stretch::CPU_BYTES_MAX;

const RIP_SAME: u8 = 0x10;
const RCX_SAME: u8 = 0x20;
const EXTRA: u8 = 0x40;
const NEXT_ORDINAL: u8 = 0x80;

/// What the next entry's differences are relative to. Both ends hold an equal one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deltas {
    at: Position,
    clock_ns: u64,
    next_ordinal: u64,
    /// Pages of a stretch stand here, and its closing entry has not come.
    in_stretch: bool,
}

impl Deltas {
    /// The base that a stream with this header starts from.
    pub fn new(header: &Header) -> Self {
        Self {
            at: header.start,
            clock_ns: header.start_clock_ns,
            next_ordinal: 0,
            in_stretch: false,
        }
    }

    /// Appends the entry's bytes to `out`. On an error nothing is written or changed.
    pub fn encode(&mut self, entry: &Entry, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        self.check(entry)?;
        let at = entry.at();
        let mut tag = entry.kind() as u8;
        if at.rip == self.at.rip {
            tag |= RIP_SAME;
        }
        if at.rcx == self.at.rcx {
            tag |= RCX_SAME;
        }
        tag |= match entry {
            Entry::Event {
                event: Event::DiskDone { data: Some(_), .. },
                ..
            }
            | Entry::Hash {
                memory: Some(_), ..
            } => EXTRA,
            Entry::Mark { ordinal, .. } if *ordinal == self.next_ordinal => NEXT_ORDINAL,
            _ => 0,
        };
        out.push(tag);
        put(out, at.count - self.at.count);
        if tag & RIP_SAME == 0 {
            put(out, zigzag(at.rip.wrapping_sub(self.at.rip)));
        }
        if tag & RCX_SAME == 0 {
            put(out, zigzag(at.rcx.wrapping_sub(self.at.rcx)));
        }
        self.at = at;
        self.in_stretch = matches!(entry, Entry::Pages { .. });
        self.encode_fields(entry, tag, out);
        Ok(())
    }

    fn check(&self, entry: &Entry) -> Result<(), EncodeError> {
        let count = entry.at().count;
        if count < self.at.count {
            return Err(EncodeError::PositionBack {
                count,
                last: self.at.count,
            });
        }
        if let Some((found, began)) = self.breaks_stretch(entry.kind(), count) {
            return Err(EncodeError::InStretch {
                found,
                count,
                began,
            });
        }
        if let Entry::Stretch { cpu, .. } = entry {
            return fits("a vCPU's state", cpu.len(), CPU_BYTES_MAX);
        }
        let Entry::Event {
            clock_ns, event, ..
        } = entry
        else {
            return Ok(());
        };
        if *clock_ns < self.clock_ns {
            return Err(EncodeError::ClockBack {
                clock_ns: *clock_ns,
                last_ns: self.clock_ns,
            });
        }
        let (what, len, max) = match event {
            Event::NetReceive(data) => ("network frame", data.len(), NET_BYTES_MAX),
            Event::ConsoleInput(data) => ("console input", data.len(), INPUT_BYTES_MAX),
            Event::SerialInput(data) => ("serial input", data.len(), INPUT_BYTES_MAX),
            Event::DiskDone {
                data: Some(data), ..
            } => ("disk data", data.len(), DISK_BYTES_MAX),
            _ => return Ok(()),
        };
        fits(what, len, max)
    }

    /// Whether an entry of this kind at this count may not stand here: what was found, and where the
    /// stretch began.
    fn breaks_stretch(&self, kind: EntryKind, count: u64) -> Option<(&'static str, u64)> {
        let began = self.at.count;
        let fits = match kind {
            EntryKind::Pages => count == began,
            EntryKind::Stretch => count == began.wrapping_add(1),
            _ => false,
        };
        (self.in_stretch && !fits).then_some((kind.name(), began))
    }

    fn encode_fields(&mut self, entry: &Entry, tag: u8, out: &mut Vec<u8>) {
        match entry {
            Entry::Event {
                clock_ns, event, ..
            } => {
                put(out, clock_ns - self.clock_ns);
                self.clock_ns = *clock_ns;
                encode_event(event, out);
            }
            Entry::Mark {
                ordinal,
                kind,
                digest,
                ..
            } => {
                out.push(mark_code(*kind));
                if tag & NEXT_ORDINAL == 0 {
                    put(out, *ordinal);
                }
                self.next_ordinal = ordinal.wrapping_add(1);
                out.extend_from_slice(&digest.to_le_bytes());
            }
            Entry::Progress { .. } => {}
            Entry::Hash {
                registers,
                memory,
                devices,
                ..
            } => {
                out.extend_from_slice(&registers.to_le_bytes());
                out.extend_from_slice(&devices.to_le_bytes());
                if let Some(memory) = memory {
                    out.extend_from_slice(&memory.to_le_bytes());
                }
            }
            Entry::Pages { pages, .. } => pages::encode(pages, out),
            Entry::Stretch {
                interrupts, cpu, ..
            } => {
                put(out, u64::from(*interrupts));
                put_data(out, cpu);
            }
        }
    }

    /// Reads one entry.
    pub(super) fn decode(&mut self, body: &mut Reader) -> Result<Entry, Problem> {
        let tag = body.u8("an entry's tag")?;
        let kind = kind_of(tag)?;
        let at = self.decode_position(tag, body)?;
        if let Some((found, began)) = self.breaks_stretch(kind, at.count) {
            let count = at.count;
            return Err(Problem::InStretch {
                found,
                count,
                began,
            });
        }
        self.at = at;
        self.in_stretch = matches!(kind, EntryKind::Pages);
        if matches!(kind, EntryKind::Mark) {
            return self.decode_mark(at, tag, body);
        }
        match kind {
            EntryKind::Progress => return Ok(Entry::Progress { at }),
            EntryKind::Pages => {
                let pages = pages::decode(body)?;
                return Ok(Entry::Pages { at, pages });
            }
            EntryKind::Stretch => return decode_stretch(at, body),
            EntryKind::Hash => {
                let registers = body.u64("a register hash")?;
                let devices = body.u64("a device hash")?;
                let memory = match tag & EXTRA {
                    0 => None,
                    _ => Some(body.u64("a memory hash")?),
                };
                return Ok(Entry::Hash {
                    at,
                    registers,
                    memory,
                    devices,
                });
            }
            _ => {}
        }
        let clock_ns = add(self.clock_ns, body.varint("a clock")?, "the clock")?;
        self.clock_ns = clock_ns;
        let event = decode_event(kind, tag, body)?;
        Ok(Entry::Event {
            at,
            clock_ns,
            event,
        })
    }

    fn decode_position(&self, tag: u8, body: &mut Reader) -> Result<Position, Problem> {
        let count = add(
            self.at.count,
            body.varint("a position's count")?,
            "the position",
        )?;
        let mut field = |same: u8, last: u64, what| match tag & same {
            0 => Ok(last.wrapping_add(unzigzag(body.varint(what)?))),
            _ => Ok(last),
        };
        let rip = field(RIP_SAME, self.at.rip, "a position's RIP")?;
        let rcx = field(RCX_SAME, self.at.rcx, "a position's RCX")?;
        Ok(Position { count, rip, rcx })
    }

    fn decode_mark(&mut self, at: Position, tag: u8, body: &mut Reader) -> Result<Entry, Problem> {
        let kind = match body.u8("a mark's kind")? {
            0 => MarkKind::Net,
            1 => MarkKind::DiskWrite,
            2 => MarkKind::Console,
            3 => MarkKind::Power,
            value => {
                return Err(Problem::Value {
                    what: "a mark's kind",
                    value: value.into(),
                });
            }
        };
        let ordinal = match tag & NEXT_ORDINAL {
            0 => body.varint("a mark's ordinal")?,
            _ => self.next_ordinal,
        };
        self.next_ordinal = ordinal.wrapping_add(1);
        let digest = body.u32("a mark's digest")?;
        Ok(Entry::Mark {
            at,
            ordinal,
            kind,
            digest,
        })
    }
}

fn decode_stretch(at: Position, body: &mut Reader) -> Result<Entry, Problem> {
    let interrupts = body.varint("a number of interrupts")?;
    Ok(Entry::Stretch {
        at,
        interrupts: u32::try_from(interrupts).map_err(|_| Problem::Value {
            what: "a number of interrupts",
            value: interrupts,
        })?,
        cpu: body.data("a vCPU's state", CPU_BYTES_MAX)?,
    })
}

fn fits(what: &'static str, len: usize, max: usize) -> Result<(), EncodeError> {
    if len > max {
        Err(EncodeError::TooLong { what, len, max })
    } else {
        Ok(())
    }
}

fn add(base: u64, difference: u64, what: &'static str) -> Result<u64, Problem> {
    base.checked_add(difference)
        .ok_or(Problem::RunsPast { what })
}

fn mark_code(kind: MarkKind) -> u8 {
    match kind {
        MarkKind::Net => 0,
        MarkKind::DiskWrite => 1,
        MarkKind::Console => 2,
        MarkKind::Power => 3,
    }
}

/// The kind of a tag, if its flags go with it.
fn kind_of(tag: u8) -> Result<EntryKind, Problem> {
    let bad = Problem::Value {
        what: "an entry's tag",
        value: tag.into(),
    };
    let Some(kind) = EntryKind::ALL
        .into_iter()
        .find(|kind| *kind as u8 == tag & 0x0f)
    else {
        return Err(bad);
    };
    let flags = match kind {
        EntryKind::DiskDone | EntryKind::Hash => EXTRA,
        EntryKind::Mark => NEXT_ORDINAL,
        _ => 0,
    };
    if tag & (EXTRA | NEXT_ORDINAL) & !flags != 0 {
        Err(bad)
    } else {
        Ok(kind)
    }
}

fn encode_event(event: &Event, out: &mut Vec<u8>) {
    match event {
        Event::Timer => {}
        Event::NetReceive(data) | Event::ConsoleInput(data) | Event::SerialInput(data) => {
            put_data(out, data);
        }
        Event::DiskDone { id, status, data } => {
            put(out, *id);
            out.push(*status);
            if let Some(data) = data {
                put_data(out, data);
            }
        }
        Event::Control(control) => out.push(match control {
            Control::PowerOff => 0,
            Control::Reset => 1,
        }),
        Event::GoLive { view } => put(out, *view),
    }
}

fn decode_event(kind: EntryKind, tag: u8, body: &mut Reader) -> Result<Event, Problem> {
    Ok(match kind {
        EntryKind::Timer => Event::Timer,
        EntryKind::NetReceive => Event::NetReceive(body.data("a network frame", NET_BYTES_MAX)?),
        EntryKind::ConsoleInput => {
            Event::ConsoleInput(body.data("console input", INPUT_BYTES_MAX)?)
        }
        EntryKind::SerialInput => Event::SerialInput(body.data("serial input", INPUT_BYTES_MAX)?),
        EntryKind::DiskDone => Event::DiskDone {
            id: body.varint("a disk request's id")?,
            status: body.u8("a disk request's status")?,
            data: match tag & EXTRA {
                0 => None,
                _ => Some(body.data("disk data", DISK_BYTES_MAX)?),
            },
        },
        EntryKind::Control => Event::Control(match body.u8("a control")? {
            0 => Control::PowerOff,
            1 => Control::Reset,
            value => {
                return Err(Problem::Value {
                    what: "a control",
                    value: value.into(),
                });
            }
        }),
        EntryKind::GoLive => Event::GoLive {
            view: body.varint("a view")?,
        },
        EntryKind::Mark
        | EntryKind::Progress
        | EntryKind::Hash
        | EntryKind::Pages
        | EntryKind::Stretch => {
            unreachable!("not events; decoded by the caller")
        }
    })
}
