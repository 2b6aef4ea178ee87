//! Disk reads that the backup executes itself (`disk-reads=backup`): which reads must carry their
//! data all the same, and which writes must wait.
//!
//! A completed read whose data are not in the log is read again by the backup when it executes the
//! completion. It must then find what the primary found:
//!
//! - A read that overlapped a write in flight at any moment from its issue to its completion may
//!   have seen the old bytes, the new ones or a mixture. Its data travel in the log.
//! - A write that overlaps a read which the backup has yet to execute must not reach the disk
//!   before it has. It is held in the gate until then ([`crate::gate::Held::executed_before`]).
//!
//! A write counts as in flight from the guest's request to its completion, the time in the gate
//! included.

use std::ops::Range;

/// Sectors of 512 bytes.
type Sectors = Range<u64>;

#[derive(Debug)]
struct Read {
    id: u64,
    sectors: Sectors,
    /// A write overlapped it: the data must travel in the log.
    carries: bool,
}

/// Tracks the primary's requests. Sizes are bounded by the queue's size and by the lag.
#[derive(Debug, Default)]
pub struct ReadHazards {
    reads: Vec<Read>,
    writes: Vec<(u64, Sectors)>,
    /// Completed without data, not yet executed by the backup: (sequence number, sectors).
    unexecuted: Vec<(u64, Sectors)>,
}

impl ReadHazards {
    pub fn new() -> Self {
        Self::default()
    }

    /// The guest asked for a read of `count` sectors.
    pub fn read_issued(&mut self, id: u64, sector: u64, count: u64) {
        let sectors = sectors(sector, count);
        let carries = self
            .writes
            .iter()
            .any(|(_, write)| overlap(write, &sectors));
        self.reads.push(Read {
            id,
            sectors,
            carries,
        });
    }

    /// The guest asked for a write, discard or write-zeroes. The answer is the number below which
    /// all entries must have been executed by the backup before the request may reach the disk; 0
    /// if it need not wait.
    #[must_use]
    pub fn write_issued(&mut self, id: u64, sector: u64, count: u64) -> u64 {
        let sectors = sectors(sector, count);
        for read in &mut self.reads {
            read.carries |= overlap(&read.sectors, &sectors);
        }
        let blocking = self
            .unexecuted
            .iter()
            .filter(|(_, read)| overlap(read, &sectors));
        let before = blocking.map(|(seq, _)| seq + 1).max().unwrap_or(0);
        self.writes.push((id, sectors));
        before
    }

    /// Whether the read's data must travel in the log. Also for a read that is not known.
    pub fn must_carry(&self, id: u64) -> bool {
        self.reads
            .iter()
            .find(|read| read.id == id)
            .is_none_or(|read| read.carries)
    }

    /// The read's completion is entry `seq` of the log, with its data or without.
    pub fn read_logged(&mut self, id: u64, seq: u64, with_data: bool) {
        let Some(at) = self.reads.iter().position(|read| read.id == id) else {
            return;
        };
        let read = self.reads.swap_remove(at);
        assert!(
            with_data || !read.carries,
            "a read that raced a write carries its data"
        );
        if !with_data {
            self.unexecuted.push((seq, read.sectors));
        }
    }

    /// The read failed, or will not be completed.
    pub fn read_dropped(&mut self, id: u64) {
        self.reads.retain(|read| read.id != id);
    }

    /// The write's completion was taken.
    pub fn write_done(&mut self, id: u64) {
        self.writes.retain(|(write, _)| *write != id);
    }

    /// The backup has executed the entries below `executed`.
    pub fn executed(&mut self, executed: u64) {
        self.unexecuted.retain(|(seq, _)| *seq >= executed);
    }

    /// There is no backup any more.
    pub fn no_backup(&mut self) {
        self.unexecuted.clear();
    }
}

fn sectors(first: u64, count: u64) -> Sectors {
    first..first.saturating_add(count)
}

fn overlap(a: &Sectors, b: &Sectors) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_beside_a_write_in_flight_carries_its_data() {
        let mut hazards = ReadHazards::new();
        assert_eq!(hazards.write_issued(1, 100, 8), 0);
        hazards.read_issued(2, 107, 1); // at issue
        hazards.read_issued(3, 108, 1); // beside it
        hazards.read_issued(4, 200, 8);
        assert_eq!(hazards.write_issued(5, 207, 1), 0); // until completion
        hazards.write_done(5); // even if it ended first
        assert_eq!(
            [2, 3, 4, 99].map(|id| hazards.must_carry(id)),
            [true, false, true, true]
        );
        hazards.write_done(1);
        hazards.read_issued(6, 100, 8);
        assert!(!hazards.must_carry(6));
    }

    #[test]
    fn a_write_waits_for_the_reads_that_the_backup_has_yet_to_execute() {
        let mut hazards = ReadHazards::new();
        for (id, sector) in [(1, 0), (2, 8), (3, 4)] {
            hazards.read_issued(id, sector, 8);
            hazards.read_logged(id, 10 * id, false);
        }
        assert_eq!(hazards.write_issued(4, 7, 1), 31); // reads 1 and 3
        assert_eq!(hazards.write_issued(5, 15, 1), 21);
        assert_eq!(hazards.write_issued(6, 16, 1), 0);
        hazards.executed(21);
        assert_eq!(hazards.write_issued(7, 15, 1), 0);
        assert_eq!(hazards.write_issued(8, 0, 16), 31);
        hazards.no_backup();
        assert_eq!(hazards.write_issued(9, 0, 16), 0);
        hazards.read_issued(10, 0, 1);
        hazards.read_logged(10, 40, true);
        assert_eq!(hazards.write_issued(11, 0, 1), 0);
    }
}
