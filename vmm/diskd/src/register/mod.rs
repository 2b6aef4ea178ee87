//! The view register's service: `ftlog`'s state machine of each virtual machine, with stable
//! storage, fencing and the machines' disks around it.

pub mod connection;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ftlog::ViewRegister;
use ftlog::register::{self, Answer, Effect};
use serde::{Deserialize, Serialize};
use wire::register::{Record, ReplicaId, Request, Response, VmId};

use crate::access::{Access, Standing};
use crate::image::Image;
use crate::image::snapshot::{self, SnapshotError};
use crate::store::Store;

/// Machines that one register keeps, at most.
const MAX_MACHINES: usize = 256;
/// Disks of one machine, at most.
const MAX_DISKS: usize = 16;

/// What is on stable storage.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub machines: BTreeMap<VmId, Machine>,
}

/// What is kept of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    pub record: register::Record,
    pub disks: Vec<String>,
}

impl Machine {
    fn standing(&self) -> Standing {
        Standing {
            record: self.record,
            disks: self.disks.iter().cloned().collect(),
        }
    }

    fn on_the_wire(&self, vm: VmId) -> Record {
        Record {
            vm,
            view: self.record.view,
            disks: self.disks.clone(),
            on: self.record.on,
        }
    }
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The state machine's own words.
    #[error("{0}")]
    Rule(String),
    #[error("the disk {disk:?} belongs to machine {vm}, which is on")]
    DiskInUse { disk: String, vm: VmId },
    #[error("this server has no disk {disk:?}")]
    NoSuchDisk { disk: String },
    #[error("a machine has {MAX_DISKS} disks at most, and {0} were named")]
    TooManyDisks(usize),
    #[error("the disk {0:?} was named twice")]
    DiskTwice(String),
    #[error("this register keeps {MAX_MACHINES} machines, which is the most it takes")]
    Full,
    #[error("the disk {disk:?} is being copied already")]
    Busy { disk: String },
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the register's server answers this itself")]
    NotHere,
}

struct Inner {
    /// What is on stable storage.
    state: State,
    store: Store,
}

/// The register.
pub struct Register {
    /// One lock for all machines: a claim asked again waits for the first one's fencing.
    inner: Mutex<Inner>,
    access: Arc<Access>,
    images: Vec<Arc<Image>>,
    snapshots: Vec<PathBuf>,
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
            access.fence(*vm, machine.record.view.number, machine.standing());
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
            .map(|(vm, machine)| machine.on_the_wire(*vm))
            .collect()
    }

    /// Carries out one request, except `info`, which needs the server's figures.
    pub fn answer(&self, request: &Request) -> Response {
        let answered = match request {
            Request::Get { vm } => self.ask(*vm, register::Request::Get, None),
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
            } => {
                let (from_view, claimant) = (*from_view, *claimant);
                self.ask(
                    *vm,
                    register::Request::Claim {
                        from_view,
                        claimant,
                    },
                    None,
                )
            }
            Request::Off { vm, view } => {
                self.ask(*vm, register::Request::Off { view: *view }, None)
            }
            Request::Snapshot { export, path } => self.snapshot(export, path),
            Request::Info => Err(Refusal::NotHere),
        };
        answered.unwrap_or_else(|refusal| Response::Refused {
            reason: refusal.to_string(),
        })
    }

    fn image(&self, disk: &str) -> Result<&Arc<Image>, Refusal> {
        let found = self.images.iter().find(|image| image.name() == disk);
        found.ok_or_else(|| Refusal::NoSuchDisk {
            disk: disk.to_owned(),
        })
    }

    fn create(
        &self,
        vm: VmId,
        primary: ReplicaId,
        backup: Option<ReplicaId>,
        disks: &[String],
        reset: bool,
    ) -> Result<Response, Refusal> {
        if disks.len() > MAX_DISKS {
            return Err(Refusal::TooManyDisks(disks.len()));
        }
        for (at, disk) in disks.iter().enumerate() {
            self.image(disk)?;
            if disks[..at].contains(disk) {
                return Err(Refusal::DiskTwice(disk.clone()));
            }
        }
        self.ask(
            vm,
            register::Request::Start {
                primary,
                backup,
                reset,
            },
            Some(disks),
        )
    }

    /// Puts a request to the machine's state machine and does what that asks for. `disks`: what
    /// the machine has from now on, if the request changes anything.
    fn ask(
        &self,
        vm: VmId,
        request: register::Request,
        disks: Option<&[String]>,
    ) -> Result<Response, Refusal> {
        let mut inner = self.lock();
        if let Some(disks) = disks {
            inner.check_new(vm, disks)?;
        }
        let old = inner.state.machines.get(&vm).cloned();
        let disks = match disks {
            Some(disks) => disks.to_vec(),
            None => old
                .as_ref()
                .map_or_else(Vec::new, |machine| machine.disks.clone()),
        };
        tracing::debug!(%vm, ?request, "asked");
        let mut machine = ViewRegister::new(old.map(|machine| machine.record));
        machine.request((), request);
        let mut answer = None;
        while let Some(effect) = machine.next_effect() {
            match effect {
                Effect::Persist(record) => {
                    let disks = disks.clone();
                    machine.persisted(inner.persist(vm, Machine { record, disks }));
                }
                Effect::Fence { below } => {
                    if let Some(kept) = inner.state.machines.get(&vm) {
                        self.access.fence(vm, below, kept.standing());
                    }
                    machine.fenced();
                }
                Effect::Answer { to: (), answer: it } => answer = Some(it),
            }
        }
        let answer = answer.expect("the state machine answers every request");
        if !matches!(answer, Answer::Record(_)) {
            tracing::info!(%vm, ?answer, "answered");
        }
        Ok(match answer {
            Answer::Record(_) => {
                let record = inner
                    .state
                    .machines
                    .get(&vm)
                    .map(|kept| kept.on_the_wire(vm));
                Response::Record { record }
            }
            Answer::Won(view) => Response::Won { view },
            Answer::Lost(view) => Response::Lost { view },
            Answer::Unavailable(reason) => Response::Unavailable { reason },
            Answer::Refused(reason) => return Err(Refusal::Rule(reason)),
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

impl Inner {
    /// Whether `vm` may be created with these disks: no other machine that is on has one.
    fn check_new(&self, vm: VmId, disks: &[String]) -> Result<(), Refusal> {
        let machines = &self.state.machines;
        if !machines.contains_key(&vm) && machines.len() >= MAX_MACHINES {
            return Err(Refusal::Full);
        }
        for (other, machine) in machines {
            let shared = machine.disks.iter().find(|disk| disks.contains(disk));
            if let Some(disk) = shared
                && *other != vm
                && machine.record.on
            {
                return Err(Refusal::DiskInUse {
                    disk: disk.clone(),
                    vm: *other,
                });
            }
        }
        Ok(())
    }

    /// The new state becomes the state once it is on stable storage.
    fn persist(&mut self, vm: VmId, machine: Machine) -> Result<(), String> {
        let mut next = self.state.clone();
        next.machines.insert(vm, machine);
        self.store.save(&next).map_err(|error| {
            tracing::error!(%error, "the view register cannot keep its state");
            error.to_string()
        })?;
        self.state = next;
        Ok(())
    }
}
