//! A simulated server with concurrent clients: every operation takes effect
//! at a known moment between its request and its answer, and one fault may be
//! put in.

use std::collections::BTreeMap;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::client::Options;
use crate::client::plan::Plan;
use crate::history::{Answer, Event, History, Op};

/// What to simulate.
pub struct Setup {
    pub seed: u64,
    pub clients: u32,
    /// Operations of all clients together, about.
    pub operations: usize,
    /// How often all connections break at once.
    pub breaks: usize,
}

impl Setup {
    pub fn small(seed: u64) -> Self {
        Self {
            seed,
            clients: 4,
            operations: 400,
            breaks: 0,
        }
    }
}

/// What the server does wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Goes back to an earlier state, with acknowledged INCRs or APPENDs undone.
    Rollback,
    /// Does an INCR or APPEND twice.
    Repeat,
    /// Answers a GET from a state that acknowledged writes have replaced.
    StaleRead,
    /// Answers a GET with a value that nobody wrote.
    Foreign,
}

/// An operation with the moment at which it takes effect; `None` if never.
struct Scheduled {
    event: Event,
    effect: Option<u64>,
}

/// Simulates a run; `None` if it has no place for the fault.
pub fn simulate(setup: &Setup, fault: Option<Fault>) -> Option<History> {
    let mut rng = ChaCha8Rng::seed_from_u64(setup.seed);
    let mut schedule = schedule(setup, &mut rng);
    let mut order: Vec<usize> = (0..schedule.len())
        .filter(|&i| schedule[i].effect.is_some())
        .collect();
    order.sort_by_key(|&i| schedule[i].effect);
    let mut server = Server::default();
    for &index in &order {
        let answer = server.apply(&schedule[index].event);
        if schedule[index].event.return_ns.is_some() {
            schedule[index].event.answer = Some(answer);
        }
    }
    if let Some(fault) = fault {
        inject(fault, &mut schedule, &order, &mut rng)?;
    }
    Some(History {
        events: schedule.into_iter().map(|s| s.event).collect(),
    })
}

/// Requests, effects and answers of all clients in time, and a last read of
/// every key.
fn schedule(setup: &Setup, rng: &mut ChaCha8Rng) -> Vec<Scheduled> {
    let address = "127.0.0.1:1".parse().expect("an address");
    let options = Options::new(address, setup.seed);
    let each = setup.operations / setup.clients as usize;
    let mut breaks: Vec<u64> = (0..setup.breaks)
        .map(|_| rng.random_range(100..each as u64 * 40))
        .collect();
    breaks.sort_unstable();
    let mut all: Vec<Scheduled> = Vec::new();
    let mut end = 0;
    for client in 0..setup.clients {
        let mut plan = Plan::new(&options, client);
        let mut now = rng.random_range(0..50);
        let mut count = 0;
        while count < each {
            let batch = plan.next_batch();
            count += batch.len();
            let connection = breaks.partition_point(|&b| b <= now);
            let broken = breaks.get(connection).copied().unwrap_or(u64::MAX);
            let invoke_ns = now;
            let (mut effect, mut back) = (now, now);
            let mut applied = true;
            for (key, op) in batch {
                effect += rng.random_range(1..40);
                back = back.max(effect) + rng.random_range(0..40);
                // What was in flight at the break has no answer, and may have
                // been done, up to some operation, at some time.
                applied &= back < broken || rng.random();
                all.push(Scheduled {
                    event: Event {
                        client,
                        connection: connection as u32,
                        key,
                        op,
                        invoke_ns,
                        return_ns: (back < broken).then_some(back),
                        answer: None,
                    },
                    effect: applied.then_some(effect),
                });
            }
            now = back.max(effect) + rng.random_range(0..30);
            if back >= broken {
                now = now.max(broken);
            }
            end = end.max(now);
        }
    }
    let mut keys: Vec<String> = all.iter().map(|s| s.event.key.clone()).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        end += 100;
        let event = Event {
            client: 0,
            connection: setup.breaks as u32,
            key,
            op: Op::Get,
            invoke_ns: end,
            return_ns: Some(end + 10),
            answer: None,
        };
        all.push(Scheduled {
            event,
            effect: Some(end + 5),
        });
    }
    all
}

/// A correct Redis, written apart from the checker's model.
#[derive(Default, Clone)]
struct Server {
    values: BTreeMap<String, String>,
}

