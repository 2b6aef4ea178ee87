//! Who may touch which disk now, and how an old view's requests are brought to an end.
//!
//! Every disk request takes a [`Permit`] before it touches the image and gives it back when the
//! image's system call has returned. Moving a machine to a new view ([`Access::fence`]) first
//! makes the table refuse older views (also requests that wait in a buffer, since these have no
//! permit yet), then waits until the older views' permits are back. Only after that does the
//! register answer a claim.
//!
//! | connection | may read | may write |
//! |---|---|---|
//! | plain `NAME` | always | while the disk belongs to no machine that is on |
//! | the current view's primary | yes | yes |
//! | the current view's backup | yes | no |
//! | a connection of a replica that has written on a later one | yes | no: ended |
//! | any older view, machine off or unknown | no: ended | no: ended |

mod sessions;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ftlog::register::Record;
use wire::nbd::ViewTag;
use wire::register::{View, VmId};

use sessions::{Sessions, Turn, Writer};

/// Whose connection a request comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    Plain,
    Replica {
        tag: ViewTag,
        /// [`Access::session`].
        session: u64,
    },
}

/// Why a request may not touch the disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("the machine {vm} has no record in the view register")]
    Unknown { vm: VmId },
    #[error("view {asked} of machine {vm} has ended; the current view is {current}")]
    Ended { vm: VmId, asked: u64, current: u64 },
    #[error("view {asked} of machine {vm} has not begun; the current view is {current}")]
    NotBegun { vm: VmId, asked: u64, current: u64 },
    #[error("the machine {vm} is off")]
    Off { vm: VmId },
    #[error("replica {replica} is not of view {view} of machine {vm}")]
    NotAMember {
        vm: VmId,
        view: u64,
        replica: String,
    },
    #[error("the disk {disk:?} is not one of machine {vm}")]
    NotItsDisk { vm: VmId, disk: String },
    #[error("replica {replica} of machine {vm} has written on a later connection")]
    Superseded { vm: VmId, replica: String },
    #[error("the backup of a view may only read")]
    BackupWrites,
    #[error("the disk {disk:?} belongs to machine {vm}, which is on")]
    Owned { disk: String, vm: VmId },
}

impl Denied {
    /// Whether no later request of the same connection can be allowed either.
    pub fn is_final(&self) -> bool {
        !matches!(self, Denied::BackupWrites | Denied::Owned { .. })
    }
}

/// Where a machine stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub record: Record,
    pub disks: BTreeSet<String>,
}

#[derive(Default)]
struct Table {
    machines: BTreeMap<VmId, Standing>,
    /// Disks that are being copied: their writers wait.
    frozen: BTreeSet<String>,
    /// Permits that are out, by machine and view.
    replica_permits: BTreeMap<(VmId, u64), u64>,
    /// Permits to write that are out, by disk: of plain connections, and of all.
    plain_writes: BTreeMap<String, u64>,
    writes: BTreeMap<String, u64>,
    sessions: Sessions,
    /// Threads that wait for a change; waking nobody would cost a system call for each request.
    waiting: usize,
}

/// The table, shared by the register and every disk connection.
#[derive(Default)]
pub struct Access {
    table: Mutex<Table>,
    /// A permit came back, a machine moved, or a disk thawed.
    changed: Condvar,
    next_session: AtomicU64,
}

impl Table {
    fn owner(&self, disk: &str) -> Option<VmId> {
        let owns = |standing: &Standing| standing.record.on && standing.disks.contains(disk);
        self.machines
            .iter()
            .find(|(_, standing)| owns(standing))
            .map(|(vm, _)| *vm)
    }

    fn check(&self, identity: &Identity, disk: &str, write: bool) -> Result<(), Denied> {
        match identity {
            Identity::Plain if !write => Ok(()),
            Identity::Plain => match self.owner(disk) {
                Some(vm) => Err(Denied::Owned {
                    disk: disk.to_owned(),
                    vm,
                }),
                None => Ok(()),
            },
            Identity::Replica { tag, .. } => self.check_replica(tag, disk, write),
        }
    }

    fn check_replica(&self, tag: &ViewTag, disk: &str, write: bool) -> Result<(), Denied> {
        let (vm, asked) = (tag.vm, tag.view);
        let Some(standing) = self.machines.get(&vm) else {
            return Err(Denied::Unknown { vm });
        };
        let View {
            number: current,
            primary,
            backup,
        } = standing.record.view;
        if asked < current {
            return Err(Denied::Ended { vm, asked, current });
        }
        if asked > current {
            return Err(Denied::NotBegun { vm, asked, current });
        }
        if !standing.record.on {
            return Err(Denied::Off { vm });
        }
        if !standing.disks.contains(disk) {
            return Err(Denied::NotItsDisk {
                vm,
                disk: disk.to_owned(),
            });
        }
        match tag.replica {
            replica if replica == primary => Ok(()),
            replica if Some(replica) == backup && write => Err(Denied::BackupWrites),
            replica if Some(replica) == backup => Ok(()),
            replica => {
                let replica = replica.to_string();
                Err(Denied::NotAMember {
                    vm,
                    view: current,
                    replica,
                })
            }
        }
    }

