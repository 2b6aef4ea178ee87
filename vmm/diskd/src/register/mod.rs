//! The view register's service: rules, then stable storage, then fencing, then the answer.

pub mod connection;
pub mod rules;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wire::register::{Record, ReplicaId, Request, Response, VmId};

use crate::access::Access;
use crate::image::{Image, snapshot};
use crate::store::Store;
use rules::{Machine, Refusal, State, Verdict};

/// The register.
pub struct Register {
    inner: Mutex<Inner>,
    access: Arc<Access>,
    images: Vec<Arc<Image>>,
    snapshots: Vec<PathBuf>,
}

struct Inner {
    /// What is on stable storage.
    state: State,
    store: Store,
}

impl Register {
    /// Tells `access` where every machine of `state` (which `store` holds) stands.
    pub fn start(
        store: Store,
        state: State,
        access: Arc<Access>,
        images: Vec<Arc<Image>>,
        snapshots: Vec<PathBuf>,
    ) -> Register {
        for (vm, machine) in &state.machines {
            access.set(*vm, machine.standing());
        }
        let inner = Mutex::new(Inner { state, store });
        Register {
            inner,
            access,
            images,
            snapshots,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The state is replaced as a whole after it was saved, so a panic leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every machine's record.
    pub fn records(&self) -> Vec<Record> {
        let inner = self.lock();
        inner
            .state
            .machines
            .iter()
            .map(|(vm, machine)| machine.record(*vm))
            .collect()
    }

    /// Carries out one request, except `info`, which needs the server's figures.
    pub fn answer(&self, request: &Request) -> Response {
        let answered = match request {
            Request::Get { vm } => Ok(self.record(*vm)),
            Request::Create {
                vm,
                primary,
                backup,
                disks,
                reset,
            } => self.create(*vm, *primary, *backup, disks, *reset),
            Request::Claim {
                vm,
                from_view,
                claimant,
            } => self.claim(*vm, *from_view, *claimant),
            Request::Off { vm, view } => self
                .change(*vm, |state| rules::off(state, *vm, *view))
                .map(|()| self.record(*vm)),
            Request::Snapshot { export, path } => self.snapshot(export, path),
            Request::Info => Err(Refusal::NotHere),
        };
        answered.unwrap_or_else(|refusal| Response::Refused {
            reason: refusal.to_string(),
        })
    }

    fn record(&self, vm: VmId) -> Response {
        let record = self
            .lock()
            .state
            .machines
            .get(&vm)
            .map(|machine| machine.record(vm));
        Response::Record { record }
    }

    fn image(&self, disk: &str) -> Result<&Arc<Image>, Refusal> {
        let found = self.images.iter().find(|image| image.name() == disk);
        found.ok_or_else(|| Refusal::NoSuchDisk {
            disk: disk.to_owned(),
        })
    }

    /// Applies `rule` to a copy of the state; a change is saved before it becomes the state, and
    /// the requests that it ends have ended before this returns.
    fn change<T>(
        &self,
        vm: VmId,
        rule: impl FnOnce(&mut State) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let mut inner = self.lock();
        let mut next = inner.state.clone();
        let result = rule(&mut next)?;
        if next == inner.state {
            return Ok(result);
        }
        inner.store.save(&next).map_err(|error| {
            tracing::error!(%error, "the view register cannot keep its state");
            Refusal::Storage(error)
        })?;
        inner.state = next;
        // Under the lock: a claim asked again is answered only after the first one's fencing.
        if let Some(standing) = inner.state.machines.get(&vm).map(Machine::standing) {
            self.access.set(vm, standing);
        }
        Ok(result)
    }

    fn create(
        &self,
        vm: VmId,
        primary: ReplicaId,
        backup: Option<ReplicaId>,
        disks: &[String],
        reset: bool,
    ) -> Result<Response, Refusal> {
        for disk in disks {
            self.image(disk)?;
        }
        self.change(vm, |state| {
            rules::create(state, vm, primary, backup, disks, reset)
        })?;
        Ok(self.record(vm))
    }

    fn claim(&self, vm: VmId, from_view: u64, claimant: ReplicaId) -> Result<Response, Refusal> {
        let verdict = self.change(vm, |state| rules::claim(state, vm, from_view, claimant))?;
        tracing::info!(%vm, %claimant, from_view, ?verdict, "claim");
        Ok(match verdict {
            Verdict::Won(view) => Response::Won { view },
            Verdict::Lost(view) => Response::Lost { view },
        })
    }

    fn snapshot(&self, export: &str, path: &str) -> Result<Response, Refusal> {
        let image = self.image(export)?;
        let path = snapshot::permitted(path.as_ref(), &self.snapshots)?;
        let busy = || Refusal::Busy {
            disk: export.to_owned(),
        };
        let _frozen = self.access.freeze(export).ok_or_else(busy)?;
        Ok(Response::Snapshot(snapshot::take(image, &path)?))
    }
}
