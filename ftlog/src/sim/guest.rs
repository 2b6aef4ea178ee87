//! The toy guest: a deterministic machine whose whole state is a hash chain.
//!
//! It serves counters to clients: a new request is applied, written to the client's block of the
//! disk, and answered when the write is done. It also reads blocks and prints on the console when
//! its hash says so. Every instruction and every input goes into the hash, and the hash is the
//! RIP of its positions, so any difference between two runs shows at the next entry.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::rng::mix;
use crate::entry::Event;
use crate::position::Position;

/// Clients, and blocks of the disk: one each.
pub const CLIENTS: usize = 3;
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
