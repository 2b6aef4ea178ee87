//! The driver around the protocol's state machine: one lock, and effects carried out in their order.
//!
//! Decisions are `ftlog`'s. Here its calls are made from the vCPU's thread, the channel's, the
//! register's and the timer's, and what it wants done is put on the queues of those that do it,
//! before the lock is given back: so the order of bytes on the channel, and of outputs that leave,
//! is the order of the calls.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::Sender;
use devices::{DiskOp, DiskRequest, Output};
use ftlog::primary::{AppendError, Stall};
use ftlog::replay::{Divergence, Hashes};
use ftlog::replica::{Effect, HaltReason, Phase, Replica};
use ftlog::{ClaimAnswer, ClaimRequest, Entry, Position, ReadHazards, View};

use super::channel::ToChannel;
use super::clock::Monotonic;
use super::convert::Marked;
use super::metrics::{Figures, Metrics};
use super::outlet::{Outlet, Release};
use super::timeline::Timeline;
use crate::link::lock;

/// How long a thread that waits for the protocol looks away at most.
const WAIT_MAX: Duration = Duration::from_millis(20);

/// A handle; clones are the same protocol.
#[derive(Clone)]
pub struct Protocol(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    clock: Monotonic,
    channel: Sender<ToChannel>,
    claims: Sender<ClaimRequest>,
    outlet: Outlet,
    timeline: Arc<Timeline>,
}

struct State {
    replica: Replica<Output>,
    /// Began as a backup: it is live only when its vCPU's thread has taken over.
    takes_over: bool,
    hazards: ReadHazards,
    /// Frames of the switch that are in the log: (connection, number), oldest first, and how many
    /// of them have been reported as safe.
    frames: VecDeque<(u64, u64)>,
    frames_safe: u64,
    metrics: Metrics,
    halted: Option<HaltReason>,
    /// The process was asked to end.
    quit: bool,
}

/// What a replaying vCPU does next.
#[derive(Debug)]
pub enum Next {
    /// Run to this entry, number `seq` of the log.
    Entry(u64, Entry),
    /// The log is consumed and this replica is alone in the view.
    Live(View),
    Halted,
}

impl Protocol {
    pub fn new(
        replica: Replica<Output>,
        clock: Monotonic,
        channel: Sender<ToChannel>,
        claims: Sender<ClaimRequest>,
        outlet: Outlet,
        timeline: Arc<Timeline>,
    ) -> Self {
        let state = State {
            takes_over: matches!(replica, Replica::Backup(_)),
            replica,
            hazards: ReadHazards::new(),
            frames: VecDeque::new(),
            frames_safe: 0,
            metrics: Metrics::default(),
            halted: None,
            quit: false,
        };
        let protocol = Self(Arc::new(Inner {
            state: Mutex::new(state),
            changed: Condvar::new(),
            clock,
            channel,
            claims,
            outlet,
            timeline,
        }));
        protocol.call(|_, _| ()); // what the machine wants done at its start
        protocol
    }

    // For the recording vCPU's thread.

    /// Waits until the vCPU may run; gives the share of the time that it may have (0 to 1). `None`:
    /// this replica has halted.
    pub fn may_run(&self) -> Option<f64> {
        let mut state = self.lock();
        loop {
            if state.quit {
                return None;
            }
            let now = self.0.clock.now();
            let primary = state.replica.primary()?;
            match primary.stall(now) {
                None => return Some(f64::from(primary.share()) / 1000.0),
                Some(Stall::Halted) => return None,
                Some(Stall::WaitingForBackup | Stall::LogFull | Stall::BackupBehind) => {
                    state = self.wait(state);
                    self.0.carry_out(&mut state);
                }
            }
        }
    }

    /// Logs what is about to happen to the guest. `None`: halted; it must not happen.
    pub fn append(&self, entry: &Entry) -> Result<Option<u64>, AppendError> {
        self.call(|state, now| {
            let Some(primary) = state.replica.primary() else {
                return Ok(None);
            };
            match primary.append(now, entry) {
                Ok(seq) => Ok(Some(seq)),
                Err(AppendError::Halted) => Ok(None),
                Err(why) => Err(why),
            }
        })
    }

    /// Logs a frame of the switch like [`Self::append`]; the switch is told when it is safe.
    pub fn append_frame(
        &self,
        entry: &Entry,
        connection: u64,
        number: u64,
    ) -> Result<Option<u64>, AppendError> {
        let seq = self.append(entry)?;
        if seq.is_some() {
            self.call(|state, _| state.frames.push_back((connection, number)));
        }
        Ok(seq)
    }

    /// Marks the outputs of one exit, and holds each until it may leave: together, so that their
    /// marks share a flush of the log and the backup's acknowledgement.
    pub fn put_out(&self, at: Position, outputs: Vec<Marked>) -> Result<(), AppendError> {
        if outputs.is_empty() {
            return Ok(());
        }
        self.call(|state, now| {
            outputs
                .into_iter()
                .try_for_each(|marked| state.put_out(now, at, marked))
        })
    }

