//! How a replay is compared with the log, and what a difference is called.

use thiserror::Error;

use crate::entry::{Entry, EntryKind, MarkKind, digest};
use crate::position::Position;

/// The replay is not the primary's run. Never ignored: the backup is of no use any more.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Divergence {
    #[error("entry {seq} ({entry}) was recorded at {recorded}, the replay is at {replayed}", entry = .kind.name())]
    Position {
        seq: u64,
        kind: EntryKind,
        recorded: Position,
        replayed: Position,
    },
    #[error("the primary made output {ordinal} at {at} (entry {seq}), the replay made none")]
    MissingOutput {
        seq: u64,
        ordinal: u64,
        at: Position,
    },
    #[error("the replay made an output at {at} that the primary did not make; entry {seq} is {entry}", entry = .next.map_or("not there", EntryKind::name))]
    UnexpectedOutput {
        seq: u64,
        at: Position,
        next: Option<EntryKind>,
    },
    #[error(
        "output {ordinal} at {at} (entry {seq}) differs in its {what}: recorded {recorded}, replayed {replayed}"
    )]
    Output {
        seq: u64,
        ordinal: u64,
        at: Position,
        what: &'static str,
        recorded: String,
        replayed: String,
    },
    #[error(
        "the {what} differ at {at} (entry {seq}): recorded {recorded:#018x}, replayed {replayed:#018x}"
    )]
    State {
        seq: u64,
        at: Position,
        what: &'static str,
        recorded: u64,
        replayed: u64,
    },
    #[error("the driver found a difference at {at}: {what}")]
    Other { at: Position, what: String },
}

/// An output as the replay made it.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    pub at: Position,
    pub ordinal: u64,
    pub kind: MarkKind,
    pub bytes: &'a [u8],
}

/// Compares an output of the replay with the next entry, which must be its mark.
pub fn check_output(seq: u64, next: Option<&Entry>, made: Made<'_>) -> Result<(), Divergence> {
    let Some(Entry::Mark {
        at,
        ordinal,
        kind,
        digest: recorded,
    }) = next
    else {
        let next = next.map(Entry::kind);
        return Err(Divergence::UnexpectedOutput {
            seq,
            at: made.at,
            next,
        });
    };
    if *at != made.at {
        let kind = EntryKind::Mark;
        return Err(Divergence::Position {
            seq,
            kind,
            recorded: *at,
            replayed: made.at,
        });
    }
    let differ = |what, recorded, replayed| {
        let (ordinal, at) = (*ordinal, *at);
        Err(Divergence::Output {
            seq,
            ordinal,
            at,
            what,
            recorded,
            replayed,
        })
    };
    let replayed = digest(made.bytes);
    if *ordinal != made.ordinal {
        return differ("number", ordinal.to_string(), made.ordinal.to_string());
    }
    if *kind != made.kind {
        return differ("kind", format!("{kind:?}"), format!("{:?}", made.kind));
    }
    if *recorded != replayed {
        return differ(
            "bytes",
            format!("{recorded:#010x}"),
            format!("{replayed:#010x}"),
        );
    }
    Ok(())
}

/// Compares where the replay has arrived with the next entry, which is not an output's mark.
///
/// Of [`Entry::Pages`] only the count is compared, of [`Entry::Stretch`] the position that its state
/// of the vCPU stands at.
pub fn check_arrival(seq: u64, entry: &Entry, at: Position) -> Result<(), Divergence> {
    let agrees = match entry {
        Entry::Pages { at: recorded, .. } => recorded.count == at.count,
        entry => entry.at() == at,
    };
    if !agrees {
        let (kind, recorded) = (entry.kind(), entry.at());
        return Err(Divergence::Position {
            seq,
            kind,
            recorded,
            replayed: at,
        });
    }
    match entry {
        Entry::Mark { ordinal, .. } => Err(Divergence::MissingOutput {
            seq,
            ordinal: *ordinal,
            at,
        }),
        _ => Ok(()),
    }
}

/// State hashes of the replay. `memory` only if the entry has one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hashes {
    pub registers: u64,
    pub devices: u64,
    pub memory: Option<u64>,
}

/// Compares state hashes with those of a [`Entry::Hash`]; any other entry has none to compare.
pub fn check_hashes(seq: u64, entry: &Entry, replayed: Hashes) -> Result<(), Divergence> {
    let Entry::Hash {
        at,
        registers,
        memory,
        devices,
    } = entry
    else {
        return Ok(());
    };
    let mut pairs = vec![
        ("registers", *registers, replayed.registers),
        ("devices", *devices, replayed.devices),
    ];
    if let (Some(recorded), Some(replayed)) = (memory, replayed.memory) {
        pairs.push(("memory contents", *recorded, replayed));
    }
    match pairs
        .into_iter()
        .find(|(_, recorded, replayed)| recorded != replayed)
    {
        Some((what, recorded, replayed)) => Err(Divergence::State {
            seq,
            at: *at,
            what,
            recorded,
            replayed,
        }),
        None => Ok(()),
    }
}
