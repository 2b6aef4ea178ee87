//! A replica's driver in the simulator: what the VMM's driver does, around the real machine.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::Mutation;
use super::disk::{DiskReply, DiskRequest};
use super::guest::{DiskOp, Guest, Out};
use super::rng::Rng;
use super::world::{World, config};
use crate::claim::ClaimAnswer;
use crate::codec::{CountUnit, Header, Region};
use crate::entry::{Entry, digest};
use crate::hazards::ReadHazards;
use crate::ids::{ReplicaId, VmId};
use crate::replica::{Effect, HaltReason, Phase, Released, Replica};
use crate::stretch::PageBlock;
use crate::view::View;
use crate::{Backup, Primary};

/// What comes to a replica from outside. It waits while the replica is paused.
#[derive(Debug)]
pub enum Input {
    Opened {
        channel: u64,
    },
    Bytes {
        channel: u64,
        bytes: Bytes,
    },
    Closed {
        channel: u64,
    },
    Register(ClaimAnswer),
    Disk {
        run: u64,
        reply: DiskReply,
    },
    /// The disk server is there again after a crash.
    DiskReset {
        run: u64,
    },
    Frame(Bytes),
}

/// A disk request of the guest that is not completed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub op: DiskOp,
    /// It has been sent, by this replica.
    pub issued: bool,
}

pub struct Node {
    pub id: ReplicaId,
    pub replica: Replica<Out>,
    pub guest: Guest,
    pub crashed: bool,
    pub halted: Option<HaltReason>,
    pub paused_until: u64,
    pub inbox: VecDeque<Input>,
    pub channel: Option<u64>,
    /// Instructions in a slice.
    pub steps: u64,
    /// The latest question to the register that has arrived there.
    pub ask: u64,
    /// The run of the disk server that it is connected to.
    pub(super) disk_run: u64,
    /// The host's clock is this far ahead.
    pub(super) skew_ns: u64,
    pub(super) started: bool,
    pub(super) frames: VecDeque<Bytes>,
    pub(super) completions: VecDeque<(u64, DiskOp, u64)>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) hazards: ReadHazards,
    /// A read that the backup executes itself, and what came of it.
    pub(super) own_read: Option<(u64, Option<u64>)>,
    /// What is left to append of a stretch that is being closed.
    pub(super) closing: VecDeque<Entry>,
    /// Pages of a stretch whose closing entry has not been replayed.
    pub(super) aside: Vec<PageBlock>,
    /// Entries appended; the log's numbers, for the check of the Output Rule.
    pub(super) appended: u64,
    /// The mark's number of each output, by ordinal.
    pub(super) marks: BTreeMap<u64, u64>,
    /// The most entries that this replica, as a backup, has had.
    pub(super) received_max: u64,
}

impl Node {
    pub const STEPS: u64 = 10;

    pub fn new(index: usize, view: View, rng: &mut Rng) -> Self {
        let header = Header {
            vm: VmId([1; 16]),
            view: view.number,
            build: "0.1.0+5eed".into(),
            engine: "toy".into(),
            counts: CountUnit::Instructions,
            cpuid: 1,
            memory: vec![Region { base: 0, len: 4096 }],
            board: 1,
            host_math: 0,
            initial_state: 1,
            start: Guest::default().position(),
            start_clock_ns: 0,
        };
        let skew_ns = rng.range(0, 1_000_000_000);
        let id = ReplicaId(index as u64 + 1);
        let replica = match index {
            0 => Replica::Primary(Box::new(Primary::new(config(), id, view, header, skew_ns))),
            _ => Replica::Backup(Box::new(Backup::new(config(), id, view, header, skew_ns))),
        };
        Self {
            id,
            replica,
            guest: Guest::default(),
            crashed: false,
            halted: None,
            paused_until: 0,
            inbox: VecDeque::new(),
            channel: None,
            steps: Self::STEPS,
            ask: 0,
            disk_run: 0,
            skew_ns,
            started: false,
            frames: VecDeque::new(),
            completions: VecDeque::new(),
            pending: BTreeMap::new(),
            hazards: ReadHazards::new(),
            own_read: None,
            closing: VecDeque::new(),
            aside: Vec::new(),
            appended: 0,
            marks: BTreeMap::new(),
            received_max: 0,
        }
    }

    /// Neither crashed nor halted.
    pub fn runs(&self) -> bool {
        !self.crashed && self.halted.is_none()
    }

    /// Recording, as far as it knows.
    pub fn is_live(&self) -> bool {
        self.runs() && matches!(self.replica.phase(), Phase::Protected | Phase::Alone)
    }
}

impl World {
    pub(super) fn local(&self, n: usize) -> u64 {
        self.now + self.nodes[n].skew_ns
    }