impl Server {
    fn apply(&mut self, event: &Event) -> Answer {
        let value = self.values.get(&event.key);
        match &event.op {
            Op::Get => value.map_or(Answer::Nil, |v| Answer::Text(v.clone())),
            Op::Set(new) => {
                self.values.insert(event.key.clone(), new.clone());
                Answer::Ok
            }
            Op::Incr => {
                let number = value.map_or(0, |v| v.parse::<i64>().expect("a number")) + 1;
                self.values.insert(event.key.clone(), number.to_string());
                Answer::Integer(number)
            }
            Op::Append(token) => {
                let text = self.values.entry(event.key.clone()).or_default();
                text.push_str(token);
                Answer::Integer(text.len() as i64)
            }
        }
    }
}

/// Answers everything again from position `from` of `order` on, by `server`.
fn answer_again(schedule: &mut [Scheduled], order: &[usize], from: usize, server: &mut Server) {
    for &index in &order[from..] {
        let answer = server.apply(&schedule[index].event);
        if schedule[index].event.return_ns.is_some() {
            schedule[index].event.answer = Some(answer);
        }
    }
}

/// The server after the first `count` operations of `order`.
fn server_after(schedule: &[Scheduled], order: &[usize], count: usize) -> Server {
    let mut server = Server::default();
    for &index in &order[..count] {
        server.apply(&schedule[index].event);
    }
    server
}

fn inject(
    fault: Fault,
    schedule: &mut [Scheduled],
    order: &[usize],
    rng: &mut ChaCha8Rng,
) -> Option<()> {
    let is_counted =
        |s: &Scheduled| matches!(s.event.op, Op::Incr | Op::Append(_)) && s.event.answer.is_some();
    let is_read = |s: &Scheduled| s.event.op == Op::Get && s.event.answer.is_some();
    let places = |test: &dyn Fn(&Scheduled) -> bool| -> Vec<usize> {
        (0..order.len())
            .filter(|&at| test(&schedule[order[at]]))
            .collect()
    };
    match fault {
        Fault::Rollback => {
            // To just before an acknowledged write, some time after its answer.
            let at = *places(&is_counted).choose(rng)?;
            let answered = schedule[order[at]].event.return_ns?;
            let later =
                (at + 1..order.len()).find(|&i| schedule[order[i]].event.invoke_ns > answered)?;
            let mut server = server_after(schedule, order, at);
            answer_again(schedule, order, later, &mut server);
        }
        Fault::Repeat => {
            let at = *places(&is_counted).choose(rng)?;
            let mut server = server_after(schedule, order, at + 1);
            server.apply(&schedule[order[at]].event);
            answer_again(schedule, order, at + 1, &mut server);
        }
        Fault::StaleRead => {
            // A read that began after the answer to a write that changed what
            // it reads: give it what was there before that write.
            let mut reads = places(&is_read);
            while !reads.is_empty() {
                let at = reads.swap_remove(rng.random_range(0..reads.len()));
                let read = schedule[order[at]].event.clone();
                let write = (0..at).rev().find(|&i| {
                    let event = &schedule[order[i]].event;
                    event.key == read.key
                        && event.op.is_write()
                        && event.return_ns.is_some_and(|r| r < read.invoke_ns)
                });
                let Some(write) = write else { continue };
                let event = &schedule[order[write]].event;
                let replaced = (0..write).rev().find(|&i| {
                    let earlier = &schedule[order[i]].event;
                    earlier.key == read.key && earlier.op.is_write()
                });
                // Two SETs at the same time may have come the other way round,
                // and then the read would be right.
                let settled = replaced.is_none_or(|i| {
                    let earlier = &schedule[order[i]].event;
                    earlier.return_ns.is_some_and(|r| r < event.invoke_ns)
                });
                if matches!(event.op, Op::Set(_)) && !settled {
                    continue;
                }
                let mut before = server_after(schedule, order, write);
                let answer = before.apply(&read);
                schedule[order[at]].event.answer = Some(answer);
                return Some(());
            }
            return None;
        }
        Fault::Foreign => {
            let at = *places(&is_read).choose(rng)?;
            schedule[order[at]].event.answer = Some(Answer::Text("nobody's;".into()));
        }
    }
    Some(())
}
