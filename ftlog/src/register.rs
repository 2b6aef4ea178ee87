//! The view register's state machine: one virtual machine's record, as the disk server keeps it.
//!
//! Everything that decides who is live happens here, one change at a time:
//!
//! ```text
//! request -> Persist(record) -> persisted -> Fence(below) -> fenced -> Answer
//! ```
//!
//! A record is on stable storage before older views are fenced, and they are fenced before anyone
//! is told. Requests that come meanwhile wait; a request that changes nothing is answered from the
//! record. Whoever asks the same again gets the same answer, so a lost answer does no harm; a
//! crash anywhere in between leaves either the old record, with nobody told, or the new one, with
//! every connection of older views gone with the process.
//!
//! One `ViewRegister` serves one virtual machine; the server keeps one for each name.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::ids::ReplicaId;
use crate::view::View;

/// What is kept on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub view: View,
    /// Whether the view was made by a claim, and not by a start.
    pub claimed: bool,
    /// Whether the machine is on. When it is off nobody may touch its disks under any view.
    pub on: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Get,
    /// Starts the machine with this pair. Refused while it has a record that says it is on, unless
    /// `reset`: then whatever still runs is fenced. The view's number is the next one, or 1.
    Start {
        primary: ReplicaId,
        backup: Option<ReplicaId>,
        reset: bool,
    },
    /// The test-and-set: from `from_view` to the next one with `claimant` alone.
    Claim {
        from_view: u64,
        claimant: ReplicaId,
    },
    /// The machine is off. `view` must be the current one.
    Off {
        view: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To all but a claim: the record as it is now.
    Record(Option<Record>),
    /// To a claim: the claimant is alone in this view.
    Won(View),
    /// To a claim: the current view is another's.
    Lost(View),
    /// Nothing has changed, and asking again will not help, for this reason.
    Refused(String),
    /// Nothing was decided: the record could not be stored, for this reason. Ask again; a claimant
    /// takes it as no answer at all.
    Unavailable(String),
}

/// What the server has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<K> {
    /// Put the record on stable storage, then call [`ViewRegister::persisted`].
    Persist(Record),
    /// Refuse all disk requests of views below this from now on, wait until those under way have
    /// ended, then call [`ViewRegister::fenced`].
    Fence { below: u64 },
    /// Answer the request that came with `to`.
    Answer { to: K, answer: Answer },
}

/// What a disk connection of a view may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    ReadOnly,
    Refused,
}

#[derive(Debug)]
pub struct ViewRegister<K> {
    record: Option<Record>,
    change: Option<Change<K>>,
    waiting: VecDeque<(K, Request)>,
    effects: VecDeque<Effect<K>>,
}

/// A change under way.
#[derive(Debug)]
struct Change<K> {
    record: Record,
    /// Views below this are fenced by the change.
    fence_below: u64,
    persisted: bool,
    to: K,
    answer: Answer,
}

impl<K> ViewRegister<K> {
    /// From what stable storage holds, if anything.
    pub fn new(record: Option<Record>) -> Self {
        Self {
            record,
            change: None,
            waiting: VecDeque::new(),
            effects: VecDeque::new(),
        }
    }

    /// What is decided: on stable storage, if not yet told to anyone.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// What a connection under `view` by `replica` may do to the machine's disks now. Ask at every
    /// request, not only at the start of a connection.
    pub fn access(&self, view: u64, replica: ReplicaId) -> Access {
        match &self.record {
            Some(Record {
                view: now,
                on: true,
                ..
            }) if now.number == view => {
                if now.primary == replica {
                    Access::ReadWrite
                } else if now.backup == Some(replica) {
                    Access::ReadOnly
                } else {
                    Access::Refused
                }
            }
            _ => Access::Refused,
        }
    }

    /// A request; `to` names who is to be answered.
    pub fn request(&mut self, to: K, request: Request) {
        self.waiting.push_back((to, request));
        self.proceed();
    }

    /// The record of the last [`Effect::Persist`] is on stable storage, or could not be put there,
    /// for this reason.
    pub fn persisted(&mut self, outcome: Result<(), String>) {
        let Some(change) = &mut self.change else {
            panic!("no change is being persisted")
        };
        assert!(!change.persisted, "one change is persisted once");
        match outcome {
            Ok(()) => {
                change.persisted = true;
                if let Some(old) = &self.record {
                    assert!(
                        old.view.number <= change.record.view.number,
                        "views never go back"
                    );
                }
                self.record = Some(change.record);
                self.effects.push_back(Effect::Fence {
                    below: change.fence_below,
                });
            }
            Err(reason) => {
                let Some(Change { to, .. }) = self.change.take() else {
                    unreachable!()
                };
                let reason = format!("the register's record cannot be stored: {reason}");
                self.answer(to, Answer::Unavailable(reason));
                self.proceed();
            }
        }
    }

