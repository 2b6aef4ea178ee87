//! A replica and a hostile peer: the role machines behind the decoder, driven as `ft-vmm` drives
//! them, in either role, with an answer of the register when one is asked for.

use ftlog::backup::Backup;
use ftlog::codec::{Ack, Bye, Message, encode};
use ftlog::primary::Primary;
use ftlog::replica::{Effect, Phase, Replica};
use ftlog::{ClaimAnswer, Config, Entry, Event, Hashes, MarkKind, View, digest};

use super::toy;
use crate::Target;
use crate::input::{Input, put_block};

pub const TARGET: Target = Target {
    name: "channel",
    about: "primary and backup as state machines, with a hostile peer on the logging channel",
    run,
    samples,
    cases: 20_000,
};

const BACKUP: u8 = 1;
const REPAIR: u8 = 2;
const MS: u64 = 1_000_000;

// What the input makes happen; any other number is bytes from the peer.
const TICK: u8 = 0;
const CLOSED: u8 = 1;
const CONNECTED: u8 = 2;
const FENCED: u8 = 3;
const GUEST: u8 = 4;
const BYTES: u8 = 5;

struct Driver<'a> {
    replica: Replica<u64>,
    input: Input<'a>,
    now: u64,
    count: u64,
    repair: bool,
    halted: bool,
}

/// Input: a byte of flags, then steps.
fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let config = Config::default();
    let replica = if flags & BACKUP != 0 {
        let backup = Backup::new(config, toy::BACKUP, toy::view(), toy::header(), 0);
        Replica::Backup(Box::new(backup))
    } else {
        let primary = Primary::new(config, toy::PRIMARY, toy::view(), toy::header(), 0);
        Replica::Primary(Box::new(primary))
    };
    let mut driver = Driver {
        replica,
        input,
        now: 0,
        count: 0,
        repair: flags & REPAIR != 0,
        halted: false,
    };
    driver.replica.connected(0);
    let first = driver.replica.phase();
    let mut handshake = false;
    while !driver.input.is_empty() && !driver.halted {
        driver.step();
        driver.effects();
        handshake |= !matches!(driver.replica.phase(), Phase::Halted | Phase::Claiming)
            && driver.replica.phase() != first;
    }
    if handshake {
        crate::findings::accepted();
    }
}

impl Driver<'_> {
    fn step(&mut self) {
        match self.input.u8() {
            TICK => {
                self.now += u64::from(self.input.u8()) * MS;
                self.replica.tick(self.now);
            }
            CLOSED => self.replica.closed(self.now),
            CONNECTED => self.replica.connected(self.now),
            FENCED => self.replica.fenced(self.now),
            GUEST => self.guest(),
            _ => {
                let mut bytes = self.input.block().to_vec();
                if self.repair {
                    toy::repair(&mut bytes);
                }
                self.replica.received(self.now, &bytes);
            }
        }
    }

    /// What the vCPU's thread does.
    fn guest(&mut self) {
        let now = self.now;
        if let Some(primary) = self.replica.primary() {
            if primary.stall(now).is_none() {
                self.count += 1000;
                let entry = Entry::Event {
                    at: toy::at(self.count),
                    clock_ns: self.count,
                    event: Event::Timer,
                };
                let at = toy::at(self.count + 1);
                // A replica that has halted refuses both.
                let _ = primary.append(now, &entry);
                let _ = primary.output(now, at, MarkKind::Net, toy::OUTPUT, 0, self.count);
            }
        } else if let Some(backup) = self.replica.backup() {
            while let Some(entry) = backup.next_entry().cloned() {
                if replay(backup, now, &entry).is_none() {
                    break;
                }
            }
        }
        self.replica.settle(now);
    }

    fn effects(&mut self) {
        while let Some(effect) = self.replica.next_effect() {
            assert!(!self.halted, "nothing follows a halt: {effect:?}");
            match effect {
                Effect::Halt(reason) => {
                    self.halted = true;
                    assert!(!reason.to_string().is_empty());
                }
                Effect::Claim(request) => {
                    let claimed = View {
                        number: request.from_view + 1,
                        primary: request.claimant,
                        backup: None,
                    };
                    let other = View {
                        number: self.input.u8().into(),
                        ..claimed
                    };
                    let answer = match self.input.u8() % 6 {
                        0..3 => ClaimAnswer::Won(claimed),
                        3 => ClaimAnswer::Lost(other),
                        4 => ClaimAnswer::Won(other),
                        _ => ClaimAnswer::Unknown,
                    };
                    self.replica.register_answered(self.now, answer);
                }
                Effect::Send(_)
                | Effect::CloseChannel
                | Effect::Release(_)
                | Effect::Start
                | Effect::Suspected(_)
                | Effect::Claimed(_)
                | Effect::Live(_) => {}
            }
        }
        assert_eq!(self.halted, self.replica.phase() == Phase::Halted);
    }
}