    /// The guest asked for a disk read.
    pub fn read_issued(&self, request: &DiskRequest) {
        let sectors = sectors(request);
        lock_state(&self.0)
            .hazards
            .read_issued(request.id, request.sector, sectors);
    }

    /// Whether the log must carry the data of read `id` even if the backup reads for itself.
    pub fn must_carry(&self, id: u64) -> bool {
        lock_state(&self.0).hazards.must_carry(id)
    }

    /// Disk request `id` ended with entry `seq`.
    pub fn disk_done(&self, id: u64, seq: u64, with_data: bool) {
        let mut state = lock_state(&self.0);
        state.hazards.read_logged(id, seq, with_data);
        state.hazards.write_done(id);
    }

    // For the replaying vCPU's thread.

    /// Waits for the next entry.
    pub fn next(&self) -> Next {
        let mut state = self.lock();
        loop {
            if state.quit || state.halted.is_some() {
                return Next::Halted;
            }
            match &mut state.replica {
                Replica::Primary(primary) => return Next::Live(primary.view()),
                Replica::Backup(backup) => {
                    if let Some(entry) = backup.next_entry() {
                        return Next::Entry(backup.next_seq(), entry.clone());
                    }
                }
            }
            state = self.wait(state);
        }
    }

    /// The guest is where the next entry is due.
    pub fn arrived(&self, at: Position) -> bool {
        self.replay(|backup, now| backup.arrived(now, at).is_ok())
    }

    pub fn hashed(&self, hashes: Hashes) -> bool {
        self.replay(|backup, now| backup.hashed(now, hashes).is_ok())
    }

    pub fn applied(&self) -> bool {
        self.replay(|backup, _| backup.applied().is_ok())
    }

    /// The guest made an output; its mark must be the next entry.
    pub fn suppressed(&self, at: Position, marked: Marked) -> bool {
        let Marked {
            kind,
            bytes,
            output,
        } = marked;
        self.replay(|backup, now| backup.output(now, at, kind, &bytes, output).is_ok())
    }

    pub fn diverged(&self, divergence: Divergence) {
        self.replay(|backup, now| {
            backup.diverged(now, divergence);
            true
        });
    }

    fn replay(&self, f: impl FnOnce(&mut ftlog::backup::Backup<Output>, u64) -> bool) -> bool {
        self.call(|state, now| {
            let fine = state.replica.backup().is_some_and(|backup| f(backup, now));
            state.replica.settle(now);
            fine
        })
    }

    // For the threads of the channel, the register and the clock.

    pub fn connected(&self) {
        self.call(|state, now| state.replica.connected(now));
    }

    pub fn closed(&self) {
        self.call(|state, now| state.replica.closed(now));
    }

    pub fn received(&self, bytes: &[u8]) {
        self.call(|state, now| {
            state.replica.received(now, bytes);
            state.take_ack(now);
        });
    }

    pub fn register_answered(&self, answer: ClaimAnswer) {
        self.call(|state, now| state.replica.register_answered(now, answer));
    }

    /// A server refuses this replica as one of `view`. From before a view that it has won itself
    /// that says nothing new; otherwise it has lost its view, and the register will say so.
    pub fn fenced(&self, by: &str, view: u64, reason: &str) {
        self.call(|state, now| {
            if view >= state.replica.view().number {
                tracing::warn!(by, view, reason, "fenced");
                state.replica.fenced(now);
            }
        });
    }

    /// Lets the machine do what is due; gives the time until it wants to be called again.
    pub fn tick(&self) -> Duration {
        self.call(|state, now| {
            if state
                .replica
                .deadline_ns()
                .is_some_and(|deadline| deadline <= now)
            {
                state.replica.tick(now);
            }
            state.metrics.sample(now, &mut state.replica);
            let next = state.replica.deadline_ns().unwrap_or(u64::MAX);
            Duration::from_nanos(next.saturating_sub(now)).min(WAIT_MAX)
        })
    }

    // For everybody.

    pub fn phase(&self) -> Phase {
        lock_state(&self.0).replica.phase()
    }

    pub fn view(&self) -> View {
        lock_state(&self.0).replica.view()
    }

    /// Why this replica stopped for good, if it has.
    pub fn halted(&self) -> Option<HaltReason> {
        lock_state(&self.0).halted.clone()
    }

    pub fn figures(&self) -> Figures {
        let mut state = lock_state(&self.0);
        let State {
            metrics, replica, ..
        } = &mut *state;
        metrics.figures(self.0.clock.now(), replica)
    }

    /// Ends the vCPU's thread, and with it the process: nothing is said to the other replica, which
    /// will suspect this one.
    pub fn quit(&self) {
        self.lock().quit = true;
        self.0.changed.notify_all();
    }

