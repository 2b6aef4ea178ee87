//! The simulated clients: one request at a time, retransmitted until answered, and the check of
//! what they were told.

use std::collections::BTreeMap;

use super::guest::{CLIENTS, Reply};

#[derive(Debug, Default)]
pub struct Clients {
    /// The number of the request that each client waits for.
    current: [u64; CLIENTS],
    /// Every answer, by (client, number).
    answers: BTreeMap<(usize, u64), Reply>,
    /// Which request took which place in the order of all.
    orders: BTreeMap<u64, (usize, u64)>,
}

impl Clients {
    pub fn new() -> Self {
        Self {
            current: [1; CLIENTS],
            ..Self::default()
        }
    }

    pub fn current(&self, client: usize) -> u64 {
        self.current[client]
    }

    pub fn acknowledged(&self) -> u64 {
        self.answers.len() as u64
    }

    pub fn answered(&mut self, reply: Reply) -> Result<(), String> {
        let key = (reply.client, reply.number);
        if let Some(before) = self.answers.get(&key) {
            if *before != reply {
                return Err(format!("a client was told {before:?} and then {reply:?}"));
            }
            return Ok(());
        }
        if reply.number != self.current[reply.client] {
            return Err(format!("{reply:?} answers a request that was not made"));
        }
        if let Some(other) = self.orders.insert(reply.order, key) {
            return Err(format!(
                "{reply:?} and the answer to {other:?} have the same place"
            ));
        }
        self.answers.insert(key, reply);
        self.current[reply.client] += 1;
        Ok(())
    }

    /// Whether a replica that is live holds everything that clients were told.
    pub fn check_history(&self, history: &[(usize, u64)]) -> Result<(), String> {
        for (order, request) in &self.orders {
            if history.get(*order as usize) != Some(request) {
                let (client, number) = request;
                return Err(format!(
                    "request {number} of client {client} was acknowledged as number {order} of \
                     all and is lost"
                ));
            }
        }
        Ok(())
    }

    /// Whether the disk holds what clients were told is written.
    pub fn check_disk(&self, blocks: &[u64; CLIENTS]) -> Result<(), String> {
        for (client, block) in blocks.iter().enumerate() {
            let told = self.current[client] - 1;
            if *block < told {
                return Err(format!(
                    "write {told} of client {client} was acknowledged, the disk has {block}"
                ));
            }
        }
        Ok(())
    }
}
