//! The two halves of a replica's vCPU loop in the simulator: recording and replaying.

use bytes::Bytes;

use super::Mutation;
use super::driver::Pending;
use super::guest::{DiskOp, Out};
use super::world::World;
use crate::entry::{Entry, Event, MarkKind};
use crate::position::Position;
use crate::primary::AppendError;
use crate::replay::Hashes;
use crate::replica::{Phase, Replica};
use crate::{Primary, ReplayError};

fn mark_kind(out: &Out) -> MarkKind {
    match out {
        Out::Reply(_) => MarkKind::Net,
        Out::Disk { .. } => MarkKind::DiskWrite,
        Out::Console(_) => MarkKind::Console,
    }
}

fn read_data(value: u64) -> Bytes {
    value.to_le_bytes().to_vec().into()
}

/// A halted machine takes nothing more, and that is all; anything else is a fault of the run.
fn unless_halted<T>(outcome: Result<T, AppendError>) -> Result<Option<T>, String> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(AppendError::Halted) => Ok(None),
        Err(error) => Err(format!("the log refuses an entry: {error}")),
    }
}

impl World {
    fn primary(&mut self, n: usize) -> &mut Primary<Out> {
        let Some(primary) = self.nodes[n].replica.primary() else {
            panic!("not a primary")
        };
        primary
    }

    /// A slice of a primary's life: inputs, instructions, progress.
    pub(super) fn record(&mut self, n: usize) -> Result<(), String> {
        let now = self.local(n);
        let executed = self.primary(n).last_ack().executed;
        self.nodes[n].hazards.executed(executed);
        if self.primary(n).stall(now).is_some() {
            self.report.stalls += 1;
            return Ok(());
        }
        if !self.close_stretch(n)? {
            return Ok(());
        }
        if self.nodes[n].guest.is_torn() {
            return Err(format!("the guest of replica {} has torn memory", n + 1));
        }
        while let Some(frame) = self.nodes[n].frames.pop_front() {
            self.event(
                n,
                Event::NetReceive(frame.clone()),
                Event::NetReceive(frame),
            )?;
        }
        while let Some((id, op, value)) = self.nodes[n].completions.pop_front() {
            self.complete(n, id, op, value)?;
        }
        if self.rng.chance(100) {
            self.event(n, Event::Timer, Event::Timer)?;
        }
        let steps = self.nodes[n].steps.max(1) * u64::from(self.primary(n).share()) / 1000;
        for _ in 0..steps.max(1) {
            for out in self.nodes[n].guest.step() {
                self.made(n, out)?;
            }
            self.effects(n)?;
        }
        if self.stretches && self.rng.chance(200) {
            self.stretch(n);
            return Ok(());
        }
        self.checkpoint(n)
    }

    /// The guest computes without an exit, and is stopped.
    fn stretch(&mut self, n: usize) {
        let (blocks, cpu) = self.nodes[n].guest.stretch(&mut self.rng);
        let at = self.nodes[n].guest.position();
        let begun = Position {
            count: at.count - 1,
            ..at
        };
        let pages = blocks
            .into_iter()
            .map(|pages| Entry::Pages { at: begun, pages });
        let interrupts = 0;
        let closing = Entry::Stretch {
            at,
            interrupts,
            cpu,
        };
        self.nodes[n].closing = pages.chain([closing]).collect();
    }

    /// Logs a stretch, or a part: the thread may lose its processor at any moment. Whether it is
    /// done.
    fn close_stretch(&mut self, n: usize) -> Result<bool, String> {
        while let Some(entry) = self.nodes[n].closing.pop_front() {
            self.append(n, &entry)?;
            self.effects(n)?;
            match entry {
                Entry::Stretch { .. } => self.report.stretches += 1,
                _ if self.rng.chance(200) => return Ok(false),
                _ => {}
            }
        }
        Ok(true)
    }

    /// Progress when it is due, and now and then a state hash.
    fn checkpoint(&mut self, n: usize) -> Result<(), String> {
        let (now, at) = (self.local(n), self.nodes[n].guest.position());
        if self.rng.chance(50) {
            let entry = Entry::Hash {
                at,
                registers: at.rip,
                memory: None,
                devices: at.rcx,
            };
            self.append(n, &entry)?;
        }
        if self.primary(n).progress_due(now) {
            self.append(n, &Entry::Progress { at })?;
        }
        Ok(())
    }

