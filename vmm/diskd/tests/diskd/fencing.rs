//! The design's rules 5 and 6 over real sockets: one winner, and nothing of an old view lands
//! after the new one was told that it has won.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::*;
use wire::nbd::{Errno, NbdError, Operation};
use wire::register::ClaimAnswer;

const SIZE: u64 = 4 << 20;

fn on(dir: &std::path::Path) -> (ft_diskd::Handle, wire::register::RegisterClient) {
    let server = start(dir, SIZE);
    let mut register = register(server.register_addr());
    let record = register
        .create(VM, A, Some(B), &["disk0".to_owned()], false)
        .unwrap();
    assert_eq!(record.view.number, 1);
    (server, register)
}

#[test]
fn roles_of_a_view() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mut register) = on(dir.path());
    let addr = server.nbd_addr();
    let mut primary = open(addr, &of_view(1, A)).unwrap();
    let mut backup = open(addr, &of_view(1, B)).unwrap();
    assert!(!primary.info().read_only() && backup.info().read_only());
    primary.write(512, &[3; 512], true).unwrap();
    assert_eq!(backup.read(512, 512).unwrap(), vec![3; 512]);
    let refused = backup.write(512, &[4; 512], false).unwrap_err();
    assert!(
        matches!(refused, NbdError::Refused(Errno::PERM)),
        "{refused}"
    );
    assert_eq!(
        backup.read(512, 512).unwrap(),
        vec![3; 512],
        "and it may go on reading"
    );
    for (view, replica) in [(2, A), (2, B), (0, A), (1, wire::register::ReplicaId(9))] {
        let error = open(addr, &of_view(view, replica)).err().unwrap();
        assert!(matches!(error, NbdError::Handshake { .. }), "{error}");
    }
    register.off(VM, 1).unwrap();
    let ended = primary.read(0, 512).unwrap_err();
    assert!(
        matches!(ended, NbdError::Refused(Errno::SHUTDOWN)),
        "{ended}"
    );
}

#[test]
fn one_claim_wins_and_its_answer_can_be_had_again() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = on(dir.path());
    let claims: Vec<_> = [A, B]
        .into_iter()
        .map(|replica| {
            let addr = server.register_addr();
            std::thread::spawn(move || (replica, register(addr).claim(VM, 1, replica).unwrap()))
        })
        .collect();
    let answers: Vec<_> = claims
        .into_iter()
        .map(|claim| claim.join().unwrap())
        .collect();
    let won = |answer: &ClaimAnswer| matches!(answer, ClaimAnswer::Won(_));
    assert_eq!(
        answers.iter().filter(|(_, answer)| won(answer)).count(),
        1,
        "{answers:?}"
    );
    for (replica, answer) in answers {
        assert_eq!(
            register(server.register_addr())
                .claim(VM, 1, replica)
                .unwrap(),
            answer
        );
    }
}

/// The old primary keeps 16 writes in flight while the backup claims. Everything that it wrote
/// carries its own mark; after the claim was answered the winner overwrites the disk, and no
/// block may turn back.
#[test]
fn no_write_of_the_old_view_lands_after_the_claim_was_answered() {
    for round in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let (server, mut register) = on(dir.path());
        let addr = server.nbd_addr();
        let stop = Arc::new(AtomicBool::new(false));
        let (mut sender, mut receiver) = open(addr, &of_view(1, A)).unwrap().split();
        let seen = stop.clone();
        let zombie = std::thread::spawn(move || {
            let (mut handle, mut fenced, mut acknowledged) = (0u64, false, 0);
            let block = vec![0xaa; 64 << 10];
            while !fenced && !seen.load(Ordering::SeqCst) {
                while sender.in_flight() < 16 {
                    handle += 1;
                    let offset = handle * block.len() as u64 % SIZE;
                    let write = Operation::Write {
                        offset,
                        data: &block,
                        fua: handle % 8 == 0,
                    };
                    if sender.send(handle, write).is_err() {
                        return (true, acknowledged);
                    }
                }
                match receiver.recv() {
                    Ok(reply) if reply.result.is_ok() => acknowledged += 1,
                    Ok(reply) => {
                        assert_eq!(reply.result, Err(Errno::SHUTDOWN));
                        fenced = true;
                    }
                    Err(_) => fenced = true,
                }
            }
            (fenced, acknowledged)
        });
        // A different moment each time.
        std::thread::sleep(std::time::Duration::from_millis(round * 2));
        let answer = register.claim(VM, 1, B).unwrap();
        assert!(matches!(answer, ClaimAnswer::Won(view) if view.number == 2));
        let mut winner = open(addr, &of_view(2, B)).unwrap();
        for at in (0..SIZE).step_by(1 << 20) {
            winner.write(at, &vec![0xbb; 1 << 20], false).unwrap();
        }
        let (fenced, _) = {
            let result = zombie.join();
            stop.store(true, Ordering::SeqCst);
            result.unwrap()
        };
        assert!(fenced, "the old view went on");
        let disk = std::fs::read(dir.path().join("disk.img")).unwrap();
        let turned = disk.iter().position(|byte| *byte != 0xbb);
        assert_eq!(
            turned, None,
            "round {round}: a write of the old view landed late"
        );
    }
}

