//! The toy guest: a deterministic machine whose whole state is a hash chain.
//!
//! It serves counters to clients: a new request is applied, written to the client's block of the
//! disk, and answered when the write is done. It also reads blocks and prints on the console when
//! its hash says so. Every instruction and every input goes into the hash, and the hash is the
//! RIP of its positions, so any difference between two runs shows at the next entry.
//!
//! With an engine whose positions are exits it now and then computes without one: its memory and its
//! registers change in a way that nobody else can repeat. Memory and registers belong together, and
//! the guest notices if they do not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::rng::{Rng, mix};
use crate::entry::Event;
use crate::position::Position;
use crate::stretch::{PAGE_BYTES, PageBlock};

/// Clients, and blocks of the disk: one each.
pub const CLIENTS: usize = 3;
/// Pages of memory that a stretch writes.
const PAGES: usize = 4;
/// Bytes of a page that differ from stretch to stretch: so many that a block of pages is worth a
/// frame of the log.
const PAGE_NOISE_BYTES: usize = 300;
/// What one instruction adds to the clock.
const NS_PER_INSTRUCTION: u64 = 1000;

/// A disk request. One value is a block's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOp {
    Read { block: usize },
    Write { block: usize, value: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    Reply(Reply),
    Disk { id: u64, op: DiskOp },
    Console(u64),
}

/// An answer to a client: request `number` of `client` was the `order`-th of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub client: usize,
    pub number: u64,
    pub order: u64,
    pub hash: u64,
}

impl Out {
    /// What the output's digest is over.
    pub fn bytes(&self) -> Vec<u8> {
        format!("{self:?}").into_bytes()
    }
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    reply: Reply,
    done: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Guest {
    count: u64,
    hash: u64,
    clock_ns: u64,
    clock_at: u64,
    next_disk_id: u64,
    /// Disk requests without a completion.
    pending: BTreeSet<u64>,
    /// Inputs that the next instructions take up.
    inputs: VecDeque<Event>,
    last: [Option<Waiting>; CLIENTS],
    writes: BTreeMap<u64, usize>,
    /// What the last stretch left in a register, and in each page.
    register: u64,
    memory: [u64; PAGES],
    /// (client, number) of every applied request, in order.
    pub history: Vec<(usize, u64)>,
}

pub fn encode_request(client: usize, number: u64) -> Bytes {
    let mut bytes = vec![client as u8];
    bytes.extend(number.to_le_bytes());
    bytes.into()
}

fn decode_request(bytes: &[u8]) -> Option<(usize, u64)> {
    let (&client, number) = bytes.split_first()?;
    let number = u64::from_le_bytes(number.try_into().ok()?);
    (usize::from(client) < CLIENTS).then_some((client.into(), number))
}

/// A page that begins with the number and is different for each in many places.
fn page(noise: u64) -> Vec<u8> {
    let words = std::iter::successors(Some(noise), |word| Some(mix(*word)));
    let mut page: Vec<u8> = words
        .flat_map(u64::to_le_bytes)
        .take(PAGE_NOISE_BYTES)
        .collect();
    page.resize(PAGE_BYTES, 0);
    page
}

fn word(bytes: &[u8], index: usize) -> u64 {
    let bytes = bytes.get(index * 8..index * 8 + 8).unwrap_or(&[0; 8]);
    u64::from_le_bytes(bytes.try_into().unwrap_or_default())
}

impl Guest {
    pub fn position(&self) -> Position {
        Position {
            count: self.count,
            rip: self.hash,
            rcx: self.inputs.len() as u64,
        }
    }

    /// What the guest's clock reads now.
    pub fn clock_ns(&self) -> u64 {
        self.clock_ns + (self.count - self.clock_at) * NS_PER_INSTRUCTION
    }

    /// Whether the disk request has no completion yet: a guest's driver takes one and no more.
    pub fn awaits(&self, id: u64) -> bool {
        self.pending.contains(&id)
    }

    /// An asynchronous event takes effect here.
    pub fn apply(&mut self, clock_ns: u64, event: Event) {
        assert!(clock_ns >= self.clock_ns(), "the guest's clock ran back");
        (self.clock_ns, self.clock_at) = (clock_ns, self.count);
        self.absorb(clock_ns);
        if let Event::DiskDone { id, .. } = &event {
            self.pending.remove(id);
        }
        self.inputs.push_back(event);
    }