    fn append(&mut self, n: usize, entry: &Entry) -> Result<Option<u64>, String> {
        let now = self.local(n);
        let seq = unless_halted(self.primary(n).append(now, entry))?;
        if seq.is_some() {
            self.nodes[n].appended += 1;
        }
        Ok(seq)
    }

    /// Logs `logged` and does `event` to the guest. The same, except for a read's data.
    fn event(&mut self, n: usize, logged: Event, event: Event) -> Result<Option<u64>, String> {
        let guest = &self.nodes[n].guest;
        if let Event::DiskDone { id, .. } = event
            && !guest.awaits(id)
        {
            return Err(format!(
                "replica {} gave its guest a completion of disk request {id}, which is not pending",
                self.nodes[n].id
            ));
        }
        let (at, clock_ns) = (guest.position(), guest.clock_ns().max(self.local(n)));
        let seq = self.append(
            n,
            &Entry::Event {
                at,
                clock_ns,
                event: logged,
            },
        )?;
        if seq.is_some() {
            self.nodes[n].guest.apply(clock_ns, event);
        }
        Ok(seq)
    }

    fn complete(&mut self, n: usize, id: u64, op: DiskOp, value: u64) -> Result<(), String> {
        let done = |data| Event::DiskDone {
            id,
            status: 0,
            data,
        };
        let hazards = self.options.mutation != Mutation::NoHazards;
        let DiskOp::Read { .. } = op else {
            self.nodes[n].hazards.write_done(id);
            return self.event(n, done(None), done(None)).map(drop);
        };
        let must_carry = hazards && self.nodes[n].hazards.must_carry(id);
        let with_data = !self.backup_reads || must_carry;
        if self.backup_reads && must_carry {
            self.report.carried += 1;
        }
        let logged = done(with_data.then(|| read_data(value)));
        let seq = self.event(n, logged, done(Some(read_data(value))))?;
        if let Some(seq) = seq
            && hazards
        {
            self.nodes[n].hazards.read_logged(id, seq, with_data);
        }
        Ok(())
    }

    /// The primary's guest made an output.
    fn made(&mut self, n: usize, out: Out) -> Result<(), String> {
        let mut executed_before = 0;
        let hazards = self.options.mutation != Mutation::NoHazards;
        if let Out::Disk { id, op } = out {
            let is_read = matches!(op, DiskOp::Read { .. });
            self.nodes[n].pending.insert(
                id,
                Pending {
                    op,
                    issued: is_read,
                },
            );
            match op {
                DiskOp::Read { block } => {
                    if hazards {
                        self.nodes[n].hazards.read_issued(id, block as u64, 1);
                    }
                    self.issue(n, id);
                    return Ok(()); // not an output
                }
                DiskOp::Write { block, .. } if hazards => {
                    executed_before = self.nodes[n].hazards.write_issued(id, block as u64, 1);
                }
                DiskOp::Write { .. } => {}
            }
        }
        let (now, at, bytes) = (self.local(n), self.nodes[n].guest.position(), out.bytes());
        let kind = mark_kind(&out);
        let made = self
            .primary(n)
            .output(now, at, kind, &bytes, executed_before, out.clone());
        let Some(ordinal) = unless_halted(made)? else {
            return Ok(());
        };
        let seq = self.nodes[n].appended;
        self.nodes[n].appended += 1;
        self.nodes[n].marks.insert(ordinal, seq);
        if self.options.mutation == Mutation::ReleaseAtOnce && n == 0 {
            self.emit(n, ordinal, out)?;
        }
        Ok(())
    }

    /// A slice of a backup's life: as much of the log as it is there and it is fast.
    pub(super) fn replay(&mut self, n: usize) -> Result<(), String> {
        let outcome = self.replay_some(n);
        let now = self.local(n);
        self.nodes[n].replica.settle(now);
        match outcome {
            Ok(()) | Err(ReplayError::Halted) => Ok(()),
            Err(ReplayError::Diverged(divergence)) => Err(format!("divergence: {divergence}")),
        }
    }

