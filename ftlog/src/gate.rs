//! The output gate: an output leaves when the backup has acknowledged its mark, not before.
//!
//! Outputs leave in the order in which the guest made them. Where the backup executes disk reads
//! itself, a write may in addition have to wait until the backup has *executed* an entry
//! ([`crate::ReadHazards`]).

use std::collections::VecDeque;

use crate::entry::MarkKind;

/// An output in the gate.
#[derive(Debug)]
pub struct Held<T> {
    /// Sequence number of the output's mark.
    pub mark_seq: u64,
    /// The backup must have executed entries below this; 0 if it need not.
    pub executed_before: u64,
    pub ordinal: u64,
    pub kind: MarkKind,
    /// Size, for the bound on what is held.
    pub bytes: usize,
    /// When it was made, local nanoseconds.
    pub since_ns: u64,
    pub output: T,
}

#[derive(Debug)]
pub struct OutputGate<T> {
    held: VecDeque<Held<T>>,
    held_bytes: usize,
    received: u64,
    executed: u64,
    /// Alone: nothing waits.
    open: bool,
}

impl<T> Default for OutputGate<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> OutputGate<T> {
    /// A gate where everything waits for the backup.
    pub fn new() -> Self {
        Self {
            held: VecDeque::new(),
            held_bytes: 0,
            received: 0,
            executed: 0,
            open: false,
        }
    }

    /// A gate where nothing waits, for a primary without a backup.
    pub fn opened() -> Self {
        Self {
            open: true,
            ..Self::new()
        }
    }

    /// Puts an output into the gate. [`OutputGate::pop`] gives out what may leave.
    pub fn hold(&mut self, held: Held<T>) {
        if let Some(last) = self.held.back() {
            assert!(
                last.ordinal < held.ordinal,
                "outputs are held in their order"
            );
            assert!(
                self.open || last.mark_seq < held.mark_seq,
                "marks are in the log's order"
            );
        }
        self.held_bytes += held.bytes;
        self.held.push_back(held);
    }

    /// The backup has received entries below `received` and executed those below `executed`.
    pub fn acknowledged(&mut self, received: u64, executed: u64) {
        self.received = self.received.max(received);
        self.executed = self.executed.max(executed);
    }

    /// From now on nothing waits: the primary is alone, by the view register's word.
    pub fn open(&mut self) {
        self.open = true;
    }

    /// Nothing in it will ever leave: the replica is halted.
    pub fn discard(&mut self) {
        self.held.clear();
        self.held_bytes = 0;
    }

    /// The next output that may leave.
    pub fn pop(&mut self) -> Option<Held<T>> {
        let first = self.held.front()?;
        let may = first.mark_seq < self.received && first.executed_before <= self.executed;
        if !may && !self.open {
            return None;
        }
        let held = self.held.pop_front()?;
        self.held_bytes -= held.bytes;
        Some(held)
    }

    /// Outputs that wait.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.held_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(ordinal: u64, mark_seq: u64, executed_before: u64) -> Held<u64> {
        let kind = MarkKind::Net;
        Held {
            mark_seq,
            executed_before,
            ordinal,
            kind,
            bytes: 10,
            since_ns: 0,
            output: ordinal,
        }
    }

    fn leaving(gate: &mut OutputGate<u64>) -> Vec<u64> {
        std::iter::from_fn(|| gate.pop())
            .map(|held| held.output)
            .collect()
    }

    #[test]
    fn outputs_leave_in_order_when_acknowledged() {
        let mut gate = OutputGate::new();
        gate.hold(held(0, 3, 0));
        gate.hold(held(1, 5, 3));
        gate.hold(held(2, 6, 0));
        assert!(leaving(&mut gate).is_empty());
        gate.acknowledged(3, 0); // entries 0 to 2 only
        assert!(leaving(&mut gate).is_empty());
        gate.acknowledged(4, 0);
        assert_eq!(leaving(&mut gate), [0]);
        gate.acknowledged(9, 2); // output 1 waits for execution, output 2 behind it
        assert!(leaving(&mut gate).is_empty());
        assert_eq!(gate.bytes(), 20);
        gate.acknowledged(8, 3); // an older ack changes nothing
        assert_eq!(leaving(&mut gate), [1, 2]);
        assert_eq!(gate.bytes(), 0);
    }

    #[test]
    fn alone_nothing_waits_and_halted_nothing_leaves() {
        let mut gate = OutputGate::new();
        gate.hold(held(0, 3, 0));
        gate.open();
        gate.hold(held(1, 4, 9));
        assert_eq!(leaving(&mut gate), [0, 1]);
        let mut gate = OutputGate::new();
        gate.hold(held(0, 3, 0));
        gate.discard();
        gate.acknowledged(9, 9);
        assert!(leaving(&mut gate).is_empty());
    }
}
