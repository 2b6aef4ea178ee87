use std::collections::BTreeMap;

use wire::control::{Failover, PositionStatus, Protection, Quantiles, Role, Status};
use wire::register::{ReplicaId, View, VmId};

use super::*;
use crate::status::ReplicaStatus;

fn replica(id: u64, role: Role, state: Protection, view: View) -> ReplicaStatus {
    let position = PositionStatus::new(1_234_567_890 + id, 0xffff_ffff_8100_0000);
    let details = Status {
        vm: VmId([7; 16]),
        replica: ReplicaId(id),
        role,
        state: state.clone(),
        view,
        pid: 4242,
        engine: "soft".into(),
        counts: "instructions".into(),
        position: position.clone(),
        guest_clock_ns: 12_345_678_901,
        uptime_ms: 61_000,
        lag_ms: 1.5,
        lag_quantiles_ms: Quantiles::default(),
        log_mbit_per_s: 0.75,
        log_bytes: [("timer".to_owned(), 8000), ("mark".to_owned(), 512)].into(),
        log_entries: 1000,
        output_hold_ms: Quantiles::default(),
        outputs_held: 0,
        speed: 1.0,
        instructions_per_s: 0.0,
        stretches: Default::default(),
        exits: Default::default(),
        address: None,
        hashes_compared: 12,
        last_failover: None,
    };
    ReplicaStatus {
        replica: ReplicaId(id),
        role,
        state,
        pid: 4242,
        engine: "soft".into(),
        position,
        address: "unix:/tmp/x".into(),
        details: Some(details),
    }
}

fn overview(replicas: Vec<ReplicaStatus>, view: View, state: Protection) -> Overview {
    Overview {
        name: "lockstep".into(),
        state,
        view: Some(view),
        replicas,
        lag_ms: 1.5,
        log_mbit_per_s: 0.75,
        forwards: BTreeMap::from([(6379, "127.0.0.1:40001".to_owned())]),
    }
}

#[test]
fn a_pair_fits_into_80_by_24() {
    let view = View {
        number: 1,
        primary: ReplicaId(1),
        backup: Some(ReplicaId(2)),
    };
    let mut model = Model::default();
    let pair = vec![
        replica(1, Role::Primary, Protection::Protected, view),
        replica(2, Role::Backup, Protection::Protected, view),
    ];
    model.update(overview(pair, view, Protection::Protected));
    let text = picture(&model).unwrap();
    for words in [
        "lockstep Protected",
        "replica 1: primary",
        "replica 2: backup",
        "1 234 567 892",
        "lag         1.5 ms",
        "log 0.75 Mbit/s",
        "timer",
        "8.0 kB",
        "6379 is 127.0.0.1:40001",
    ] {
        assert!(text.contains(words), "{words:?} is not in\n{text}");
    }
}

#[test]
fn a_failover_is_told_step_by_step_and_once() {
    let view = View {
        number: 1,
        primary: ReplicaId(1),
        backup: Some(ReplicaId(2)),
    };
    let mut model = Model::default();
    let pair = vec![
        replica(1, Role::Primary, Protection::Protected, view),
        replica(2, Role::Backup, Protection::Protected, view),
    ];
    model.update(overview(pair, view, Protection::Protected));

    let after = View {
        number: 2,
        primary: ReplicaId(2),
        backup: None,
    };
    let mut dead = replica(
        1,
        Role::Halted,
        Protection::Halted("it has ended".into()),
        view,
    );
    dead.details = None;
    let mut alone = replica(2, Role::Solo, Protection::NeedBackup, after);
    let begun = 4_000_000_000_000_000;
    let failover = Failover {
        view: 2,
        suspected_unix_us: Some(begun),
        claimed_unix_us: Some(begun + 1_500),
        log_consumed_unix_us: Some(begun + 2_000),
        live_unix_us: Some(begun + 2_100),
        ..Failover::default()
    };
    if let Some(details) = &mut alone.details {
        details.last_failover = Some(failover);
    }
    for _ in 0..2 {
        let now = vec![dead.clone(), alone.clone()];
        model.update(overview(now, after, Protection::NeedBackup));
    }
    let told: Vec<&str> = model.events.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(
        told.iter()
            .filter(|text| text.contains("claimed the view (+1.5 ms)"))
            .count(),
        1,
        "{told:?}"
    );
    assert!(told.iter().any(|text| text.contains("(primary): Halted")));
    let text = picture(&model).unwrap();
    assert!(text.contains("is live (+2.1 ms)"), "{text}");
    assert!(text.contains("need backup VM"), "{text}");
}
