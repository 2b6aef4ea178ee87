//! The simulated world: time, links, faults, and what arrives where.

mod links;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use super::client::Clients;
use super::disk::{DiskRequest, DiskServer};
use super::driver::{Input, Node};
use super::guest::{CLIENTS, Reply};
use super::rng::Rng;
use super::{Mutation, Options, Violation};
use crate::claim::{ClaimAnswer, ClaimRequest};
use crate::config::Config;
use crate::ids::ReplicaId;
use crate::register::Record;
use crate::replica::Phase;
use crate::view::View;

pub(super) const US: u64 = 1_000;
pub(super) const MS: u64 = 1_000_000;
/// Faults happen before this; then everything heals.
const FAULTS_END_NS: u64 = 300 * MS;
/// How long service may take to be back after that.
const HEAL_BOUND_NS: u64 = 1000 * MS;
const SLICE_NS: u64 = MS;
const RETRANSMIT_NS: u64 = 15 * MS;
const REOPEN_NS: u64 = 10 * MS;
const ASK_TIMEOUT_NS: u64 = 12 * MS;
/// The disk server's place among the links' ends; replicas are 0 and 1.
pub(super) const SERVER: usize = 2;

/// Bounds that fit the simulated times.
pub(super) fn config() -> Config {
    Config {
        heartbeat_ns: 5 * MS,
        suspect_after_ns: 25 * MS,
        start_wait_ns: 150 * MS,
        claim_retry_ns: 10 * MS,
        flush_after_ns: MS,
        batch_bytes: 512,
        progress_ns: 2 * MS,
        ack_interval_ns: 2 * MS,
        log_buffer_bytes: 4096,
        lag_target_ns: 10 * MS,
        lag_limit_ns: 40 * MS,
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Crash {
        node: usize,
    },
    /// SIGSTOP and SIGCONT.
    Pause {
        node: usize,
        ns: u64,
    },
    /// The channel breaks, perhaps in mid-frame; a side may not be told.
    CutChannel {
        told: [bool; 2],
    },
    /// Nothing gets through from one end to another; what was sent arrives late.
    Block {
        from: usize,
        to: usize,
        ns: u64,
    },
    CrashServer {
        ns: u64,
    },
    /// The replica executes this many instructions in a slice.
    Slow {
        node: usize,
        steps: u64,
        ns: u64,
    },
}

#[derive(Debug)]
pub(super) enum Happening {
    Wake {
        node: usize,
    },
    Arrive {
        node: usize,
        input: Input,
    },
    Claim {
        node: usize,
        request: ClaimRequest,
        ask: u64,
    },
    AskTimeout {
        node: usize,
        ask: u64,
    },
    Persisted {
        run: u64,
    },
    DiskArrive {
        run: u64,
        request: DiskRequest,
    },
    DiskExecuted {
        run: u64,
        request: DiskRequest,
    },
    ServerUp,
    NormalSpeed {
        node: usize,
    },
    Request {
        client: usize,
    },
    Reply(Reply),
    Reopen,
    Fault(Fault),
    Heal,
}

struct Scheduled {
    at_ns: u64,
    order: u64,
    what: Happening,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest, for the heap.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ns, other.order).cmp(&(self.at_ns, self.order))
    }
}

/// What a sound run did; for statistics, and to show that the faults bite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub acknowledged: u64,
    /// The backup went live.
    pub failovers: u64,
    /// The primary went on alone.
    pub alone: u64,
    /// Replicas that asked too late and halted.
    pub lost: u64,
    pub crashes: u64,
    pub asks: u64,
    pub asks_unanswered: u64,
    pub entries_replayed: u64,
    /// Disk reads that the backup executed itself.
    pub backup_reads: u64,
    /// Such reads that carried their data because of a hazard.
    pub carried: u64,
    pub stalls: u64,
    /// Stretches without an exit that were closed by state.
    pub stretches: u64,
    /// Failovers in the middle of one's entries.
    pub unfinished: u64,
    /// Runs in which both replicas were gone in the end.
    pub dead: u64,
}

