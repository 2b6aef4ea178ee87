//! Replicas with different engines refuse each other, states refuse another engine, and an engine
//! that is not there is told as such; each in words that say what to do.

#![allow(clippy::unwrap_used)] // a test's helpers may fail the test

use std::path::Path;

use vmm::config::{Config, EngineKind, NetMode, Positions, Seed, Vm};
use vmm::engines::{self, MakeEngine};
use vmm::errors::chain;
use vmm::memory::{GuestRam, MIN_RAM};
use vmm::replica::{self, Ended, Role, Spec};
use wire::control::{ControlAddr, ControlClient, Request, Response};
use wire::register::{RegisterClient, ReplicaId, VmId};

const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);
const VM: VmId = VmId([9; 16]);

/// A guest that does nothing for ever: a boot sector with one jump to itself.
fn config(dir: &Path) -> Config {
    let mut sector = vec![0xeb, 0xfe];
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let kernel = dir.join("guest");
    std::fs::write(&kernel, sector).unwrap();
    let mut config = Config::default();
    config.vm.uuid = Some(VM);
    config.vm.seed = Some(Seed([3; 32]));
    config.vm.start_time = Some(1_790_000_000);
    config.vm.memory = "16MiB".parse().unwrap();
    config.boot.kernel = Some(kernel);
    config.net.mode = NetMode::None;
    config
}

fn spec(
    dir: &Path,
    engine: MakeEngine,
    role: Role,
    id: u64,
) -> (Spec, crossbeam_channel::Receiver<replica::ReadyAt>) {
    let (ready, ready_at) = crossbeam_channel::bounded(1);
    let spec = Spec {
        role,
        id: ReplicaId(id),
        config: config(dir),
        engine,
        endpoints: Default::default(),
        control: ControlAddr::Unix(dir.join(format!("{id}.sock"))),
        from: None,
        serial_file: None,
        virtio_file: None,
        ready,
    };
    (spec, ready_at)
}

#[test]
fn an_engine_that_is_not_in_the_build_is_told_as_such() {
    let ram = GuestRam::new(MIN_RAM).unwrap();
    let info = |engine| {
        let vm = Vm {
            engine,
            ..Vm::default()
        };
        engines::make(&vm, &ram).map(|engine| engine.info())
    };
    assert_eq!(info(EngineKind::Soft).unwrap().name, "soft");
    assert_eq!(info(EngineKind::Auto).unwrap().name, "soft");
    let why = info(EngineKind::Kvm).unwrap_err().to_string();
    assert!(why.contains("\"kvm\"") && why.contains("\"auto\""), "{why}");
}

/// Where there is a counter that passes its test, branches are what was asked for.
#[test]
fn branches_without_a_counter_are_refused_in_a_sentence() {
    assert_eq!(
        engines::positions(Positions::Exits).unwrap().0,
        Positions::Exits
    );
    match engines::positions(Positions::Branches) {
        Ok((found, _)) => assert_eq!(found, Positions::Branches),
        Err(why) => {
            let why = why.to_string();
            for word in ["vm.positions = \"branches\"", "this host", "\"exits\""] {
                assert!(why.contains(word), "{word:?} is not in: {why}");
            }
        }
    }
}

#[test]
fn replicas_with_different_engines_refuse_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    std::fs::write(&image, vec![0; 4096]).unwrap();
    let diskd = ft_diskd::serve(&ft_diskd::Config {
        nbd: "127.0.0.1:0".into(),
        register: "127.0.0.1:0".into(),
        state: dir.path().join("register"),
        disks: vec![ft_diskd::DiskConfig {
            name: "disk".into(),
            path: image,
            read_only: false,
        }],
        snapshots: Vec::new(),
    })
    .unwrap();
    let register = diskd.register_addr().to_string();
    RegisterClient::new(&register, TIMEOUT)
        .create(VM, ReplicaId(1), Some(ReplicaId(2)), &[], false)
        .unwrap();
    let (mut backup, at) = spec(dir.path(), engines::make, Role::Backup, 2);
    backup.endpoints.register = Some(register.parse().unwrap());
    let backup = std::thread::spawn(move || replica::run(backup));
    let log = at.recv().unwrap().log.unwrap();
    let (mut primary, _at) = spec(dir.path(), exits::make, Role::Primary, 1);
    primary.endpoints.register = Some(register.parse().unwrap());
    primary.endpoints.log = Some(log.parse().unwrap());
    for end in [
        replica::run(primary).unwrap(),
        backup.join().unwrap().unwrap(),
    ] {
        let Ended::Halted(reason) = end else {
            panic!("{end:?}")
        };
        let reason = reason.to_string();
        for word in ["soft", "exits", "--engine"] {
            assert!(reason.contains(word), "{word:?} is not in: {reason}");
        }
    }
}

#[test]
fn a_saved_state_goes_on_with_its_own_engine_only() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("saved");
    let save = |from: Option<&Path>, engine| {
        let (mut spec, at) = spec(dir.path(), engine, Role::Solo, 1);
        spec.from = from.map(Path::to_owned);
        let replica = std::thread::spawn(move || replica::run(spec));
        let Ok(at) = at.recv() else {
            return Err(chain(&replica.join().unwrap().unwrap_err()));
        };
        let addr = at.control.parse().unwrap();
        let mut control = ControlClient::connect(&addr, TIMEOUT).unwrap();
        let path = saved.display().to_string();
        let response = control.call(&Request::Save { path }).unwrap();
        assert!(matches!(response, Response::Saved { .. }), "{response:?}");
        control.call(&Request::Quit).unwrap();
        replica.join().unwrap().unwrap();
        Ok(())
    };
    save(None, exits::make).unwrap();
    save(Some(&saved), exits::make).expect("its own engine");
    let why = save(Some(&saved), engines::make).unwrap_err();
    for word in ["exits", "instructions", "soft", "--engine"] {
        assert!(why.contains(word), "{word:?} is not in: {why}");
    }
}