    fn take(&mut self, identity: &Identity, disk: &Arc<str>, write: bool) {
        match identity {
            Identity::Replica { tag, session } => {
                *self.replica_permits.entry((tag.vm, tag.view)).or_insert(0) += 1;
                if write {
                    self.sessions.begin(Writer::new(tag, disk), *session);
                }
            }
            Identity::Plain if write => {
                *self.plain_writes.entry(disk.to_string()).or_insert(0) += 1;
            }
            Identity::Plain => {}
        }
        if write {
            *self.writes.entry(disk.to_string()).or_insert(0) += 1;
        }
    }

    fn give_back(&mut self, identity: &Identity, disk: &Arc<str>, write: bool) {
        match identity {
            Identity::Replica { tag, session } => {
                count_down(&mut self.replica_permits, &(tag.vm, tag.view));
                if write {
                    self.sessions.end(Writer::new(tag, disk), *session);
                }
            }
            Identity::Plain if write => count_down(&mut self.plain_writes, &**disk),
            Identity::Plain => {}
        }
        if write {
            count_down(&mut self.writes, &**disk);
        }
    }

    /// Whether a writer must wait: the disk is being copied, or writes of an earlier connection
    /// of the same replica are under way.
    fn must_wait(&mut self, identity: &Identity, disk: &Arc<str>) -> Result<bool, Denied> {
        let turn = match identity {
            Identity::Replica { tag, session } => {
                self.sessions.turn(&Writer::new(tag, disk), *session)
            }
            Identity::Plain => Turn::Now,
        };
        match (turn, identity) {
            (Turn::Over, Identity::Replica { tag, .. }) => {
                let replica = tag.replica.to_string();
                Err(Denied::Superseded {
                    vm: tag.vm,
                    replica,
                })
            }
            _ => Ok(turn == Turn::Wait || self.frozen.contains(&**disk)),
        }
    }

    /// Whether a permit is out of a view of `vm` below `below`, or of a plain connection that
    /// writes to a disk that `vm` now has to itself.
    fn stale_permits(&self, vm: VmId, below: u64, standing: &Standing) -> bool {
        let old_views = self
            .replica_permits
            .range((vm, 0)..(vm, below))
            .next()
            .is_some();
        let own = |disk: &String| self.plain_writes.contains_key(disk);
        old_views || (standing.record.on && standing.disks.iter().any(own))
    }
}

fn count_down<K, Q>(counts: &mut BTreeMap<K, u64>, key: &Q)
where
    K: Ord + std::borrow::Borrow<Q>,
    Q: Ord + ?Sized,
{
    let left = counts.get_mut(key).map(|count| {
        *count -= 1;
        *count
    });
    assert!(left.is_some(), "a permit came back that was never out");
    if left == Some(0) {
        counts.remove(key);
    }
}

impl Access {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // The counts are changed by single calls, so a panic elsewhere leaves the table whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, mut table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
        table.waiting += 1;
        let mut table = self
            .changed
            .wait(table)
            .unwrap_or_else(PoisonError::into_inner);
        table.waiting -= 1;
        table
    }

    fn wake(&self, table: &Table) {
        if table.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Whether a request would be allowed now, without taking a permit.
    pub fn check(&self, identity: &Identity, disk: &str, write: bool) -> Result<(), Denied> {
        self.lock().check(identity, disk, write)
    }

    /// A number for a replica's new connection, higher than that of any before.
    pub fn session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::SeqCst)
    }

    /// Asks to touch a disk. A writer may have to wait, and is asked again after that.
    pub fn begin(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
        disk: &Arc<str>,
        write: bool,
    ) -> Result<Permit, Denied> {
        let mut table = self.lock();
        loop {
            table.check(identity, disk, write)?;
            if !write || !table.must_wait(identity, disk)? {
                break;
            }
            table = self.wait(table);
        }
        table.take(identity, disk, write);
        let (access, identity, disk) = (self.clone(), identity.clone(), disk.clone());
        Ok(Permit {
            access,
            identity,
            disk,
            write,
        })
    }

    /// Moves `vm` to `standing`, which the register has on stable storage, and waits until every
    /// request of views below `below` has finished; later ones are refused.
    pub fn fence(&self, vm: VmId, below: u64, standing: Standing) {
        let mut table = self.lock();
        table.machines.insert(vm, standing.clone());
        table.sessions.forget(vm, below);
        self.wake(&table);
        while table.stale_permits(vm, below, &standing) {
            table = self.wait(table);
        }
    }

    /// Keeps writers of `disk` waiting until the guard is dropped; returns once none is under
    /// way. `None`: it is being copied already.
    pub fn freeze(self: &Arc<Self>, disk: &str) -> Option<Freeze> {
        let mut table = self.lock();
        if !table.frozen.insert(disk.to_owned()) {
            return None;
        }
        while table.writes.contains_key(disk) {
            table = self.wait(table);
        }
        Some(Freeze {
            access: self.clone(),
            disk: disk.to_owned(),
        })
    }
}

/// The right to carry out one request; given back when dropped.
pub struct Permit {
    access: Arc<Access>,
    identity: Arc<Identity>,
    disk: Arc<str>,
    write: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut table = self.access.lock();
        table.give_back(&self.identity, &self.disk, self.write);
        self.access.wake(&table);
    }
}

/// Holds a disk's writers back.
pub struct Freeze {
    access: Arc<Access>,
    disk: String,
}

impl Drop for Freeze {
    fn drop(&mut self) {
        let mut table = self.access.lock();
        table.frozen.remove(&self.disk);
        self.access.wake(&table);
    }
}

#[cfg(test)]
mod tests;
