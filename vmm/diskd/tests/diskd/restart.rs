//! The server is killed at random moments and started again: no answered claim is lost, no view
//! goes back, no acknowledged write is lost.

use std::time::Duration;

use crate::common::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wire::nbd::NbdError;
use wire::register::{ClaimAnswer, RegisterClient, ReplicaId, View};

const ROUNDS: u64 = 30;

/// Claims in turn, each from the view that it believes in, until the server is gone. Returns the
/// last answered view.
fn claim_until_killed(register: &mut RegisterClient, mut view: View) -> View {
    loop {
        match register.claim(VM, view.number, view.primary) {
            Ok(ClaimAnswer::Won(next)) => {
                assert_eq!(next.number, view.number + 1);
                view = next;
            }
            Ok(ClaimAnswer::Lost(current)) => {
                panic!("lost to {current:?}, which nobody else claims")
            }
            Err(error) if error.is_unknown() => return view,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn answered_claims_survive_sigkill() {
    let seed: u64 =
        std::env::var("SEED").map_or_else(|_| rand::rng().random(), |s| s.parse().unwrap());
    println!("repeat with SEED={seed} cargo test --release -p ft-diskd --test diskd restart");
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    make_image(dir.path(), 1 << 20);
    let mut known: Option<View> = None;
    for round in 0..ROUNDS {
        let mut server = program(dir.path());
        let mut register = register(&server.register);
        let found = match known {
            None => {
                register
                    .create(VM, A, None, &["disk0".to_owned()], false)
                    .unwrap()
                    .view
            }
            Some(known) => {
                let found = register.get(VM).unwrap().expect("the record is lost").view;
                // The last claim may have been decided and its answer lost, no more than that.
                let ahead = found.number.checked_sub(known.number);
                assert!(
                    matches!(ahead, Some(0 | 1)),
                    "round {round}: {known:?}, then {found:?}"
                );
                // Asking again for the unanswered one gives the same answer.
                let again = register.claim(VM, found.number - 1, A).unwrap();
                assert_eq!(again, ClaimAnswer::Won(found), "round {round}");
                found
            }
        };
        let addr = server.register.clone();
        let claims = std::thread::spawn(move || {
            claim_until_killed(&mut RegisterClient::new(addr, TIMEOUT), found)
        });
        std::thread::sleep(Duration::from_micros(random.random_range(2_000..20_000)));
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        let last = claims.join().unwrap();
        assert!(last.number > 1 || round > 0 || known.is_none());
        known = Some(last).filter(|view| view.number > 1).or(known);
        if known.is_none() {
            // Killed before the first claim: begin the test anew.
            std::fs::remove_dir_all(dir.path().join("state")).unwrap();
        }
    }
    let known = known.unwrap().number;
    assert!(known > ROUNDS, "only {known} claims in {ROUNDS} rounds");
    println!("{known} claims");
}

#[test]
fn acknowledged_writes_survive_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    make_image(dir.path(), 1 << 20);
    let mut written = vec![0u64; 256];
    let mut generation = 0u64;
    for _ in 0..10 {
        let mut server = program(dir.path());
        let mut disk = open(&server.nbd, &plain()).unwrap();
        for (at, expected) in written.iter().enumerate() {
            let block = disk.read(at as u64 * 4096, 8).unwrap();
            let found = u64::from_be_bytes(block[..].try_into().unwrap());
            // The write that was under way may have landed.
            assert!(
                found == *expected || found > generation,
                "block {at}: {found}, {expected}"
            );
        }
        let pid = nix::unistd::Pid::from_raw(server.child.id() as i32);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(15));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        });
        // Numbers of this round are above every one before, so that an unacknowledged write of
        // an earlier round is told from a lost one.
        generation = (generation / 1_000_000 + 1) * 1_000_000;
        for step in 0.. {
            let at = step % written.len();
            let number: u64 = generation + step as u64;
            match disk.write(at as u64 * 4096, &number.to_be_bytes(), step % 16 == 0) {
                Ok(()) => written[at] = number,
                Err(NbdError::Closed) => break,
                Err(error) => panic!("{error}"),
            }
        }
        killer.join().unwrap();
        server.child.wait().unwrap();
        // What was under way is not known; read it now.
        let raw = std::fs::read(dir.path().join("disk.img")).unwrap();
        for (at, expected) in written.iter_mut().enumerate() {
            let found = u64::from_be_bytes(raw[at * 4096..][..8].try_into().unwrap());
            assert!(
                found >= *expected,
                "block {at} went back from {expected} to {found}"
            );
            *expected = found;
        }
    }
}

#[test]
fn a_restarted_server_refuses_the_old_view() {
    let dir = tempfile::tempdir().unwrap();
    make_image(dir.path(), 1 << 20);
    let mut server = program(dir.path());
    let mut client = register(&server.register);
    client
        .create(VM, A, Some(B), &["disk0".to_owned()], false)
        .unwrap();
    client.claim(VM, 1, B).unwrap();
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let server = program(dir.path());
    assert!(open(&server.nbd, &of_view(1, A)).is_err());
    open(&server.nbd, &of_view(2, B))
        .unwrap()
        .write(0, &[1; 512], false)
        .unwrap();
    assert!(matches!(
        register(&server.register).claim(VM, 1, A),
        Ok(ClaimAnswer::Lost(_))
    ));
    assert!(
        register(&server.register)
            .claim(VM, 2, ReplicaId(7))
            .is_ok_and(|a| matches!(a, ClaimAnswer::Lost(_)))
    );
}