/// A connection breaks with writes in the server's buffers; the replica sends what was not
/// answered again on a new one, and then something newer, which must stay.
#[test]
fn writes_of_a_broken_connection_do_not_land_on_newer_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = on(dir.path());
    let addr = server.nbd_addr();
    for round in 0..20u8 {
        let (mut sender, receiver) = open(addr, &of_view(1, A)).unwrap().split();
        let old = vec![2 * round; 256 << 10];
        // Nobody takes the answers; what the server has not read yet is in its socket.
        for handle in 0..24 {
            let write = Operation::Write {
                offset: (handle % 4) << 20,
                data: &old,
                fua: true,
            };
            sender.send(handle, write).unwrap();
        }
        let mut new = open(addr, &of_view(1, A)).unwrap();
        let newer = vec![2 * round + 1; 256 << 10];
        for at in 0..4 {
            new.write(at << 20, &newer, false).unwrap();
        }
        drop((sender, receiver));
        let mut check = open(addr, &of_view(1, A)).unwrap();
        for _ in 0..3 {
            for at in 0..4 {
                let found = check.read(at << 20, 256 << 10).unwrap();
                assert!(
                    found == newer,
                    "round {round}: an old write landed on a newer one"
                );
            }
        }
    }
}

#[test]
fn a_snapshot_waits_for_writes_and_is_one_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (server, mut register) = on(dir.path());
    let addr = server.nbd_addr();
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    // The first block is always written before the last: a copy must not have a newer last one.
    let writer = std::thread::spawn(move || {
        let mut disk = open(addr, &of_view(1, A)).unwrap();
        let mut generation = 0u64;
        while !seen.load(Ordering::SeqCst) {
            generation += 1;
            disk.write(0, &generation.to_be_bytes(), false).unwrap();
            disk.write(SIZE - 512, &generation.to_be_bytes(), false)
                .unwrap();
        }
    });
    for number in 0..10 {
        let path = dir.path().join(format!("copy{number}"));
        register
            .snapshot("disk0", path.to_str().unwrap(), TIMEOUT)
            .unwrap();
        let copy = std::fs::read(&path).unwrap();
        let word = |at: u64| {
            let bytes = copy[at as usize..][..8].try_into().unwrap();
            u64::from_be_bytes(bytes)
        };
        let (first, last) = (word(0), word(SIZE - 512));
        assert!(
            first == last || first == last + 1,
            "copy {number}: {first} and {last}"
        );
    }
    stop.store(true, Ordering::SeqCst);
    writer.join().unwrap();
    let refused = register
        .snapshot("disk0", "/nowhere/x", TIMEOUT)
        .unwrap_err();
    assert!(!refused.is_unknown(), "{refused}");
}

#[test]
fn a_machine_that_was_off_starts_again_in_a_later_view() {
    let dir = tempfile::tempdir().unwrap();
    let (_server, mut register) = on(dir.path());
    let disks = ["disk0".to_owned()];
    let again = register.create(VM, A, Some(B), &disks, false).unwrap_err();
    assert!(again.to_string().contains("is on"), "{again}");
    let thief = wire::register::VmId([9; 16]);
    let taken = register.create(thief, A, None, &disks, false).unwrap_err();
    assert!(taken.to_string().contains("belongs to"), "{taken}");
    register.claim(VM, 1, B).unwrap();
    register.off(VM, 2).unwrap();
    assert!(register.claim(VM, 2, B).is_err());
    assert_eq!(
        register
            .create(VM, A, Some(B), &disks, false)
            .unwrap()
            .view
            .number,
        3
    );
    assert_eq!(
        register
            .create(VM, A, Some(B), &disks, true)
            .unwrap()
            .view
            .number,
        4
    );
    let unknown = register
        .create(VM, A, None, &["disk9".to_owned()], true)
        .unwrap_err();
    assert!(unknown.to_string().contains("disk9"), "{unknown}");
}
