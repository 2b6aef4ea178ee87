//! The virtio entropy device (virtio 1.2, 5.4): a ChaCha20 stream from the machine's seed, so that
//! primary and backup give the same bytes and the log carries none.

use rand::RngCore;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use super::queue::{Queue, QueueError, copy_in, total};

pub const QUEUE_SIZES: [u16; 1] = [64];
/// The most bytes given for one request; a driver asks again for more.
const MAX_REQUEST: u64 = 4096;

/// The entropy device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rng {
    stream: ChaCha20Rng,
}

impl Rng {
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            stream: ChaCha20Rng::from_seed(seed),
        }
    }

    pub fn process<M: GuestMemory>(
        &mut self,
        queue: &mut Queue,
        mem: &M,
    ) -> Result<(), QueueError> {
        while let Some(chain) = queue.pop(mem)? {
            if !chain.readable.is_empty() {
                return Err(QueueError::Request(
                    "entropy request with data for the device",
                ));
            }
            let len = total(&chain.writable).min(MAX_REQUEST);
            let mut bytes = vec![0; len as usize];
            self.stream.fill_bytes(&mut bytes);
            copy_in(mem, &chain.writable, &bytes)?;
            queue.push_used(mem, chain.head, len as u32)?;
        }
        Ok(())
    }
}
