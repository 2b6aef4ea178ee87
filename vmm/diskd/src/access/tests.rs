//! Tests of who may touch what, and of the wait for old views.

use std::sync::mpsc::{TryRecvError, channel};

use ftlog::ViewRegister;
use ftlog::register::Access as Verdict;
use proptest::prelude::*;
use wire::register::ReplicaId;

use super::*;

const VM: VmId = VmId([3; 16]);

fn standing(number: u64, primary: u64, backup: Option<u64>, on: bool) -> Standing {
    let view = View {
        number,
        primary: ReplicaId(primary),
        backup: backup.map(ReplicaId),
    };
    let record = Record {
        view,
        claimed: false,
        on,
    };
    Standing {
        record,
        disks: BTreeSet::from(["d".to_owned()]),
    }
}

fn replica(view: u64, replica: u64) -> Arc<Identity> {
    on_session(view, replica, 0)
}

fn on_session(view: u64, replica: u64, session: u64) -> Arc<Identity> {
    let tag = ViewTag {
        vm: VM,
        view,
        replica: ReplicaId(replica),
    };
    Arc::new(Identity::Replica { tag, session })
}

fn disk() -> Arc<str> {
    Arc::from("d")
}

#[test]
fn a_plain_connection_may_write_only_while_no_machine_is_on() {
    let access = Arc::new(Access::default());
    assert_eq!(access.check(&Identity::Plain, "d", true), Ok(()));
    access.fence(VM, 1, standing(1, 1, Some(2), true));
    assert!(matches!(
        access.check(&Identity::Plain, "d", true),
        Err(Denied::Owned { .. })
    ));
    assert_eq!(access.check(&Identity::Plain, "d", false), Ok(()));
    assert_eq!(access.check(&Identity::Plain, "other", true), Ok(()));
    access.fence(VM, 2, standing(1, 1, Some(2), false));
    assert_eq!(access.check(&Identity::Plain, "d", true), Ok(()));
}

#[test]
fn a_new_view_waits_for_the_requests_of_the_old_one() {
    let access = Arc::new(Access::default());
    access.fence(VM, 1, standing(1, 1, Some(2), true));
    let first = access.begin(&replica(1, 1), &disk(), true).unwrap();
    let second = access.begin(&replica(1, 2), &disk(), false).unwrap();
    let (done, wait) = channel();
    let moving = access.clone();
    let mover = std::thread::spawn(move || {
        moving.fence(VM, 2, standing(2, 2, None, true));
        done.send(()).unwrap();
    });
    // The old view is refused from the moment that the table has moved.
    while access.check(&replica(1, 1), "d", true).is_ok() {
        std::thread::yield_now();
    }
    assert!(access.begin(&replica(1, 1), &disk(), true).is_err());
    assert_eq!(
        wait.try_recv(),
        Err(TryRecvError::Empty),
        "two requests are under way"
    );
    drop(first);
    assert_eq!(
        wait.try_recv(),
        Err(TryRecvError::Empty),
        "a request is under way"
    );
    drop(second);
    mover.join().unwrap();
    assert_eq!(wait.try_recv(), Ok(()));
    access.begin(&replica(2, 2), &disk(), true).unwrap();
}

#[test]
fn powering_on_waits_for_the_writes_of_tools() {
    let access = Arc::new(Access::default());
    let write = access
        .begin(&Arc::new(Identity::Plain), &disk(), true)
        .unwrap();
    let moving = access.clone();
    let mover = std::thread::spawn(move || moving.fence(VM, 1, standing(1, 1, None, true)));
    while access.check(&Identity::Plain, "d", true).is_ok() {
        std::thread::yield_now();
    }
    assert!(!mover.is_finished(), "a tool's write is under way");
    drop(write);
    mover.join().unwrap();
}

#[test]
fn a_frozen_disk_holds_writers_back_and_a_fence_sends_them_away() {
    let access = Arc::new(Access::default());
    access.fence(VM, 1, standing(1, 1, Some(2), true));
    let freeze = access.freeze("d").unwrap();
    assert!(access.freeze("d").is_none(), "frozen once");
    let waiting = access.clone();
    let writer = std::thread::spawn(move || waiting.begin(&replica(1, 1), &disk(), true).err());
    access.begin(&replica(1, 1), &disk(), false).unwrap();
    while access.lock().waiting == 0 {
        std::thread::yield_now();
    }
    access.fence(VM, 2, standing(2, 2, None, true));
    assert!(matches!(writer.join().unwrap(), Some(Denied::Ended { .. })));
    drop(freeze);
    access.begin(&replica(2, 2), &disk(), true).unwrap();
}

#[test]
fn a_later_connection_ends_the_writes_of_the_earlier_ones() {
    let access = Arc::new(Access::default());
    access.fence(VM, 1, standing(1, 1, None, true));
    let (old, new) = (on_session(1, 1, 4), on_session(1, 1, 5));
    let late = access.begin(&old, &disk(), true).unwrap();
    access.begin(&new, &disk(), false).unwrap();
    access
        .begin(&old, &disk(), true)
        .expect("the later connection has not written");
    let (writing, identity) = (access.clone(), new.clone());
    let writer = std::thread::spawn(move || writing.begin(&identity, &disk(), true).is_ok());
    while access.lock().waiting == 0 {
        std::thread::yield_now();
    }
    let refused = access.begin(&old, &disk(), true).err();
    assert!(
        matches!(refused, Some(Denied::Superseded { .. })),
        "{refused:?}"
    );
    assert!(!writer.is_finished(), "an earlier write is under way");
    drop(late);
    assert!(writer.join().unwrap());
    access
        .begin(&old, &disk(), false)
        .expect("reads destroy nothing");
    access
        .begin(&on_session(1, 1, 6), &Arc::from("d"), true)
        .unwrap();
}

proptest! {
    /// The table says the same as the protocol's state machine, which the simulator tests.
    #[test]
    fn the_table_agrees_with_the_state_machine(
        number in 1..4u64, primary in 1..4u64, backup in prop::option::of(1..4u64),
        on: bool, view in 1..4u64, who in 1..4u64,
    ) {
        prop_assume!(backup != Some(primary));
        let standing = standing(number, primary, backup, on);
        let machine = ViewRegister::<()>::new(Some(standing.record));
        let access = Arc::new(Access::default());
        access.fence(VM, number, standing);
        let read = access.check(&replica(view, who), "d", false).is_ok();
        let write = access.check(&replica(view, who), "d", true).is_ok();
        let expected = match machine.access(view, ReplicaId(who)) {
            Verdict::ReadWrite => (true, true),
            Verdict::ReadOnly => (true, false),
            Verdict::Refused => (false, false),
        };
        prop_assert_eq!((read, write), expected);
    }
}