    /// One turn of the driver's threads. After a pause it is open which of them comes first.
    pub(super) fn slice(&mut self, n: usize) -> Result<(), String> {
        if self.rng.chance(500) {
            self.read_inbox(n)?;
        }
        let now = self.local(n);
        self.nodes[n].replica.tick(now);
        self.effects(n)?;
        self.read_inbox(n)?;
        if !self.nodes[n].runs() {
            return Ok(());
        }
        match self.nodes[n].replica {
            Replica::Primary(_) => self.record(n)?,
            Replica::Backup(_) => self.replay(n)?,
        }
        self.effects(n)
    }

    pub(super) fn read_inbox(&mut self, n: usize) -> Result<(), String> {
        while let Some(input) = self.nodes[n].inbox.pop_front() {
            self.input(n, input);
            self.effects(n)?;
        }
        Ok(())
    }

    fn input(&mut self, n: usize, input: Input) {
        let now = self.local(n);
        let same_run = |run| run == self.server.run;
        match input {
            Input::Opened { channel } => {
                self.nodes[n].channel = Some(channel);
                self.nodes[n].replica.connected(now);
            }
            Input::Bytes { channel, bytes } => {
                if self.nodes[n].channel == Some(channel) && self.is_channel(channel) {
                    self.nodes[n].replica.received(now, &bytes);
                }
            }
            Input::Closed { channel } => {
                if self.nodes[n].channel == Some(channel) {
                    self.nodes[n].channel = None;
                    self.nodes[n].replica.closed(now);
                }
            }
            Input::Register(answer) => self.register_answered(n, answer),
            Input::Disk { run, reply } if same_run(run) => self.disk_replied(n, reply),
            Input::Disk { .. } => {}
            // Once for each run of the server: two copies of a write on living connections could
            // land on both sides of a newer one.
            Input::DiskReset { run } if same_run(run) => {
                self.nodes[n].disk_run = run;
                self.reissue(n);
            }
            Input::DiskReset { .. } => {}
            Input::Frame(bytes) => {
                if self.nodes[n].is_live() {
                    self.nodes[n].frames.push_back(bytes);
                }
            }
        }
        if let Some(backup) = self.nodes[n].replica.backup() {
            let received = backup.progress().received;
            self.nodes[n].received_max = self.nodes[n].received_max.max(received);
        }
    }

    fn register_answered(&mut self, n: usize, answer: ClaimAnswer) {
        let view = self.nodes[n].replica.view();
        let alone = |id| {
            view.alone(id)
                .map_or(ClaimAnswer::Unknown, ClaimAnswer::Won)
        };
        let answer = match (answer, self.options.mutation) {
            (ClaimAnswer::Unknown, Mutation::TimeoutIsWin) => alone(self.nodes[n].id),
            (ClaimAnswer::Unknown, Mutation::TimeoutIsLoss) => ClaimAnswer::Lost(view),
            (ClaimAnswer::Lost(_), Mutation::LoserLives) => alone(self.nodes[n].id),
            (answer, _) => answer,
        };
        let now = self.local(n);
        self.nodes[n].replica.register_answered(now, answer);
    }

    // Effects.

    pub(super) fn effects(&mut self, n: usize) -> Result<(), String> {
        while let Some(effect) = self.nodes[n].replica.next_effect() {
            if self.nodes[n].halted.is_some() {
                return Err(format!(
                    "{effect:?} from the halted replica {}",
                    self.nodes[n].id
                ));
            }
            match effect {
                Effect::Send(bytes) => self.send(n, bytes),
                Effect::CloseChannel => self.close_channel(n),
                Effect::Claim(request) => self.ask(n, request),
                Effect::Release(released) => self.release(n, released)?,
                Effect::Start => self.nodes[n].started = true,
                Effect::Suspected(suspicion) => {
                    self.trace(format!("replica {} suspects: {suspicion}", n + 1));
                }
                Effect::Claimed(view) => {
                    self.trace(format!("replica {} won {view}", n + 1));
                    self.reissue_own_read(n);
                }
                Effect::Live(view) => self.live(n, view)?,
                Effect::Halt(reason) => self.halt(n, reason)?,
            }
        }
        Ok(())
    }

    fn live(&mut self, n: usize, view: View) -> Result<(), String> {
        self.trace(format!("replica {} is live in {view}", n + 1));
        let id = self.nodes[n].id;
        if let Some(other) = self.live.insert(view.number, id)
            && other != id
        {
            return Err(format!(
                "replicas {other} and {id} are both live in view {}",
                view.number
            ));
        }
        if !self.options.consequences_only && self.server.stored.view != view {
            let stored = self.server.stored.view;
            return Err(format!(
                "replica {id} is live in {view}, the register has {stored}"
            ));
        }
        self.clients.check_history(&self.nodes[n].guest.history)?;
        self.clients.check_disk(&self.server.blocks)?;
        match n {
            0 => self.report.alone += 1,
            _ => self.report.failovers += 1,
        }
        if !std::mem::take(&mut self.nodes[n].aside).is_empty() {
            // The stretch has not happened; the guest goes on from before it.
            self.report.unfinished += 1;
        }
        self.nodes[n].hazards.no_backup();
        self.nodes[n].own_read = None;
        self.announce(n, view.number);
        if self.options.mutation != Mutation::NoReissue {
            let pending = &mut self.nodes[n].pending;
            if n == 1 {
                pending
                    .values_mut()
                    .for_each(|request| request.issued = true);
            }
            self.reissue(n);
        }
        Ok(())
    }

