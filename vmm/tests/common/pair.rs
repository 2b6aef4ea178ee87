//! A primary and a backup in this process, with a real disk server between them.

#![allow(clippy::unwrap_used)] // a test's helpers may fail the test

use std::path::Path;

use ft_diskd::DiskConfig;
use vmm::config::{Config, Endpoints};
use vmm::engines::MakeEngine;
use vmm::replica::{ReadyAt, Role};
use wire::control::{ControlClient, Status};
use wire::register::{RegisterClient, ReplicaId, VmId};

use crate::common::{Running, TIMEOUT, config, start};

pub const VM: VmId = VmId([7; 16]);

/// A disk server whose register has a view for the pair of replicas 1 and 2.
pub fn serve(dir: &Path) -> (ft_diskd::Handle, Endpoints) {
    let image = dir.join("disk");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let diskd = ft_diskd::serve(&ft_diskd::Config {
        nbd: "127.0.0.1:0".into(),
        register: "127.0.0.1:0".into(),
        state: dir.join("register"),
        disks: vec![DiskConfig {
            name: "disk".into(),
            path: image,
            read_only: false,
        }],
        snapshots: Vec::new(),
    })
    .unwrap();
    let register = diskd.register_addr().to_string();
    let disks = ["disk".to_owned()];
    RegisterClient::new(&register, TIMEOUT)
        .create(VM, ReplicaId(1), Some(ReplicaId(2)), &disks, false)
        .unwrap();
    let endpoints = Endpoints {
        register: Some(register.parse().unwrap()),
        ..Endpoints::default()
    };
    (diskd, endpoints)
}

/// A primary and a backup, and the disk server that keeps their view.
pub struct Pair {
    pub dir: tempfile::TempDir,
    pub primary: Running,
    pub backup: Running,
    pub backup_at: ReadyAt,
    _diskd: ft_diskd::Handle,
}

impl Pair {
    /// Starts both with this guest; `change` has the last word on their configuration.
    pub fn start(engine: MakeEngine, guest: &[u8], change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (diskd, endpoints) = serve(dir.path());
        let mut config = config(dir.path(), VM, guest);
        // Nobody dies here, and a busy host is not a dead one.
        config.detect.suspect_ms = 20_000.try_into().unwrap();
        change(&mut config);
        let (backup, backup_at) = start(
            dir.path(),
            &config,
            engine,
            Role::Backup,
            2,
            endpoints.clone(),
        );
        let to_backup = Endpoints {
            log: Some(backup_at.log.clone().unwrap().parse().unwrap()),
            ..endpoints
        };
        let (primary, _) = start(dir.path(), &config, engine, Role::Primary, 1, to_backup);
        Self {
            dir,
            primary,
            backup,
            backup_at,
            _diskd: diskd,
        }
    }
}

/// What a replica says of itself; `None` once it has ended.
pub fn status(at: &ReadyAt) -> Option<Status> {
    let addr = at.control.parse().unwrap();
    let mut control = ControlClient::connect(&addr, TIMEOUT).ok()?;
    control.status().ok()
}
