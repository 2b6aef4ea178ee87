//! The virtio console (virtio 1.2, 5.3) with one port, hvc0.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use vm_memory::GuestMemory;

use super::queue::{Queue, QueueError, copy_in, copy_out, total};
use crate::events::{ConsolePort, INPUT_CHUNK, Outputs};

/// Input to the guest, output from the guest.
pub const QUEUE_SIZES: [u16; 2] = [64, 64];
pub const INPUT: usize = 0;
/// Input bytes that wait for the guest's buffers; more are dropped and counted.
const BACKLOG: usize = 64 << 10;
/// The longest output buffer.
const MAX_WRITE: u64 = 1 << 20;

/// The console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    input: VecDeque<u8>,
    dropped: u64,
}

impl Console {
    pub fn new() -> Self {
        Self {
            input: VecDeque::new(),
            dropped: 0,
        }
    }

    pub fn can_receive(&self) -> bool {
        self.input.len() + INPUT_CHUNK <= BACKLOG
    }

    /// Input bytes lost because nobody read them.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Keeps bytes for the input queue.
    pub fn receive(&mut self, bytes: &[u8]) {
        let taken = bytes.len().min(BACKLOG.saturating_sub(self.input.len()));
        self.input.extend(&bytes[..taken]);
        self.dropped += (bytes.len() - taken) as u64;
    }

    pub fn process<M: GuestMemory>(
        &mut self,
        index: usize,
        queue: &mut Queue,
        mem: &M,
        outputs: &mut Outputs,
    ) -> Result<(), QueueError> {
        if index == INPUT {
            self.fill(queue, mem)
        } else {
            Self::drain(queue, mem, outputs)
        }
    }

    fn fill<M: GuestMemory>(&mut self, queue: &mut Queue, mem: &M) -> Result<(), QueueError> {
        while !self.input.is_empty() {
            let Some(chain) = queue.pop(mem)? else { break };
            if chain.writable.is_empty() || !chain.readable.is_empty() {
                return Err(QueueError::Request(
                    "console input buffer not for the device to fill",
                ));
            }
            let len = total(&chain.writable).min(self.input.len() as u64);
            let bytes: Vec<u8> = self.input.drain(..len as usize).collect();
            copy_in(mem, &chain.writable, &bytes)?;
            queue.push_used(mem, chain.head, len as u32)?;
        }
        Ok(())
    }

    fn drain<M: GuestMemory>(
        queue: &mut Queue,
        mem: &M,
        outputs: &mut Outputs,
    ) -> Result<(), QueueError> {
        while let Some(chain) = queue.pop(mem)? {
            if !chain.writable.is_empty() || total(&chain.readable) > MAX_WRITE {
                return Err(QueueError::Request(
                    "console output too long or not readable",
                ));
            }
            outputs.console(ConsolePort::Virtio, &copy_out(mem, &chain.readable)?);
            queue.push_used(mem, chain.head, 0)?;
        }
        Ok(())
    }
}
