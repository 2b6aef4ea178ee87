//! Delivery of exceptions and interrupts.

use crate::cpu::{Cpu, attention};
use crate::stop::{Exception, Stop};

impl Cpu {
    /// Delivers a fault with `cpu.rip` at the instruction that raised it. Called with `stepping`
    /// set. Faults on the way become double and triple faults here; stops only for a read outside
    /// RAM, and is then called again with the answer.
    pub fn deliver(&mut self, _exception: Exception) -> Result<(), Stop> {
        self.shutdown = true;
        self.attention |= attention::SHUTDOWN;
        Ok(())
    }

    /// An instruction that began with RFLAGS.TF set has retired: delivers #DB as a trap, with DR6.BS
    /// set. Faults on the way as in `deliver`.
    pub fn single_stepped(&mut self) {}

    /// Delivers an external interrupt before the next instruction; wakes from HLT.
    pub fn interrupt(&mut self, _vector: u8) -> Result<(), Stop> {
        Ok(())
    }
}