    fn halt(&mut self, n: usize, reason: HaltReason) -> Result<(), String> {
        self.trace(format!("replica {} halts: {reason}", n + 1));
        match &reason {
            HaltReason::Lost { .. } => self.report.lost += 1,
            HaltReason::Diverged(divergence) => return Err(format!("divergence: {divergence}")),
            HaltReason::Mismatch(_) | HaltReason::TurnedAway(_) => {
                return Err(format!("replica {} halted: {reason}", n + 1));
            }
            HaltReason::Refused { .. } | HaltReason::PoweredOff => {}
        }
        self.nodes[n].halted = Some(reason);
        Ok(())
    }

    fn release(&mut self, n: usize, released: Released<Out>) -> Result<(), String> {
        if self.options.mutation == Mutation::ReleaseAtOnce && n == 0 {
            return Ok(()); // it has left already
        }
        let ordinal = released.ordinal;
        self.emit(n, ordinal, released.output)?;
        self.nodes[n].replica.left(ordinal + 1);
        Ok(())
    }

    /// An output leaves its replica.
    pub(super) fn emit(&mut self, n: usize, ordinal: u64, out: Out) -> Result<(), String> {
        let (node, peer) = (&self.nodes[n], &self.nodes[1 - n]);
        let stored = self.server.stored.view;
        let alone = stored.primary == node.id && stored.backup.is_none();
        let acked = node
            .marks
            .get(&ordinal)
            .is_some_and(|seq| peer.received_max > *seq);
        if !alone && !acked && !self.options.consequences_only {
            return Err(format!(
                "output {ordinal} left replica {} before its ack",
                node.id
            ));
        }
        let bytes = digest(&out.bytes());
        if *self.emitted.entry(ordinal).or_insert(bytes) != bytes {
            return Err(format!(
                "output {ordinal} left twice, the second time {out:?}"
            ));
        }
        match out {
            Out::Reply(reply) => self.reply(reply),
            Out::Console(_) => {}
            Out::Disk { id, .. } => {
                if let Some(pending) = self.nodes[n].pending.get_mut(&id) {
                    pending.issued = true;
                    self.issue(n, id);
                }
            }
        }
        Ok(())
    }

    // The disk.

    pub(super) fn issue(&mut self, n: usize, id: u64) {
        let node = &self.nodes[n];
        if node.disk_run != self.server.run {
            return; // not connected; sent when it is
        }
        let Some(pending) = node.pending.get(&id) else {
            return;
        };
        let view = node.replica.view().number;
        self.disk(DiskRequest {
            node: n,
            replica: node.id,
            view,
            id,
            op: pending.op,
        });
    }

    /// Sends again what was sent and is not completed.
    fn reissue(&mut self, n: usize) {
        let issued = self.nodes[n]
            .pending
            .iter()
            .filter(|(_, pending)| pending.issued);
        let ids: Vec<u64> = issued.map(|(id, _)| *id).collect();
        for id in ids {
            self.issue(n, id);
        }
        self.reissue_own_read(n);
    }

    fn reissue_own_read(&mut self, n: usize) {
        if let Some((id, None)) = self.nodes[n].own_read {
            self.issue(n, id);
        }
    }

    fn disk_replied(&mut self, n: usize, reply: DiskReply) {
        let now = self.local(n);
        let takes_stale = self.options.mutation == Mutation::StaleCompletions;
        let node = &mut self.nodes[n];
        match reply {
            DiskReply::Fenced { view, .. } => {
                if view == node.replica.view().number {
                    node.replica.fenced(now);
                }
            }
            // A completion from the connection of an older view is not taken: the request was sent
            // again, and a newer write of the guest could overtake that copy.
            DiskReply::Done { view, .. } if view != node.replica.view().number && !takes_stale => {}
            DiskReply::Done { id, op, value, .. } => match &mut node.own_read {
                Some((own, result)) if *own == id => *result = Some(value),
                _ if node.replica.primary().is_some() => {
                    let awaited = node.pending.remove(&id).is_some();
                    if awaited || takes_stale {
                        node.completions.push_back((id, op, value));
                    }
                }
                _ => {}
            },
        }
    }
}