    /// Instructions a second, of the last second; `count` is where the vCPU stands.
    pub fn instruction_rate(&self, count: u64) -> f64 {
        let mut state = lock_state(&self.0);
        let now = self.0.clock.now();
        state.metrics.instruction_rate(now, count)
    }

    pub fn timeline(&self) -> &Timeline {
        &self.0.timeline
    }

    pub fn outlet(&self) -> &Outlet {
        &self.0.outlet
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock_state(&self.0)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.0.changed.wait_timeout(state, WAIT_MAX);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Makes a call on the machine and carries out what it wants.
    fn call<R>(&self, f: impl FnOnce(&mut State, u64) -> R) -> R {
        let mut state = self.lock();
        state.replica.left(self.0.outlet.left());
        let result = f(&mut state, self.0.clock.now());
        self.0.carry_out(&mut state);
        result
    }
}

impl Inner {
    fn carry_out(&self, state: &mut State) {
        let mut woken = false;
        while let Some(effect) = state.replica.next_effect() {
            woken |= !matches!(effect, Effect::Send(_) | Effect::Release(_));
            self.carry_out_one(state, effect);
        }
        self.outlet.lease(state.replica.may_emit_until_ns());
        state.report_frames(&self.outlet);
        // A replaying vCPU waits for entries, a stalled one for acknowledgements.
        if woken || state.replica.phase() != Phase::Alone {
            self.changed.notify_all();
        }
    }

    fn carry_out_one(&self, state: &mut State, effect: Effect<Output>) {
        match effect {
            // The channel's thread ends only with the process.
            Effect::Send(bytes) => drop(self.channel.send(ToChannel::Bytes(bytes))),
            Effect::CloseChannel => drop(self.channel.send(ToChannel::Close)),
            Effect::Claim(request) => drop(self.claims.send(request)),
            Effect::Start => tracing::info!("the guest starts"),
            Effect::Release(released) => {
                state.metrics.hold.add_ns(released.held_ns);
                self.outlet
                    .release(Release::Output(Some(released.ordinal), released.output));
            }
            Effect::Suspected(suspicion) => {
                tracing::warn!(%suspicion, "the other replica is suspected; asking the view register");
                self.timeline.suspected();
            }
            Effect::Claimed(view) => {
                tracing::info!(%view, "won the view");
                self.timeline.claimed(view.number);
                self.outlet.release(Release::Claimed(view));
            }
            Effect::Live(view) => {
                tracing::info!(%view, "live");
                state.hazards.no_backup();
                self.timeline.log_consumed();
                self.timeline.log_consumed();
                if !state.takes_over {
                    self.timeline.live();
                }
                self.outlet.release(Release::Live(view));
            }
            Effect::Halt(reason) => {
                tracing::warn!(%reason, "halted");
                if reason != HaltReason::PoweredOff {
                    self.outlet.shut();
                }
                state.halted = Some(reason);
            }
        }
    }
}

impl State {
    fn take_ack(&mut self, now: u64) {
        if let Some(primary) = self.replica.primary() {
            let executed = primary.last_ack().executed;
            let lag = primary.lag_ns(now);
            self.hazards.executed(executed);
            self.metrics.lag.add_ns(lag);
        }
    }

    fn put_out(&mut self, now: u64, at: Position, marked: Marked) -> Result<(), AppendError> {
        let before = self.output_hazard(&marked.output);
        let Marked {
            kind,
            bytes,
            output,
        } = marked;
        let Some(primary) = self.replica.primary() else {
            return Ok(());
        };
        match primary.output(now, at, kind, &bytes, before, output) {
            Ok(_) | Err(AppendError::Halted) => Ok(()),
            Err(why) => Err(why),
        }
    }

    /// The entry before which the backup must be, for a write that overlaps what it has yet to read.
    fn output_hazard(&mut self, output: &Output) -> u64 {
        match output {
            Output::Disk(request) if request.op != DiskOp::Flush => {
                self.hazards
                    .write_issued(request.id, request.sector, sectors(request))
            }
            _ => 0,
        }
    }

    /// Tells the switch which frames need not be given again.
    fn report_frames(&mut self, outlet: &Outlet) {
        let Some(primary) = self.replica.primary() else {
            return;
        };
        let safe = match primary.phase() {
            Phase::Alone => self.frames.len() as u64,
            _ => primary.net_received_safe().saturating_sub(self.frames_safe),
        };
        let mut last = None;
        for _ in 0..safe {
            let Some(frame) = self.frames.pop_front() else {
                break;
            };
            self.frames_safe += 1;
            last = Some(frame);
        }
        if let Some((connection, number)) = last {
            outlet.release(Release::Consumed { connection, number });
        }
    }
}

fn sectors(request: &DiskRequest) -> u64 {
    u64::from(request.len).div_ceil(512)
}

fn lock_state(inner: &Inner) -> MutexGuard<'_, State> {
    lock(&inner.state)
}
