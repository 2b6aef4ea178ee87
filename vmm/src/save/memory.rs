//! RAM to and from memory sections: one thread does the stream's reading or writing, the others
//! compress or decompress.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use vm_memory::{Bytes, GuestAddress};
use xxhash_rust::xxh3::xxh3_64;

use super::chunk::Chunk;
use super::section::{Kind, Reader, Writer};
use super::{LoadError, Progress};
use crate::memory::{FRAME, GuestRam, is_zero};

/// More compressing threads than this do not help one stream.
const MAX_WORKERS: usize = 8;

fn workers() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get().min(MAX_WORKERS))
}

/// A compressed chunk on its way to the stream.
struct Encoded {
    number: u64,
    /// The frame after its last one.
    end: u64,
    payload: io::Result<(Vec<u8>, u64)>,
}

/// Writes all frames that are not zero. The sections' order and content depend on RAM alone.
pub(super) fn write(
    writer: &mut Writer<'_>,
    ram: &GuestRam,
    progress: &mut dyn FnMut(Progress),
) -> io::Result<()> {
    let workers = workers();
    thread::scope(|scope| {
        let (chunks, to_encode) = bounded(workers);
        let (encoded, to_write) = bounded(workers);
        for _ in 0..workers {
            let (to_encode, encoded) = (to_encode.clone(), encoded.clone());
            scope.spawn(move || encode(&to_encode, &encoded));
        }
        drop((to_encode, encoded));
        scope.spawn(move || collect(ram, &chunks));
        // Dropping `to_write` on an error ends the other threads.
        write_in_order(writer, to_write, ram, progress)
    })
}

/// Collects RAM into numbered chunks until done or until nobody takes them.
fn collect(ram: &GuestRam, chunks: &Sender<(u64, Chunk)>) {
    let mut number = 0;
    let mut chunk = Chunk::default();
    let mut send = |chunk: &mut Chunk| {
        let result = chunks.send((number, std::mem::take(chunk)));
        number += 1;
        match result {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let flow = ram.for_touched(|frame, content| {
        if !is_zero(content) {
            chunk.push(frame, content);
        }
        if chunk.is_full() {
            send(&mut chunk)
        } else {
            ControlFlow::Continue(())
        }
    });
    if flow.is_continue() && !chunk.is_empty() {
        let _ = send(&mut chunk);
    }
}

fn encode(chunks: &Receiver<(u64, Chunk)>, encoded: &Sender<Encoded>) {
    for (number, chunk) in chunks {
        let payload = chunk.encode().map(|payload| {
            let sum = xxh3_64(&payload);
            (payload, sum)
        });
        let end = chunk.end();
        let done = Encoded {
            number,
            end,
            payload,
        };
        if encoded.send(done).is_err() {
            return;
        }
    }
}

fn write_in_order(
    writer: &mut Writer<'_>,
    encoded: Receiver<Encoded>,
    ram: &GuestRam,
    progress: &mut dyn FnMut(Progress),
) -> io::Result<()> {
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    for done in encoded {
        waiting.insert(done.number, done);
        while let Some(done) = waiting.remove(&next) {
            let (payload, sum) = done.payload?;
            writer.summed(Kind::Memory, &payload, sum)?;
            progress(at(ram, done.end));
            next += 1;
        }
    }
    progress(at(ram, u64::MAX));
    Ok(())
}

/// Reads memory sections up to the end section into RAM.
pub(super) fn read(
    reader: &mut Reader<'_>,
    ram: &GuestRam,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), LoadError> {
    let workers = workers();
    thread::scope(|scope| {
        let (payloads, to_decode) = bounded::<Vec<u8>>(workers);
        let handles: Vec<_> = (0..workers)
            .map(|_| {
                let to_decode = to_decode.clone();
                scope.spawn(move || decode(&to_decode, ram))
            })
            .collect();
        drop(to_decode);
        let read = read_sections(reader, payloads, ram, progress);
        let mut decoded = Ok(());
        for handle in handles {
            match handle.join() {
                Ok(result) => decoded = decoded.and(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        // What a worker found is the cause; the reader then only noticed that nobody listens.
        decoded.and(read)
    })
}

fn read_sections(
    reader: &mut Reader<'_>,
    payloads: Sender<Vec<u8>>,
    ram: &GuestRam,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), LoadError> {
    let mut next = 0;
    loop {
        let (kind, payload) = reader.next()?;
        match kind {
            Kind::Memory => {}
            Kind::End => break,
            Kind::About | Kind::State => {
                return Err(LoadError::Malformed(format!(
                    "it has a second {} section",
                    kind.name()
                )));
            }
        }
        let (first, end) = Chunk::extent(&payload)?;
        if first < next {
            return Err(LoadError::Malformed(
                "its memory sections are out of order".into(),
            ));
        }
        next = end;
        if payloads.send(payload).is_err() {
            // The workers end early only with an error of their own.
            return Ok(());
        }
        progress(at(ram, end));
    }
    progress(at(ram, u64::MAX));
    Ok(())
}

fn decode(payloads: &Receiver<Vec<u8>>, ram: &GuestRam) -> Result<(), LoadError> {
    for payload in payloads {
        for (addr, content) in Chunk::decode(&payload)?.runs() {
            ram.memory()
                .write_slice(content, GuestAddress(addr))
                .map_err(|_| {
                    LoadError::Malformed(format!("it has memory at {addr:#x}, where no RAM is"))
                })?;
        }
    }
    Ok(())
}

/// The progress when all frames below `frame` are done.
fn at(ram: &GuestRam, frame: u64) -> Progress {
    let done = ram
        .ranges()
        .map(|range| frame.saturating_mul(FRAME).clamp(range.start, range.end) - range.start)
        .sum();
    Progress {
        done,
        total: ram.size(),
    }
}