    /// What the last [`Effect::Fence`] asked for has been done.
    pub fn fenced(&mut self) {
        let Some(change) = self.change.take() else {
            panic!("no change is being fenced")
        };
        assert!(
            change.persisted,
            "a change is persisted before it is fenced"
        );
        self.answer(change.to, change.answer);
        self.proceed();
    }

    /// What is to be done next, until `None`.
    pub fn next_effect(&mut self) -> Option<Effect<K>> {
        self.effects.pop_front()
    }

    /// Takes waiting requests until one begins a change.
    fn proceed(&mut self) {
        while self.change.is_none() {
            let Some((to, request)) = self.waiting.pop_front() else {
                return;
            };
            match request {
                Request::Get => self.answer(to, Answer::Record(self.record)),
                Request::Start {
                    primary,
                    backup,
                    reset,
                } => self.start(to, primary, backup, reset),
                Request::Claim {
                    from_view,
                    claimant,
                } => self.claim(to, from_view, claimant),
                Request::Off { view } => self.off(to, view),
            }
        }
    }

    fn start(&mut self, to: K, primary: ReplicaId, backup: Option<ReplicaId>, reset: bool) {
        if backup == Some(primary) {
            let reason = format!("replica {primary} cannot be primary and backup of one view");
            return self.answer(to, Answer::Refused(reason));
        }
        let number = match &self.record {
            None => Some(1),
            Some(old) if old.on && !reset => {
                let reason = format!("the machine is on in {}", old.view);
                return self.answer(to, Answer::Refused(reason));
            }
            Some(old) => old.view.number.checked_add(1),
        };
        let Some(number) = number else {
            return self.answer(to, Answer::Refused("no view number is left".into()));
        };
        let record = Record {
            view: View {
                number,
                primary,
                backup,
            },
            claimed: false,
            on: true,
        };
        self.begin(to, record, number, Answer::Record(Some(record)));
    }

    fn claim(&mut self, to: K, from_view: u64, claimant: ReplicaId) {
        let Some(now) = self.record else {
            let reason = "the register has no record of this machine".into();
            return self.answer(to, Answer::Refused(reason));
        };
        if !now.on {
            let reason = format!("the machine was switched off in {}", now.view);
            return self.answer(to, Answer::Refused(reason));
        }
        if now.claimed && now.view.primary == claimant && from_view + 1 == now.view.number {
            return self.answer(to, Answer::Won(now.view));
        }
        if from_view > now.view.number {
            let reason = format!(
                "the claim is from view {from_view}, but the register is only at {}: it has lost \
                 its record, or this is another disk server",
                now.view
            );
            return self.answer(to, Answer::Refused(reason));
        }
        match now.view.alone(claimant) {
            Some(view) if from_view == now.view.number => {
                let record = Record {
                    view,
                    claimed: true,
                    on: true,
                };
                self.begin(to, record, view.number, Answer::Won(view));
            }
            _ => self.answer(to, Answer::Lost(now.view)),
        }
    }

    fn off(&mut self, to: K, view: u64) {
        match self.record {
            Some(now) if now.view.number == view && now.on => {
                let record = Record { on: false, ..now };
                self.begin(
                    to,
                    record,
                    view.saturating_add(1),
                    Answer::Record(Some(record)),
                );
            }
            Some(now) if now.view.number == view => {
                self.answer(to, Answer::Record(Some(now)));
            }
            Some(now) => {
                let reason = format!("the machine is in {}, not in view {view}", now.view);
                self.answer(to, Answer::Refused(reason));
            }
            None => {
                let reason = "the register has no record of this machine".into();
                self.answer(to, Answer::Refused(reason));
            }
        }
    }

    fn begin(&mut self, to: K, record: Record, fence_below: u64, answer: Answer) {
        self.effects.push_back(Effect::Persist(record));
        self.change = Some(Change {
            record,
            fence_below,
            persisted: false,
            to,
            answer,
        });
    }

    fn answer(&mut self, to: K, answer: Answer) {
        self.effects.push_back(Effect::Answer { to, answer });
    }
}

#[cfg(test)]
mod tests;