    /// Executes one instruction.
    pub fn step(&mut self) -> Vec<Out> {
        self.count += 1;
        self.absorb(self.count);
        let mut outs = Vec::new();
        match self.inputs.pop_front() {
            Some(Event::NetReceive(bytes)) => self.request(&bytes, &mut outs),
            Some(Event::DiskDone { id, data, .. }) => self.disk_done(id, data, &mut outs),
            _ => {}
        }
        if self.hash.is_multiple_of(61) {
            let block = (self.hash >> 32) as usize % CLIENTS;
            outs.push(self.disk(DiskOp::Read { block }));
        }
        if self.hash % 97 == 1 {
            outs.push(Out::Console(self.hash ^ self.clock_ns()));
        }
        outs
    }

    /// Computes without an exit until something stops the vCPU, somewhere; then stands at the
    /// position behind. Gives what a backup needs to follow: the pages and the vCPU's state.
    pub fn stretch(&mut self, rng: &mut Rng) -> (Vec<PageBlock>, Bytes) {
        let noise = rng.u64();
        self.absorb(noise);
        self.count += 1;
        self.register = noise;
        self.memory = [noise; PAGES];
        let block = |frame| PageBlock::pack(&[frame], &page(noise));
        let cpu = [self.hash, noise].map(u64::to_le_bytes).concat();
        ((0..PAGES as u64).map(block).collect(), cpu.into())
    }

    /// Where the guest stands when it has taken over this state of the vCPU.
    pub fn position_after(&self, cpu: &[u8]) -> Position {
        Position {
            count: self.count + 1,
            rip: word(cpu, 0),
            rcx: self.inputs.len() as u64,
        }
    }

    /// Takes over the state of a vCPU at the end of a stretch.
    pub fn jump(&mut self, cpu: &[u8]) {
        self.count += 1;
        self.hash = word(cpu, 0);
        self.register = word(cpu, 1);
    }

    /// Takes over pages of memory.
    pub fn write_pages(&mut self, pages: &PageBlock) {
        let content = pages.unpack().unwrap_or_default();
        for (frame, page) in pages.frames().zip(content.chunks_exact(PAGE_BYTES)) {
            if let Some(memory) = self.memory.get_mut(frame as usize) {
                *memory = word(page, 0);
            }
        }
    }

    /// Whether memory and registers are from different moments: a real guest would crash.
    pub fn is_torn(&self) -> bool {
        self.memory.iter().any(|page| *page != self.register)
    }

    fn absorb(&mut self, value: u64) {
        self.hash = mix(self.hash.wrapping_mul(31).wrapping_add(value));
    }

    fn disk(&mut self, op: DiskOp) -> Out {
        let id = self.next_disk_id;
        self.next_disk_id += 1;
        self.pending.insert(id);
        Out::Disk { id, op }
    }

    fn request(&mut self, bytes: &[u8], outs: &mut Vec<Out>) {
        let Some((client, number)) = decode_request(bytes) else {
            return;
        };
        let done = self.last[client].map_or(0, |last| last.reply.number);
        if number == done + 1 {
            self.absorb(client as u64 ^ number << 8);
            let reply = Reply {
                client,
                number,
                order: self.history.len() as u64,
                hash: self.hash,
            };
            self.history.push((client, number));
            self.last[client] = Some(Waiting { reply, done: false });
            let out = self.disk(DiskOp::Write {
                block: client,
                value: number,
            });
            let Out::Disk { id, .. } = out else {
                unreachable!()
            };
            self.writes.insert(id, client);
            outs.push(out);
        } else if let Some(Waiting { reply, done: true }) = self.last[client]
            && reply.number == number
        {
            outs.push(Out::Reply(reply)); // the client has not heard it
        }
    }

    fn disk_done(&mut self, id: u64, data: Option<Bytes>, outs: &mut Vec<Out>) {
        for byte in data.iter().flatten() {
            self.absorb(u64::from(*byte));
        }
        if let Some(client) = self.writes.remove(&id)
            && let Some(waiting) = &mut self.last[client]
        {
            waiting.done = true;
            outs.push(Out::Reply(waiting.reply));
        }
    }
}