    fn replay_some(&mut self, n: usize) -> Result<(), ReplayError> {
        let mut steps = self.nodes[n].steps * 3 / 2;
        let skip = self.options.mutation == Mutation::SkipLog
            && self.nodes[n].replica.phase() == Phase::Draining;
        while let Replica::Backup(backup) = &mut self.nodes[n].replica {
            let Some(entry) = backup.next_entry().cloned() else {
                if self.options.mutation == Mutation::RunPast && steps > 0 {
                    steps -= 1;
                    self.replay_step(n)?;
                    continue;
                }
                return Ok(());
            };
            if skip {
                backup.applied()?;
            } else if self.nodes[n].guest.position().count < self.runs_to(&entry) {
                if steps == 0 {
                    return Ok(());
                }
                steps -= 1;
                self.replay_step(n)?;
            } else if !self.replay_entry(n, entry)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn runs_to(&self, entry: &Entry) -> u64 {
        match self.options.mutation {
            Mutation::RunIntoStretch => entry.at().count,
            _ => entry.runs_to(),
        }
    }

    fn replay_step(&mut self, n: usize) -> Result<(), ReplayError> {
        let now = self.local(n);
        for out in self.nodes[n].guest.step() {
            let node = &mut self.nodes[n];
            if let Out::Disk { id, op } = out {
                node.pending.insert(id, Pending { op, issued: false });
                if matches!(op, DiskOp::Read { .. }) {
                    continue;
                }
            }
            let (at, bytes) = (node.guest.position(), out.bytes());
            if let Some(backup) = node.replica.backup() {
                backup.output(now, at, mark_kind(&out), &bytes, out)?;
            }
        }
        Ok(())
    }

    /// Applies the entry, at whose position the guest is; false if it cannot be yet.
    fn replay_entry(&mut self, n: usize, entry: Entry) -> Result<bool, ReplayError> {
        let (now, guest) = (self.local(n), &self.nodes[n].guest);
        let at = match &entry {
            Entry::Stretch { cpu, .. } => guest.position_after(cpu),
            _ => guest.position(),
        };
        let Some(backup) = self.nodes[n].replica.backup() else {
            return Ok(false);
        };
        backup.arrived(now, at)?;
        match entry {
            Entry::Hash { .. } => {
                let hashes = Hashes {
                    registers: at.rip,
                    devices: at.rcx,
                    memory: None,
                };
                backup.hashed(now, hashes)?;
            }
            Entry::Event {
                clock_ns, event, ..
            } => {
                let Some(event) = self.with_own_read(n, event) else {
                    return Ok(false);
                };
                if let Event::DiskDone { id, .. } = &event {
                    self.nodes[n].pending.remove(id);
                }
                self.nodes[n].guest.apply(clock_ns, event);
            }
            Entry::Pages { pages, .. } if self.options.mutation == Mutation::PagesAtOnce => {
                self.nodes[n].guest.write_pages(&pages);
            }
            Entry::Pages { pages, .. } => self.nodes[n].aside.push(pages),
            Entry::Stretch { cpu, .. } => {
                let node = &mut self.nodes[n];
                for pages in std::mem::take(&mut node.aside) {
                    node.guest.write_pages(&pages);
                }
                node.guest.jump(&cpu);
            }
            Entry::Progress { .. } | Entry::Mark { .. } => {}
        }
        self.report.entries_replayed += 1;
        if let Some(backup) = self.nodes[n].replica.backup() {
            backup.applied()?;
        }
        Ok(true)
    }

    /// The event with the data of a read that the backup has to execute itself, once it has.
    fn with_own_read(&mut self, n: usize, event: Event) -> Option<Event> {
        let Event::DiskDone {
            id,
            status,
            data: None,
        } = event
        else {
            return Some(event);
        };
        let pending = self.nodes[n].pending.get(&id)?;
        let DiskOp::Read { .. } = pending.op else {
            return Some(event);
        };
        match self.nodes[n].own_read {
            Some((own, Some(value))) if own == id => {
                self.nodes[n].own_read = None;
                self.report.backup_reads += 1;
                Some(Event::DiskDone {
                    id,
                    status,
                    data: Some(read_data(value)),
                })
            }
            Some(_) => None,
            None => {
                self.nodes[n].own_read = Some((id, None));
                self.issue(n, id);
                None
            }
        }
    }
}
