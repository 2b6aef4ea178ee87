//! Which operation a client does next: a function of the seed, so that a load
//! can be repeated.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Options;
use crate::history::Op;

/// Keys shared by all clients, of each kind.
const SHARED_KEYS: u32 = 3;
/// After how many operations of a client an appended-to key is left for a new
/// one, so that values stay short.
const APPEND_GENERATION: u64 = 256;

/// The operations of one client.
pub struct Plan {
    rng: ChaCha8Rng,
    client: u32,
    prefix: String,
    pipeline: usize,
    value_bytes: usize,
    count: u64,
}

impl Plan {
    /// The plan of client number `client`.
    pub fn new(options: &Options, client: u32) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(u64::from(client));
        Self {
            rng,
            client,
            prefix: options.prefix.clone(),
            pipeline: options.pipeline.max(1),
            value_bytes: options.value_bytes,
            count: 0,
        }
    }

    /// The operations of the next request: mostly one, sometimes a pipeline.
    pub fn next_batch(&mut self) -> Vec<(String, Op)> {
        let count = if self.pipeline > 1 && self.rng.random_ratio(1, 4) {
            self.rng.random_range(2..=self.pipeline)
        } else {
            1
        };
        (0..count).map(|_| self.next_op()).collect()
    }

    fn next_op(&mut self) -> (String, Op) {
        self.count += 1;
        // Half of the operations are on keys that others use too.
        let owner = if self.rng.random() {
            format!("own{}", self.client)
        } else {
            format!("all{}", self.rng.random_range(0..SHARED_KEYS))
        };
        let prefix = &self.prefix;
        let counter = format!("{prefix}n:{owner}");
        let register = format!("{prefix}r:{owner}");
        let list = format!("{prefix}a:{owner}:{}", self.count / APPEND_GENERATION);
        let unique = format!("{}.{}", self.client, self.count);
        match self.rng.random_range(0..100) {
            0..30 => (counter, Op::Incr),
            30..40 => (counter, Op::Get),
            40..60 => (register, Op::Set(self.padded(unique))),
            60..75 => (register, Op::Get),
            75..92 => (list, Op::Append(unique + ";")),
            _ => (list, Op::Get),
        }
    }

    fn padded(&self, mut value: String) -> String {
        value.push(':');
        while value.len() < self.value_bytes {
            value.push('x');
        }
        value
    }
}
