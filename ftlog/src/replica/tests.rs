use super::*;
use crate::codec::header::Region;
use crate::entry::{Entry, Event};
use crate::primary::{AppendError, Stall};
use crate::replay::Hashes;
use crate::{Config, CountUnit, Header, Position, ReplicaId, VmId};

const A: ReplicaId = ReplicaId(1);
const B: ReplicaId = ReplicaId(2);
const MS: u64 = 1_000_000;

fn header() -> Header {
    Header {
        vm: VmId([1; 16]),
        view: 1,
        build: "0.1.0+5eed".into(),
        engine: "toy".into(),
        counts: CountUnit::Instructions,
        cpuid: 0,
        memory: vec![Region {
            base: 0,
            len: 1 << 20,
        }],
        board: 0,
        host_math: 0,
        initial_state: 0,
        start: Position::default(),
        start_clock_ns: 0,
    }
}

fn view() -> View {
    View {
        number: 1,
        primary: A,
        backup: Some(B),
    }
}

/// A view without a backup.
fn alone_in(number: u64, primary: ReplicaId) -> View {
    View {
        number,
        primary,
        backup: None,
    }
}

fn at(count: u64) -> Position {
    Position {
        count,
        rip: 0x1000,
        rcx: 0,
    }
}

/// A pair with a channel that delivers at once, and what both were told to do beside sending.
struct Pair {
    now: u64,
    a: Replica<&'static str>,
    b: Replica<&'static str>,
    seen_a: Vec<String>,
    seen_b: Vec<String>,
    cut: bool,
    /// What A releases gets out of its process.
    sockets_work: bool,
}

