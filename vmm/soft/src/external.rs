//! What crosses the engine's boundary in the middle of a run: reads of ports and of memory outside
//! RAM, and writes to them.
//!
//! A read stops the instruction; when the answer is there the instruction is run again from its
//! start, and reads that were answered before get the same answers in order. So an instruction must
//! commit nothing before its last read. Writes are queued while the instruction runs and come out
//! as exits once it has retired.

use std::collections::VecDeque;

use engine::{Boundary, PendingRead};

use crate::cpu::{Cpu, attention};
use crate::stop::{Stop, StopReason};

/// Reads of the current instruction and writes of the last one.
#[derive(Debug, Default)]
pub struct External {
    answers: Vec<(PendingRead, u64)>,
    next: usize,
    exits: VecDeque<Boundary>,
}

impl External {
    /// Before the instruction is run (again): its reads start from the first answer.
    pub fn restart(&mut self) {
        self.next = 0;
    }

    /// The instruction has retired or faulted: its answers are used up.
    pub fn finish(&mut self) {
        self.answers.clear();
        self.next = 0;
    }

    /// Adds the answer to the read that stopped the instruction.
    pub fn answer(&mut self, read: PendingRead, value: u64) {
        self.answers.push((read, value));
    }

    /// The next queued write.
    pub fn next_exit(&mut self) -> Option<Boundary> {
        self.exits.pop_front()
    }

    /// Forgets everything: another state is set.
    pub fn clear(&mut self) {
        self.finish();
        self.exits.clear();
    }
}

impl Cpu {
    /// Reads a port or memory outside RAM: the recorded answer, or stops for one.
    pub fn external_read(&mut self, read: PendingRead) -> Result<u64, Stop> {
        match self.external.answers.get(self.external.next) {
            Some((asked, value)) if *asked == read => {
                self.external.next += 1;
                Ok(*value)
            }
            _ => Err(self.stop_for(StopReason::Read(read))),
        }
    }

    /// Queues a write (`IoWrite` or `MmioWrite`); it becomes an exit when the instruction has
    /// retired. Only while `stepping`, or in an op that ends its block.
    pub fn external_write(&mut self, write: Boundary) {
        self.external.exits.push_back(write);
        self.attention |= attention::EXIT;
    }
}
