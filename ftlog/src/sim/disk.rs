//! The simulated disk server: blocks, the real view register, crashes.
//!
//! Blocks and the register's record are all that survives a crash. A request or a record that was
//! being written when it crashed may or may not have reached the disk.

use super::guest::{CLIENTS, DiskOp};
use super::rng::Rng;
use crate::ids::ReplicaId;
use crate::register::{Access, Answer, Effect, Record, Request, ViewRegister};

/// A disk request on its way or under way.
#[derive(Clone, Copy, Debug)]
pub struct DiskRequest {
    pub node: usize,
    pub replica: ReplicaId,
    pub view: u64,
    pub id: u64,
    pub op: DiskOp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskReply {
    /// Done, on the connection of this view.
    Done {
        id: u64,
        view: u64,
        op: DiskOp,
        value: u64,
    },
    /// The view of the connection is over.
    Fenced { id: u64, view: u64 },
}

/// What the world has to do for the server.
#[derive(Debug)]
pub enum Act {
    /// Call [`DiskServer::persisted`] later, unless it crashes before.
    Persist,
    Answer {
        node: usize,
        answer: Answer,
    },
}

#[derive(Debug)]
pub struct DiskServer {
    pub up: bool,
    /// Grows with every crash; what belongs to an older run is void.
    pub run: u64,
    pub blocks: [u64; CLIENTS],
    pub stored: Record,
    register: ViewRegister<usize>,
    persisting: Option<Record>,
    fencing_below: Option<u64>,
    executing: Vec<DiskRequest>,
    /// Mutations, see [`super::Mutation`].
    pub no_fencing: bool,
    pub no_persist: bool,
}

impl DiskServer {
    pub fn new(record: Record) -> Self {
        Self {
            up: true,
            run: 0,
            blocks: [0; CLIENTS],
            stored: record,
            register: ViewRegister::new(Some(record)),
            persisting: None,
            fencing_below: None,
            executing: Vec::new(),
            no_fencing: false,
            no_persist: false,
        }
    }

    pub fn crash(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.up = false;
        self.run += 1;
        if let Some(record) = self.persisting.take()
            && rng.chance(500)
        {
            self.store(record)?;
        }
        for request in std::mem::take(&mut self.executing) {
            if rng.chance(500) {
                self.write(&request)?;
            }
        }
        self.fencing_below = None;
        Ok(())
    }

    pub fn restart(&mut self) {
        self.up = true;
        self.register = ViewRegister::new(Some(self.stored));
    }

    pub fn claim(&mut self, node: usize, from_view: u64, claimant: ReplicaId) -> Vec<Act> {
        self.register.request(
            node,
            Request::Claim {
                from_view,
                claimant,
            },
        );
        self.acts()
    }

    /// The write of the record has ended; `failed` if it could not be stored.
    pub fn persisted(&mut self, failed: bool) -> Result<Vec<Act>, String> {
        if let Some(record) = self.persisting.take() {
            if failed {
                self.register.persisted(Err("disk full".into()));
                return Ok(self.acts());
            }
            if !self.no_persist {
                self.store(record)?;
            }
            self.register.persisted(Ok(()));
        }
        Ok(self.acts())
    }

    /// A request has arrived. `true`: it is being executed, call [`DiskServer::executed`] later.
    pub fn arrived(&mut self, request: DiskRequest) -> bool {
        let access = self.register.access(request.view, request.replica);
        let may = match request.op {
            DiskOp::Read { .. } => access != Access::Refused,
            DiskOp::Write { .. } => access == Access::ReadWrite,
        };
        if may || self.no_fencing {
            self.executing.push(request);
        }
        may || self.no_fencing
    }

    pub fn executed(&mut self, request: DiskRequest) -> Result<(DiskReply, Vec<Act>), String> {
        self.executing
            .retain(|other| (other.node, other.id) != (request.node, request.id));
        self.write(&request)?;
        let block = match request.op {
            DiskOp::Read { block } | DiskOp::Write { block, .. } => block,
        };
        let reply = DiskReply::Done {
            id: request.id,
            view: request.view,
            op: request.op,
            value: self.blocks[block],
        };
        Ok((reply, self.acts()))
    }

    fn write(&mut self, request: &DiskRequest) -> Result<(), String> {
        let DiskOp::Write { block, value } = request.op else {
            return Ok(());
        };
        if value < self.blocks[block] {
            return Err(format!(
                "replica {} of view {} wrote {value} over the newer {} in block {block}",
                request.replica, request.view, self.blocks[block]
            ));
        }
        self.blocks[block] = value;
        Ok(())
    }

    fn store(&mut self, record: Record) -> Result<(), String> {
        if record.view.number < self.stored.view.number {
            return Err(format!(
                "the register went back from {} to {}",
                self.stored.view, record.view
            ));
        }
        self.stored = record;
        Ok(())
    }

    /// Carries out the register's effects; those that take time go to the world.
    fn acts(&mut self) -> Vec<Act> {
        let mut acts = Vec::new();
        loop {
            if let Some(below) = self.fencing_below
                && (self.no_fencing || self.executing.iter().all(|request| request.view >= below))
            {
                self.fencing_below = None;
                self.register.fenced();
            }
            match self.register.next_effect() {
                Some(Effect::Persist(record)) => {
                    self.persisting = Some(record);
                    acts.push(Act::Persist);
                }
                Some(Effect::Fence { below }) => self.fencing_below = Some(below),
                Some(Effect::Answer { to, answer }) => acts.push(Act::Answer { node: to, answer }),
                None => return acts,
            }
        }
    }
}