impl Report {
    /// Sums up runs.
    pub fn add(&mut self, other: &Report) {
        self.acknowledged += other.acknowledged;
        self.failovers += other.failovers;
        self.alone += other.alone;
        self.lost += other.lost;
        self.crashes += other.crashes;
        self.asks += other.asks;
        self.asks_unanswered += other.asks_unanswered;
        self.entries_replayed += other.entries_replayed;
        self.backup_reads += other.backup_reads;
        self.carried += other.carried;
        self.stalls += other.stalls;
        self.stretches += other.stretches;
        self.unfinished += other.unfinished;
        self.dead += other.dead;
    }
}

pub struct World {
    pub(super) seed: u64,
    pub(super) options: Options,
    pub(super) rng: Rng,
    pub(super) now: u64,
    queue: BinaryHeap<Scheduled>,
    order: u64,
    pub(super) nodes: [Node; 2],
    pub(super) server: DiskServer,
    pub(super) clients: Clients,
    /// The channel's present connection, and whether its bytes still arrive.
    channel: u64,
    channel_dead: bool,
    /// Per (from, to): what is sent arrives after this.
    blocked_until: [[u64; 3]; 3],
    /// Per (from, to): the channel's last arrival, which later ones follow.
    fifo: [[u64; 3]; 3],
    disk_fifo: [[u64; 3]; 3],
    next_ask: u64,
    answered_asks: [u64; 2],
    /// Which replica the switch believes to be live, and its view.
    route: (usize, u64),
    pub(super) loss_per_mille: u64,
    /// The backup executes disk reads itself.
    pub(super) backup_reads: bool,
    /// The engine's positions are exits.
    pub(super) stretches: bool,
    /// Who was live in a view.
    pub(super) live: BTreeMap<u64, ReplicaId>,
    /// The digest of each output that left, by its ordinal.
    pub(super) emitted: BTreeMap<u64, u32>,
    pub(super) report: Report,
}

