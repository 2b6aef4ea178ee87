//! The connections of one replica to one disk, in the order in which they were opened.
//!
//! A replica whose connection broke opens another one and sends again what was not answered.
//! Requests of the broken one may still wait in this server's buffers, and must not land on top
//! of what the replica writes now. So the first write of a later connection ends the writes of
//! the earlier ones: it waits for those under way, and what comes after them is refused. (Until
//! that first write there is nothing newer that they could destroy; reads destroy nothing.)

use std::collections::BTreeMap;
use std::sync::Arc;

use wire::nbd::ViewTag;
use wire::register::{ReplicaId, VmId};

use super::count_down;

/// Whose writes follow one another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Writer {
    vm: VmId,
    view: u64,
    replica: ReplicaId,
    disk: Arc<str>,
}

impl Writer {
    pub(super) fn new(tag: &ViewTag, disk: &Arc<str>) -> Writer {
        Writer {
            vm: tag.vm,
            view: tag.view,
            replica: tag.replica,
            disk: disk.clone(),
        }
    }
}

/// What a connection's write must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Go on.
    Now,
    /// Wait until the earlier connections' writes have ended.
    Wait,
    /// A later connection has written.
    Over,
}

#[derive(Default)]
pub(super) struct Sessions {
    /// The latest connection that has written.
    latest: BTreeMap<Writer, u64>,
    /// Writes under way.
    writing: BTreeMap<(Writer, u64), u64>,
}

impl Sessions {
    /// Connection `session` wants to write. Its claim to be the latest one stands from here on.
    pub(super) fn turn(&mut self, writer: &Writer, session: u64) -> Turn {
        let latest = self.latest.entry(writer.clone()).or_insert(session);
        if session < *latest {
            return Turn::Over;
        }
        *latest = session;
        let earlier = (writer.clone(), 0)..(writer.clone(), session);
        if self.writing.range(earlier).next().is_some() {
            Turn::Wait
        } else {
            Turn::Now
        }
    }

    pub(super) fn begin(&mut self, writer: Writer, session: u64) {
        *self.writing.entry((writer, session)).or_insert(0) += 1;
    }

    pub(super) fn end(&mut self, writer: Writer, session: u64) {
        count_down(&mut self.writing, &(writer, session));
    }

    /// Forgets `vm`'s views below `below`, which are refused for other reasons now.
    pub(super) fn forget(&mut self, vm: VmId, below: u64) {
        self.latest
            .retain(|writer, _| writer.vm != vm || writer.view >= below);
    }
}
