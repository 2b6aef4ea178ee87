//! What lies between the replicas, the disk server and the clients: messages under way.

use bytes::Bytes;

use super::{ASK_TIMEOUT_NS, FAULTS_END_NS, HEAL_BOUND_NS, Happening, MS, REOPEN_NS};
use super::{RETRANSMIT_NS, SERVER, US, World};
use crate::claim::{ClaimAnswer, ClaimRequest};
use crate::register::Answer;
use crate::replica::Phase;
use crate::sim::Mutation;
use crate::sim::disk::{Act, DiskReply, DiskRequest};
use crate::sim::driver::{Input, Node};
use crate::sim::guest::{Reply, encode_request};

impl World {
    // The logging channel.

    /// Replicas that have not yet shaken hands connect again.
    pub(super) fn reopen(&mut self) {
        let phases = [0, 1].map(|node: usize| self.nodes[node].replica.phase());
        let unconnected = self.channel_dead || self.nodes.iter().all(|node| node.channel.is_none());
        let both = self.nodes.iter().all(Node::runs);
        if phases == [Phase::Starting, Phase::Waiting] && both && unconnected {
            self.channel += 1;
            self.channel_dead = false;
            self.fifo = [[0; 3]; 3];
            for node in 0..2 {
                let delay = self.delay();
                let at = self.now + delay;
                self.fifo[1 - node][node] = at;
                let input = Input::Opened {
                    channel: self.channel,
                };
                self.at(at, Happening::Arrive { node, input });
            }
        }
        if self.now < FAULTS_END_NS + HEAL_BOUND_NS {
            self.after(REOPEN_NS, Happening::Reopen);
        }
    }

    /// Sends bytes to the other replica, in pieces as a network may.
    pub(in crate::sim) fn send(&mut self, node: usize, mut bytes: Bytes) {
        let Some(channel) = self.nodes[node].channel else {
            return;
        };
        while !bytes.is_empty() {
            let len = match self.rng.chance(200) {
                true => self.rng.range(1, bytes.len() as u64 + 1) as usize,
                false => bytes.len(),
            };
            let bytes = bytes.split_to(len);
            self.pass(node, Input::Bytes { channel, bytes });
        }
    }

    pub(in crate::sim) fn close_channel(&mut self, node: usize) {
        if let Some(channel) = self.nodes[node].channel.take() {
            self.pass(node, Input::Closed { channel });
        }
    }

    pub(super) fn pass(&mut self, from: usize, input: Input) {
        let to = 1 - from;
        let at = (self.now + self.delay()).max(self.blocked_until[from][to]);
        let at = at.max(self.fifo[from][to]);
        self.fifo[from][to] = at;
        self.at(at, Happening::Arrive { node: to, input });
    }

    /// Whether what was sent on this connection still arrives.
    pub(in crate::sim) fn is_channel(&self, channel: u64) -> bool {
        channel == self.channel && !self.channel_dead
    }

    // The view register.

    pub(in crate::sim) fn ask(&mut self, node: usize, request: ClaimRequest) {
        self.report.asks += 1;
        self.next_ask += 1;
        let ask = self.next_ask;
        self.after(ASK_TIMEOUT_NS, Happening::AskTimeout { node, ask });
        if let Some(at) = self.datagram(node, SERVER) {
            self.at(at, Happening::Claim { node, request, ask });
        }
    }

    /// When a question or an answer arrives, if it does.
    pub(super) fn datagram(&mut self, from: usize, to: usize) -> Option<u64> {
        let blocked = self.blocked_until[from][to];
        let lost =
            self.rng.chance(self.loss_per_mille) || blocked > self.now && self.rng.chance(500);
        let at = (self.now + self.delay()).max(blocked);
        (!lost).then_some(at)
    }

    pub(super) fn claim_arrives(
        &mut self,
        node: usize,
        request: ClaimRequest,
        ask: u64,
    ) -> Result<(), String> {
        if !self.server.up {
            return Ok(());
        }
        // A server that is asked again meanwhile answers the latest.
        self.nodes[node].ask = self.nodes[node].ask.max(ask);
        let acts = self.server.claim(node, request.from_view, request.claimant);
        self.act(acts);
        Ok(())
    }

    pub(super) fn act(&mut self, acts: Vec<Act>) {
        for act in acts {
            match act {
                Act::Persist => {
                    let delay = self.rng.range(100 * US, 8 * MS);
                    let run = self.server.run;
                    self.after(delay, Happening::Persisted { run });
                }
                Act::Answer { node, answer } => self.answer(node, answer),
            }
        }
    }

    pub(super) fn answer(&mut self, node: usize, answer: Answer) {
        self.trace(format!(
            "the register answers replica {}: {answer:?}",
            node + 1
        ));
        let answer = match answer {
            Answer::Won(view) => ClaimAnswer::Won(view),
            Answer::Lost(view) => ClaimAnswer::Lost(view),
            Answer::Refused(reason) => ClaimAnswer::Refused(reason),
            Answer::Unavailable(_) | Answer::Record(_) => return,
        };
        if let Some(at) = self.datagram(SERVER, node) {
            self.answered_asks[node] = self.answered_asks[node].max(self.nodes[node].ask);
            self.at(
                at,
                Happening::Arrive {
                    node,
                    input: Input::Register(answer),
                },
            );
        }
    }

    // The disk.

    pub(in crate::sim) fn disk(&mut self, request: DiskRequest) {
        let from = request.node;
        let at = (self.now + self.delay()).max(self.blocked_until[from][SERVER]);
        let at = at.max(self.disk_fifo[from][SERVER]);
        self.disk_fifo[from][SERVER] = at;
        let run = self.server.run;
        self.at(at, Happening::DiskArrive { run, request });
    }

    pub(super) fn disk_arrives(&mut self, run: u64, request: DiskRequest) {
        if !self.server.up || run != self.server.run {
            return;
        }
        if self.server.arrived(request) {
            let delay = self.rng.range(50 * US, 3 * MS);
            self.after(delay, Happening::DiskExecuted { run, request });
        } else {
            let (id, view) = (request.id, request.view);
            self.disk_reply(request.node, DiskReply::Fenced { id, view });
        }
    }

    pub(super) fn disk_reply(&mut self, node: usize, reply: DiskReply) {
        let delay = match self.options.mutation {
            Mutation::StaleCompletions => self.rng.range(MS, 15 * MS),
            _ => self.delay(),
        };
        let at = (self.now + delay).max(self.blocked_until[SERVER][node]);
        let run = self.server.run;
        self.at(
            at,
            Happening::Arrive {
                node,
                input: Input::Disk { run, reply },
            },
        );
    }

    // Clients and the switch.

    pub(super) fn request(&mut self, client: usize) {
        let number = self.clients.current(client);
        if !self.rng.chance(self.loss_per_mille) {
            let bytes = encode_request(client, number);
            let delay = self.delay();
            let node = self.route.0;
            self.after(
                delay,
                Happening::Arrive {
                    node,
                    input: Input::Frame(bytes),
                },
            );
        }
        let wait = self.rng.range(RETRANSMIT_NS / 2, RETRANSMIT_NS);
        self.after(wait, Happening::Request { client });
    }

    pub(in crate::sim) fn reply(&mut self, reply: Reply) {
        if !self.rng.chance(self.loss_per_mille) {
            let delay = self.delay();
            self.after(delay, Happening::Reply(reply));
        }
    }

    /// A replica announces itself: frames go to it from now on.
    pub(in crate::sim) fn announce(&mut self, node: usize, view: u64) {
        if view > self.route.1 {
            self.route = (node, view);
        }
    }
}