impl World {
    pub fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let view = View {
            number: 1,
            primary: ReplicaId(1),
            backup: Some(ReplicaId(2)),
        };
        let mut server = DiskServer::new(Record {
            view,
            claimed: false,
            on: true,
        });
        server.no_fencing = options.mutation == Mutation::NoFencing;
        server.no_persist = options.mutation == Mutation::NoPersist;
        let nodes = [0, 1].map(|index| Node::new(index, view, &mut rng));
        let backup_reads = rng.chance(500) || options.mutation == Mutation::NoHazards;
        let needs_stretches = [Mutation::PagesAtOnce, Mutation::RunIntoStretch];
        let stretches = rng.chance(500) || needs_stretches.contains(&options.mutation);
        let mut world = Self {
            seed,
            options,
            now: 0,
            queue: BinaryHeap::new(),
            order: 0,
            nodes,
            server,
            clients: Clients::new(),
            channel: 0,
            channel_dead: true,
            blocked_until: [[0; 3]; 3],
            fifo: [[0; 3]; 3],
            disk_fifo: [[0; 3]; 3],
            next_ask: 0,
            answered_asks: [0; 2],
            route: (0, 1),
            loss_per_mille: *rng.pick(&[0, 10, 100]),
            backup_reads,
            stretches,
            live: BTreeMap::from([(1, ReplicaId(1))]),
            emitted: BTreeMap::new(),
            report: Report::default(),
            rng,
        };
        world.plan();
        world
    }

    /// What will happen by itself: waking replicas, requests, faults.
    fn plan(&mut self) {
        for node in 0..2 {
            let at = self.rng.range(0, SLICE_NS);
            self.at(at, Happening::Wake { node });
        }
        self.at(0, Happening::Reopen);
        for client in 0..CLIENTS {
            self.at(MS, Happening::Request { client });
        }
        for _ in 0..self.rng.range(0, 6) {
            let at = self.rng.range(0, FAULTS_END_NS);
            let fault = self.fault();
            self.at(at, Happening::Fault(fault));
        }
        self.at(FAULTS_END_NS, Happening::Heal);
    }

    fn fault(&mut self) -> Fault {
        let rng = &mut self.rng;
        let node = rng.range(0, 2) as usize;
        let ns = rng.range(MS, 120 * MS);
        match rng.range(0, 16) {
            0..3 => Fault::Crash { node },
            3..6 => Fault::Pause { node, ns },
            6..8 => Fault::CutChannel {
                told: [rng.chance(700), rng.chance(700)],
            },
            8..10 => Fault::Block {
                from: node,
                to: 1 - node,
                ns,
            },
            10..12 => Fault::Block {
                from: node,
                to: SERVER,
                ns,
            },
            12..14 => Fault::Block {
                from: SERVER,
                to: node,
                ns,
            },
            14 => Fault::CrashServer { ns },
            _ => Fault::Slow {
                node,
                steps: rng.range(0, 6),
                ns,
            },
        }
    }

    pub(super) fn at(&mut self, at_ns: u64, what: Happening) {
        self.order += 1;
        let order = self.order;
        self.queue.push(Scheduled {
            at_ns: at_ns.max(self.now),
            order,
            what,
        });
    }

    fn after(&mut self, ns: u64, what: Happening) {
        self.at(self.now + ns, what);
    }

    /// The time that one message takes: mostly short, now and then long.
    fn delay(&mut self) -> u64 {
        if self.rng.chance(10) {
            self.rng.range(MS, 15 * MS)
        } else {
            self.rng.range(30 * US, 600 * US)
        }
    }

    pub fn run(mut self) -> Result<Report, Violation> {
        match self.run_to_end() {
            Ok(()) => Ok(self.report),
            Err(what) => Err(Violation {
                seed: self.seed,
                mutation: self.options.mutation,
                at_ns: self.now,
                what,
            }),
        }
    }

    fn run_to_end(&mut self) -> Result<(), String> {
        let mut served_until = [0; CLIENTS];
        while let Some(Scheduled { at_ns, what, .. }) = self.queue.pop() {
            self.now = at_ns;
            if matches!(what, Happening::Heal) {
                self.heal();
                served_until = [0, 1, 2].map(|client| self.clients.current(client) + 2);
                continue;
            }
            self.happen(what)?;
            let all_served =
                (0..CLIENTS).all(|client| self.clients.current(client) >= served_until[client]);
            let healed = self.now > FAULTS_END_NS;
            if healed && (all_served || self.now > FAULTS_END_NS + HEAL_BOUND_NS) {
                return self.conclude(all_served);
            }
        }
        self.conclude(false)
    }

    fn conclude(&mut self, all_served: bool) -> Result<(), String> {
        self.report.acknowledged = self.clients.acknowledged();
        self.clients.check_disk(&self.server.blocks)?;
        // One that does not know yet that the other has won may lack what happened since.
        let primary = self.server.stored.view.primary;
        let live = |node: &&Node| node.is_live() && node.id == primary;
        for node in self.nodes.iter().filter(live) {
            self.clients.check_history(&node.guest.history)?;
        }
        if all_served {
            return Ok(());
        }
        let candidate = |node: &&Node| {
            node.runs() && !matches!(node.replica.phase(), Phase::Waiting | Phase::Halted)
        };
        if let Some(node) = self.nodes.iter().find(candidate) {
            let phase = node.replica.phase();
            return Err(format!(
                "no service, though replica {} is there, {phase:?}",
                node.id
            ));
        }
        self.check_death()?;
        self.report.dead = 1;
        Ok(())
    }

    /// Nobody is left to serve. That must have a reason: the one that has crashed had won before, or
    /// it crashed before the other had a machine to go on with.
    fn check_death(&self) -> Result<(), String> {
        let Some(crashed) = self.nodes.iter().find(|node| node.crashed) else {
            return Err("both replicas halted and none had crashed".into());
        };
        let won = self.server.stored.claimed && self.server.stored.view.primary == crashed.id;
        let alone = self
            .nodes
            .iter()
            .any(|node| node.replica.phase() == Phase::Waiting);
        if won || alone {
            return Ok(());
        }
        Err(format!(
            "replica {} crashed and the other halted all the same",
            crashed.id
        ))
    }

    fn heal(&mut self) {
        self.blocked_until = [[0; 3]; 3];
        self.loss_per_mille = 0;
        for node in 0..2 {
            self.nodes[node].paused_until = 0;
            self.nodes[node].steps = Node::STEPS;
        }
        if !self.server.up {
            self.at(self.now, Happening::ServerUp);
        }
    }

    fn happen(&mut self, what: Happening) -> Result<(), String> {
        match what {
            Happening::Wake { node } => self.wake(node)?,
            Happening::Arrive { node, input } => self.arrive(node, input)?,
            Happening::Claim { node, request, ask } => self.claim_arrives(node, request, ask)?,
            Happening::AskTimeout { node, ask } if self.answered_asks[node] < ask => {
                self.report.asks_unanswered += 1;
                self.arrive(node, Input::Register(ClaimAnswer::Unknown))?;
            }
            Happening::AskTimeout { .. } => {}
            Happening::Persisted { run } if run == self.server.run => {
                let failed = self.rng.chance(50) && self.now < FAULTS_END_NS;
                let acts = self.server.persisted(failed)?;
                self.act(acts);
            }
            Happening::Persisted { .. } => {}
            Happening::DiskArrive { run, request } => self.disk_arrives(run, request),
            Happening::DiskExecuted { run, request } if run == self.server.run => {
                let (reply, acts) = self.server.executed(request)?;
                self.act(acts);
                self.disk_reply(request.node, reply);
            }
            Happening::DiskExecuted { .. } => {}
            Happening::ServerUp if !self.server.up => {
                self.trace("the disk server is up");
                self.server.restart();
                let run = self.server.run;
                for node in 0..2 {
                    self.after(
                        US,
                        Happening::Arrive {
                            node,
                            input: Input::DiskReset { run },
                        },
                    );
                }
            }
            Happening::ServerUp => {}
            Happening::NormalSpeed { node } => self.nodes[node].steps = Node::STEPS,
            Happening::Request { client } => self.request(client),
            Happening::Reply(reply) => self.clients.answered(reply)?,
            Happening::Reopen => self.reopen(),
            Happening::Fault(fault) => self.strike(fault)?,
            Happening::Heal => unreachable!("taken by the caller"),
        }
        Ok(())
    }

    fn wake(&mut self, node: usize) -> Result<(), String> {
        if !self.nodes[node].runs() {
            return Ok(());
        }
        let paused_until = self.nodes[node].paused_until;
        if paused_until > self.now {
            self.at(self.now + SLICE_NS, Happening::Wake { node });
            return Ok(());
        }
        self.slice(node)?;
        let next = self.rng.range(SLICE_NS * 8 / 10, SLICE_NS * 12 / 10);
        self.after(next, Happening::Wake { node });
        Ok(())
    }

    fn arrive(&mut self, node: usize, input: Input) -> Result<(), String> {
        if !self.nodes[node].runs() {
            return Ok(());
        }
        self.nodes[node].inbox.push_back(input);
        if self.nodes[node].paused_until <= self.now {
            self.read_inbox(node)
        } else {
            Ok(())
        }
    }

    fn strike(&mut self, fault: Fault) -> Result<(), String> {
        self.trace(format!("{fault:?}"));
        match fault {
            Fault::Crash { node } => {
                // One at most: two crashes end the service by definition.
                if self.nodes.iter().all(Node::runs) {
                    self.report.crashes += 1;
                    self.nodes[node].crashed = true;
                    self.close_channel(node);
                }
            }
            Fault::Pause { node, ns } => self.nodes[node].paused_until = self.now + ns,
            Fault::CutChannel { told } => {
                self.channel_dead = true;
                let channel = self.channel;
                for node in (0..2).filter(|node| told[*node]) {
                    let delay = self.delay();
                    let input = Input::Closed { channel };
                    self.after(delay, Happening::Arrive { node, input });
                }
            }
            Fault::Block { from, to, ns } => self.blocked_until[from][to] = self.now + ns,
            Fault::CrashServer { ns } => {
                if self.server.up {
                    self.server.crash(&mut self.rng)?;
                    self.after(ns, Happening::ServerUp);
                }
            }
            Fault::Slow { node, steps, ns } => {
                self.nodes[node].steps = steps;
                self.after(ns, Happening::NormalSpeed { node });
            }
        }
        Ok(())
    }

    pub(super) fn trace(&self, what: impl AsRef<str>) {
        if self.options.trace {
            println!("{:10.3} ms  {}", self.now as f64 / 1e6, what.as_ref());
        }
    }
}