fn word<T: fmt::Debug>(effect: &Effect<T>) -> String {
    match effect {
        Effect::Release(released) => format!("release {:?}", released.output),
        Effect::Halt(reason) => format!("halt: {reason}"),
        Effect::Live(view) => format!("live {}", view.number),
        Effect::Claimed(view) => format!("claimed {}", view.number),
        Effect::Claim(request) => format!("claim from {}", request.from_view),
        Effect::Suspected(suspicion) => format!("suspected: {suspicion}"),
        Effect::Send(_) | Effect::CloseChannel | Effect::Start => format!("{effect:?}"),
    }
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self::unconnected(header());
        pair.connect();
        pair
    }

    fn unconnected(backups: Header) -> Self {
        let config = Config::default();
        let a = Primary::new(config.clone(), A, view(), header(), 0);
        let b = Backup::new(config, B, view(), backups, 0);
        Self {
            now: 0,
            a: Replica::Primary(Box::new(a)),
            b: Replica::Backup(Box::new(b)),
            seen_a: Vec::new(),
            seen_b: Vec::new(),
            cut: false,
            sockets_work: true,
        }
    }

    fn connect(&mut self) {
        self.a.connected(self.now);
        self.b.connected(self.now);
        self.deliver();
    }

    /// Carries bytes both ways until nothing moves.
    fn deliver(&mut self) {
        loop {
            let mut moved = false;
            while let Some(effect) = self.a.next_effect() {
                moved = true;
                match effect {
                    Effect::Send(bytes) if !self.cut => self.b.received(self.now, &bytes),
                    Effect::Send(_) => {}
                    other => {
                        self.seen_a.push(word(&other));
                        if let (Effect::Release(released), true) = (other, self.sockets_work) {
                            self.a.left(released.ordinal + 1);
                        }
                    }
                }
            }
            while let Some(effect) = self.b.next_effect() {
                moved = true;
                match effect {
                    Effect::Send(bytes) if !self.cut => self.a.received(self.now, &bytes),
                    Effect::Send(_) => {}
                    other => self.seen_b.push(word(&other)),
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += MS;
            self.a.tick(self.now);
            self.b.tick(self.now);
            self.deliver();
        }
    }

    fn timer(&mut self, count: u64) {
        let entry = Entry::Event {
            at: at(count),
            clock_ns: count,
            event: Event::Timer,
        };
        self.a.primary().unwrap().append(self.now, &entry).unwrap();
    }

    fn output(&mut self, count: u64, kind: MarkKind, what: &'static str) {
        let primary = self.a.primary().unwrap();
        primary
            .output(self.now, at(count), kind, what.as_bytes(), 0, what)
            .unwrap();
    }

    /// Replays the next entry as a sound backup would.
    fn replay(&mut self, what: &'static str) {
        let now = self.now;
        let backup = self.b.backup().unwrap();
        let entry = backup.next_entry().unwrap().clone();
        match entry {
            Entry::Mark { at, kind, .. } => {
                backup.output(now, at, kind, what.as_bytes(), what).unwrap();
            }
            entry => {
                backup.arrived(now, entry.at()).unwrap();
                backup.applied().unwrap();
            }
        }
        self.b.settle(now);
    }
}

#[test]
fn an_output_leaves_when_its_mark_is_acknowledged_and_not_before() {
    let mut pair = Pair::new();
    assert_eq!(pair.a.phase(), Phase::Protected);
    assert_eq!(pair.b.phase(), Phase::Replaying);
    pair.cut = true;
    pair.output(10, MarkKind::Net, "x");
    pair.deliver();
    assert_eq!(pair.seen_a, ["Start"]);
    let mut pair = Pair::new();
    pair.output(10, MarkKind::Net, "x");
    pair.output(10, MarkKind::Console, "y");
    pair.deliver();
    assert_eq!(pair.seen_a, ["Start", "release \"x\"", "release \"y\""]);
    assert!(pair.seen_b.is_empty());
    let stats = pair.a.primary().unwrap().stats();
    assert_eq!(stats.frames, 1, "outputs of one exit share a frame");
}

#[test]
fn entries_that_nothing_waits_for_are_batched() {
    let mut pair = Pair::new();
    pair.timer(1);
    pair.timer(2);
    pair.deliver();
    assert_eq!(pair.b.backup().unwrap().backlog(), 0);
    pair.pass(1);
    assert_eq!(pair.b.backup().unwrap().backlog(), 2);
    pair.replay("");
    pair.replay("");
    pair.pass(2);
    let primary = pair.a.primary().unwrap();
    assert_eq!(primary.last_ack().executed, 2);
    assert_eq!(primary.stats().frames, 1);
    assert_eq!(primary.buffered_bytes(), 0);
}

#[test]
fn an_output_that_was_released_but_did_not_get_out_is_sent_by_the_backup() {
    let mut pair = Pair::new();
    pair.sockets_work = false;
    pair.output(5, MarkKind::Console, "stuck");
    pair.deliver();
    assert_eq!(pair.seen_a.last().unwrap(), "release \"stuck\"");
    pair.replay("stuck");
    pair.pass(60); // heartbeats
    pair.b.closed(pair.now);
    pair.cut = true;
    let won = alone_in(2, B);
    pair.b.register_answered(pair.now, ClaimAnswer::Won(won));
    pair.deliver();
    assert_eq!(pair.seen_b.last().unwrap(), "release \"stuck\"");
}

#[test]
fn the_backup_takes_over_when_it_has_won_and_consumed_its_log() {
    let mut pair = Pair::new();
    pair.output(5, MarkKind::Net, "sent");
    pair.deliver();
    pair.replay("sent");
    pair.pass(60); // a heartbeat tells the backup that it has left
    pair.output(6, MarkKind::Net, "perhaps sent");
    pair.output(7, MarkKind::DiskWrite, "block");
    pair.timer(8);
    pair.pass(2);
    pair.b.closed(pair.now);
    pair.seen_b.clear();
    pair.cut = true;
    pair.deliver();
    assert_eq!(pair.seen_b.last().unwrap(), "claim from 1");
    pair.b.register_answered(pair.now, ClaimAnswer::Unknown);
    pair.pass(100);
    assert_eq!(pair.b.phase(), Phase::Claiming);
    assert_eq!(pair.seen_b.last().unwrap(), "claim from 1");
    let won = alone_in(2, B);
    pair.b.register_answered(pair.now, ClaimAnswer::Won(won));
    assert_eq!(pair.b.phase(), Phase::Draining);
    pair.seen_b.clear();
    pair.replay("perhaps sent");
    pair.replay("block");
    assert_eq!(pair.b.phase(), Phase::Draining);
    pair.replay("");
    assert_eq!(pair.b.phase(), Phase::Alone);
    pair.deliver();
    assert_eq!(
        pair.seen_b,
        ["claimed 2", "live 2", "release \"perhaps sent\""]
    );
    let primary = pair.b.primary().unwrap();
    assert_eq!(
        primary.output(pair.now, at(9), MarkKind::Net, b"", 0, "new"),
        Ok(3)
    );
    pair.deliver();
    assert_eq!(pair.seen_b.last().unwrap(), "release \"new\"");
}

#[test]
fn a_primary_that_was_stopped_too_long_lets_nothing_out_on_waking() {
    let mut pair = Pair::new();
    pair.output(5, MarkKind::Net, "late");
    // Its log reaches the backup, whose ack waits in a socket while the primary is stopped.
    let mut acks = Vec::new();
    while let Some(effect) = pair.a.next_effect() {
        if let Effect::Send(bytes) = effect {
            pair.b.received(pair.now, &bytes);
        }
    }
    while let Some(effect) = pair.b.next_effect() {
        if let Effect::Send(bytes) = effect {
            acks.push(bytes);
        }
    }
    assert_eq!(acks.len(), 1);
    pair.now += Config::default().suspect_after_ns;
    pair.a.received(pair.now, &acks[0]);
    pair.cut = true;
    pair.deliver();
    assert_eq!(pair.seen_a.last().unwrap(), "claim from 1");
    let theirs = alone_in(2, B);
    pair.a
        .register_answered(pair.now, ClaimAnswer::Lost(theirs));
    pair.deliver();
    assert!(pair.seen_a.last().unwrap().starts_with("halt"));
    assert!(!pair.seen_a.iter().any(|seen| seen.starts_with("release")));
}

#[test]
fn mismatch_halts_both_with_the_reason() {
    let mut other = header();
    other.engine = "kvm".into();
    let mut pair = Pair::unconnected(other);
    pair.connect();
    assert!(
        pair.seen_b.last().unwrap().contains("engine"),
        "{:?}",
        pair.seen_b
    );
    assert!(
        pair.seen_a.last().unwrap().contains("engine"),
        "{:?}",
        pair.seen_a
    );
    assert_eq!(pair.a.primary().unwrap().stall(0), Some(Stall::Halted));
}

#[test]
fn a_diverged_backup_halts_and_the_primary_asks_to_go_on_alone() {
    let mut pair = Pair::new();
    let hash = Entry::Hash {
        at: at(3),
        registers: 1,
        memory: None,
        devices: 2,
    };
    pair.a.primary().unwrap().append(0, &hash).unwrap();
    pair.pass(2);
    let backup = pair.b.backup().unwrap();
    backup.arrived(pair.now, at(3)).unwrap();
    let replayed = Hashes {
        registers: 1,
        devices: 3,
        memory: None,
    };
    backup.hashed(pair.now, replayed).unwrap_err();
    assert!(backup.next_entry().is_none());
    pair.deliver();
    assert!(
        pair.seen_b.last().unwrap().contains("devices differ"),
        "{:?}",
        pair.seen_b
    );
    assert_eq!(pair.a.phase(), Phase::Claiming);
    assert!(
        pair.seen_a
            .iter()
            .any(|seen| seen.contains("devices differ")),
        "{:?}",
        pair.seen_a
    );
    pair.output(4, MarkKind::Net, "held");
    pair.deliver();
    assert_eq!(pair.seen_a.last().unwrap(), "claim from 1");
    let alone = alone_in(2, A);
    pair.a.register_answered(pair.now, ClaimAnswer::Won(alone));
    pair.deliver();
    assert_eq!(pair.seen_a.last().unwrap(), "release \"held\"");
}

#[test]
fn power_off_ends_both() {
    let mut pair = Pair::new();
    pair.output(5, MarkKind::Power, "off");
    pair.deliver();
    assert_eq!(
        pair.seen_a.last().unwrap(),
        "halt: the virtual machine is off"
    );
    pair.b.closed(pair.now);
    pair.replay("off");
    pair.deliver();
    assert_eq!(
        pair.seen_b.last().unwrap(),
        "halt: the virtual machine is off"
    );
    assert!(!pair.seen_b.iter().any(|seen| seen.starts_with("claim")));
}

#[test]
fn a_backup_that_takes_over_a_machine_that_is_going_off_ends_with_it() {
    let mut pair = Pair::new();
    // The guest switches itself off while an administrator does the same.
    pair.output(5, MarkKind::Power, "off");
    pair.output(5, MarkKind::Power, "cut");
    while let Some(effect) = pair.a.next_effect() {
        if let Effect::Send(bytes) = effect {
            pair.b.received(pair.now, &bytes);
        }
    }
    pair.b.closed(pair.now);
    let won = alone_in(2, B);
    pair.b.register_answered(pair.now, ClaimAnswer::Won(won));
    pair.replay("off");
    pair.replay("cut");
    assert_eq!(pair.b.phase(), Phase::Halted);
    let mut seen = Vec::new();
    while let Some(effect) = pair.b.next_effect() {
        seen.push(word(&effect));
    }
    let end = [
        "live 2",
        "release \"off\"",
        "CloseChannel",
        "halt: the virtual machine is off",
    ];
    assert!(seen.ends_with(&end.map(String::from)), "{seen:?}");
}

#[test]
fn nothing_comes_from_a_halted_primary() {
    let mut pair = Pair::new();
    pair.a.closed(pair.now);
    pair.output(5, MarkKind::Net, "x");
    let theirs = alone_in(2, B);
    pair.a
        .register_answered(pair.now, ClaimAnswer::Lost(theirs));
    pair.cut = true;
    pair.deliver();
    assert!(
        pair.seen_a
            .last()
            .unwrap()
            .starts_with("halt: another replica is live in view 2")
    );
    let seen = pair.seen_a.len();
    let primary = pair.a.primary().unwrap();
    let more = primary.output(1, at(6), MarkKind::Net, b"", 0, "y");
    assert_eq!(more, Err(AppendError::Halted));
    let won = alone_in(2, A);
    pair.a.register_answered(pair.now, ClaimAnswer::Won(won));
    pair.a.connected(pair.now);
    pair.pass(2000);
    assert_eq!(pair.seen_a.len(), seen);
}

#[test]
fn network_frames_are_safe_when_the_backup_has_them_or_is_gone() {
    let mut pair = Pair::new();
    let frame = |pair: &mut Pair| {
        let event = Event::NetReceive(bytes::Bytes::from_static(b"frame"));
        let entry = Entry::Event {
            at: at(1),
            clock_ns: 1,
            event,
        };
        pair.a.primary().unwrap().append(pair.now, &entry).unwrap();
    };
    let safe = |pair: &mut Pair| pair.a.primary().unwrap().net_received_safe();
    frame(&mut pair);
    assert_eq!(safe(&mut pair), 0);
    pair.pass(2);
    assert_eq!(safe(&mut pair), 1);
    pair.cut = true;
    frame(&mut pair);
    pair.a.closed(pair.now);
    frame(&mut pair);
    assert_eq!(safe(&mut pair), 1);
    let alone = alone_in(2, A);
    pair.a.register_answered(pair.now, ClaimAnswer::Won(alone));
    assert_eq!(safe(&mut pair), 3);
    frame(&mut pair);
    assert_eq!(safe(&mut pair), 4);
}

#[test]
fn a_backup_without_a_handshake_never_claims() {
    let mut pair = Pair::unconnected(header());
    pair.b.connected(0);
    pair.b.closed(0);
    for ms in 0..100_000 {
        pair.b.tick(ms * MS);
    }
    assert!(pair.b.next_effect().is_none());
}

#[test]
fn a_primary_whose_backup_never_comes_asks_and_starts_alone() {
    let mut pair = Pair::unconnected(header());
    pair.cut = true;
    pair.pass(Config::default().start_wait_ns / MS);
    assert_eq!(
        pair.seen_a,
        ["suspected: it never came", "CloseChannel", "claim from 1"]
    );
    let alone = alone_in(2, A);
    pair.a.register_answered(pair.now, ClaimAnswer::Won(alone));
    pair.deliver();
    assert_eq!(pair.seen_a[3..], ["claimed 2", "live 2", "Start"]);
}

#[test]
fn the_primary_stalls_when_the_log_is_full() {
    let mut pair = Pair::new();
    pair.cut = true;
    let data = bytes::Bytes::from(vec![0; 1 << 20]);
    for id in 0..64 {
        assert_eq!(pair.a.primary().unwrap().stall(0), None);
        let event = Event::DiskDone {
            id,
            status: 0,
            data: Some(data.clone()),
        };
        let entry = Entry::Event {
            at: at(1),
            clock_ns: 0,
            event,
        };
        pair.a.primary().unwrap().append(0, &entry).unwrap();
    }
    assert_eq!(pair.a.primary().unwrap().stall(0), Some(Stall::LogFull));
}