/// As a sound backup: arrives where the log says and makes the outputs that it can. `None` if the
/// replica has halted.
fn replay(backup: &mut Backup<u64>, now: u64, entry: &Entry) -> Option<()> {
    match entry {
        Entry::Mark { at, kind, .. } => backup.output(now, *at, *kind, toy::OUTPUT, 0).ok(),
        Entry::Hash { at, memory, .. } => {
            backup.arrived(now, *at).ok()?;
            let replayed = Hashes {
                registers: 1,
                devices: 3,
                memory: memory.map(|_| 2),
            };
            backup.hashed(now, replayed).ok()?;
            backup.applied().ok()
        }
        Entry::Event { at, .. }
        | Entry::Progress { at }
        | Entry::Pages { at, .. }
        | Entry::Stretch { at, .. } => {
            backup.arrived(now, *at).ok()?;
            backup.applied().ok()
        }
    }
}

fn samples() -> Vec<Vec<u8>> {
    let step = |out: &mut Vec<u8>, message: &[u8]| {
        out.push(BYTES);
        put_block(out, message);
    };
    let mut backup = vec![BACKUP | REPAIR];
    let hello = Message::Hello(Box::new(toy::hello(toy::PRIMARY)));
    step(&mut backup, &encode(&hello));
    for frame in toy::frames(&toy::header(), &toy::entries(), 4) {
        step(&mut backup, &frame);
        backup.extend([GUEST, TICK, 3]);
    }
    let heartbeat = Message::Heartbeat {
        next_seq: toy::entries().len() as u64,
        released: 5,
    };
    step(&mut backup, &encode(&heartbeat));
    let mut taken_over = backup.clone();
    // It takes over: suspicion, a claim that is won, the rest of the log, then its own entries.
    taken_over.extend([CLOSED, TICK, 50, TICK, 250, 0, 0, GUEST, GUEST, GUEST]);
    // Found once: it takes over a machine that goes off twice.
    let off = |ordinal| Entry::Mark {
        at: toy::at(5),
        ordinal,
        kind: MarkKind::Power,
        digest: digest(toy::OUTPUT),
    };
    let mut twice_off = vec![BACKUP | REPAIR];
    step(&mut twice_off, &encode(&hello));
    for frame in toy::frames(&toy::header(), &[off(0), off(1)], 2) {
        step(&mut twice_off, &frame);
    }
    twice_off.extend([CLOSED, 0, 0, GUEST, TICK, 5]);
    let mut over = backup.clone();
    step(&mut over, &encode(&Message::Bye(Bye::PoweredOff)));
    over.extend([GUEST, TICK, 5, CLOSED]);

    let mut primary = vec![REPAIR];
    let welcome = Message::Welcome(Box::new(toy::hello(toy::BACKUP)));
    step(&mut primary, &encode(&welcome));
    for n in 1..10u64 {
        primary.extend([GUEST, GUEST, TICK, 3]);
        let ack = Ack {
            received: n * 4,
            executed: n * 4 - 2,
            executed_count: n * 2000,
        };
        step(&mut primary, &encode(&Message::Ack(ack)));
    }
    let mut alone = primary.clone();
    alone.extend([FENCED, TICK, 9, 0, 0, GUEST, GUEST, CONNECTED, TICK, 9]);
    let mut refused = primary.clone();
    let reason = "the replay diverged".to_owned();
    step(&mut refused, &encode(&Message::Refuse { reason }));
    vec![backup, taken_over, twice_off, over, primary, alone, refused]
}
