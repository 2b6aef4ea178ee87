//! Tests of the switch's rules, and of all of them under random histories.

use proptest::prelude::*;
use wire::netport::VERSION;

use super::*;

const VM: VmId = VmId([1; 16]);

fn hello(replica: u64, view: u64, live: bool) -> Hello {
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    Hello {
        version: VERSION,
        vm: VM,
        replica: ReplicaId(replica),
        view,
        live,
        mac,
    }
}

fn frame(number: u32) -> Bytes {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9, 8, 0];
    frame.extend(number.to_be_bytes());
    Bytes::from(frame)
}

/// Everything that port `id` is due, control messages dropped.
fn frames_for(switch: &mut Switch, id: PortId) -> Vec<Bytes> {
    let mut all = Vec::new();
    loop {
        match switch.next_for(id, 100) {
            Some(Next::Frames(frames)) => all.extend(frames),
            Some(Next::Control(_)) => {}
            Some(Next::Nothing) | None => return all,
        }
    }
}

#[test]
fn what_was_not_consumed_is_given_again_in_order() {
    let mut switch = Switch::default();
    let a = switch.connect(&hello(1, 1, true)).unwrap();
    for number in 0..5 {
        assert!(switch.inbound(&frame(number)));
    }
    assert_eq!(frames_for(&mut switch, a).len(), 5);
    switch.consumed(a, 2).unwrap();
    switch.disconnect(a);
    assert!(!switch.ready());
    assert!(switch.inbound(&frame(5)), "kept while nobody is live");
    let b = switch.connect(&hello(2, 1, false)).unwrap();
    assert_eq!(
        frames_for(&mut switch, b),
        Vec::<Bytes>::new(),
        "a backup is given nothing"
    );
    switch.go_live(b, 2);
    let expected: Vec<Bytes> = (2..6).map(frame).collect();
    assert_eq!(frames_for(&mut switch, b), expected);
    switch.consumed(b, 4).unwrap();
    assert_eq!(switch.status()[0].kept, 0);
}

#[test]
fn a_report_of_more_than_was_given_is_refused() {
    let mut switch = Switch::default();
    let a = switch.connect(&hello(1, 1, true)).unwrap();
    switch.inbound(&frame(0));
    assert!(switch.consumed(a, 1).is_err(), "not given yet");
    frames_for(&mut switch, a);
    switch.consumed(a, 1).unwrap();
    assert!(switch.consumed(a, 2).is_err());
}

#[test]
fn hellos_that_cannot_be_served_are_refused() {
    let mut switch = Switch::default();
    let old = Hello {
        version: VERSION + 1,
        ..hello(1, 1, true)
    };
    assert_eq!(switch.connect(&old), Err(Refusal::Version(VERSION + 1)));
    switch.connect(&hello(1, 1, true)).unwrap();
    let thief = Hello {
        vm: VmId([2; 16]),
        ..hello(1, 1, true)
    };
    assert!(matches!(
        switch.connect(&thief),
        Err(Refusal::MacTaken { .. })
    ));
}

#[test]
fn kept_frames_are_bounded() {
    let mut switch = Switch::default();
    switch.connect(&hello(1, 1, true)).unwrap();
    let taken = (0..2 * MAX_KEPT_FRAMES as u32)
        .filter(|n| switch.inbound(&frame(*n)))
        .count();
    assert_eq!(taken, MAX_KEPT_FRAMES);
    assert!(!switch.ready() && !switch.has_room());
    assert_eq!(switch.status()[0].dropped, MAX_KEPT_FRAMES as u64);
}

#[derive(Debug, Clone)]
enum Step {
    Connect { replica: u64, view: u64, live: bool },
    Disconnect(usize),
    GoLive(usize, u64),
    Take(usize),
    Consume(usize, u64),
    Send(usize),
    Inbound,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..4u64, 1..6u64, any::<bool>()).prop_map(|(replica, view, live)| Step::Connect {
            replica,
            view,
            live
        }),
        (0..8usize).prop_map(Step::Disconnect),
        (0..8usize, 1..8u64).prop_map(|(port, view)| Step::GoLive(port, view)),
        (0..8usize).prop_map(Step::Take),
        (0..8usize, 0..4u64).prop_map(|(port, n)| Step::Consume(port, n)),
        (0..8usize).prop_map(Step::Send),
        Just(Step::Inbound),
    ]
}

proptest! {
    /// Whatever happens: the view never goes back, one port at most is live, frames leave only
    /// from it, and every inbound frame is given to the live ports in order until consumed.
    #[test]
    fn the_rules_hold_in_every_history(steps in prop::collection::vec(step(), 1..200)) {
        let mut switch = Switch::default();
        let (mut ports, mut view, mut sent) = (Vec::new(), 0, 0u32);
        // Frame numbers: what is consumed, and what each port was given since it went live.
        let mut consumed = 0u32;
        let mut given: BTreeMap<PortId, Vec<Bytes>> = BTreeMap::new();
        for step in steps {
            let pick = |at: usize, ports: &[PortId]| ports.get(at % ports.len().max(1)).copied();
            match step {
                Step::Connect { replica, view, live } => {
                    ports.push(switch.connect(&hello(replica, view, live)).unwrap());
                }
                Step::Disconnect(at) => if let Some(id) = pick(at, &ports) {
                    switch.disconnect(id);
                    ports.retain(|port| *port != id);
                },
                Step::GoLive(at, view) => if let Some(id) = pick(at, &ports) {
                    switch.go_live(id, view);
                },
                Step::Take(at) => if let Some(id) = pick(at, &ports) {
                    given.entry(id).or_default().extend(frames_for(&mut switch, id));
                },
                Step::Consume(at, more) => if let Some(id) = pick(at, &ports) {
                    let live = switch.machines[&VM].live == Some(id);
                    let first = switch.ports[&id].first as u32;
                    let had = given.get(&id).map_or(0, Vec::len) as u64;
                    let done = u64::from(consumed.saturating_sub(first));
                    let result = switch.consumed(id, done + more);
                    if live {
                        prop_assert_eq!(result.is_ok(), done + more <= had);
                        if result.is_ok() { consumed += more as u32; }
                    }
                },
                Step::Send(at) => if let Some(id) = pick(at, &ports) {
                    let live = switch.machines[&VM].live == Some(id);
                    prop_assert_eq!(switch.from_replica(id, &frame(0)).outside, live);
                },
                Step::Inbound => {
                    switch.inbound(&frame(sent));
                    sent += 1;
                }
            }
            if let Some(machine) = switch.machines.get(&VM) {
                prop_assert!(machine.view >= view);
                view = machine.view;
                prop_assert_eq!(machine.kept.len() as u32, sent - consumed);
                if let Some(live) = machine.live {
                    let first = switch.ports[&live].first as u32;
                    let had = given.get(&live).cloned().unwrap_or_default();
                    let expected: Vec<Bytes> = (first..).take(had.len()).map(frame).collect();
                    prop_assert_eq!(had, expected);
                }
            } else {
                sent = 0;
            }
        }
    }
}
