//! The load and the checker against a real redis-server, if it is installed:
//! a good one, and one that is killed without having kept anything.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::{Load, Options};
use crate::check::check;

/// A redis-server on a free port, killed when dropped.
struct Server {
    process: Child,
    address: SocketAddr,
    folder: tempfile::TempDir,
}

impl Server {
    /// `None` where there is no redis-server, which is said.
    fn start(arguments: &[&str]) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let folder = tempfile::tempdir().unwrap();
        let process = spawn(address, folder.path(), arguments)?;
        let server = Self {
            process,
            address,
            folder,
        };
        server.wait();
        Some(server)
    }

    /// Waits until it accepts connections, which says that it has loaded.
    fn wait(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(self.address).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not come up");
            thread::yield_now();
        }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(address: SocketAddr, folder: &std::path::Path, arguments: &[&str]) -> Option<Child> {
    let result = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--save", "", "--port"])
        .arg(address.port().to_string())
        .arg("--dir")
        .arg(folder)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match result {
        Ok(process) => Some(process),
        Err(error) => {
            println!("SKIPPED: no redis-server on this machine ({error})");
            None
        }
    }
}

/// Waits until the load has `count` answers.
fn answers(load: &Load, count: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while load.live().answered < count {
        assert!(Instant::now() < deadline, "{:?}", load.live());
        thread::yield_now();
    }
}

#[test]
fn a_good_server_gets_a_good_verdict() {
    let Some(server) = Server::start(&[]) else {
        return;
    };
    let load = Load::start(Options::new(server.address, 11)).unwrap();
    answers(&load, 20_000);
    let live = load.live();
    assert!(
        live.last_answer_ns > 0 && live.longest_wait_ms > 0.0,
        "{live:?}"
    );
    let record = load.stop();
    let verdict = check(&record.history);
    assert!(verdict.is_good(), "{verdict}");
    assert_eq!((record.reconnects, verdict.unknown), (0, 0));
    assert_eq!(record.final_read_error, None);
    assert!(
        verdict.answered >= 20_000 && verdict.refused == 0,
        "{verdict}"
    );
    let longest = record.history.longest_wait(0).unwrap();
    assert!(
        longest.ns() as f64 / 1e6 >= live.longest_wait_ms,
        "{longest:?}"
    );
}

#[test]
fn a_server_that_forgets_is_found_out() {
    let Some(mut server) = Server::start(&["--appendonly", "no"]) else {
        return;
    };
    let load = Load::start(Options::new(server.address, 12)).unwrap();
    answers(&load, 5_000);
    server.kill();
    server.process = spawn(server.address, server.folder.path(), &[]).unwrap();
    server.wait();
    let before = load.live().answered;
    answers(&load, before + 5_000);
    let record = load.stop();
    let verdict = check(&record.history);
    assert!(
        verdict.lost > 0 && !verdict.violations.is_empty(),
        "{verdict}"
    );
    assert!(verdict.undecided.is_empty(), "{verdict}");
    assert!(record.reconnects >= 4, "{} reconnects", record.reconnects);
}

#[test]
fn a_server_that_keeps_everything_may_be_killed() {
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let Some(mut server) = Server::start(&durable) else {
        return;
    };
    let load = Load::start(Options::new(server.address, 13)).unwrap();
    answers(&load, 3_000);
    server.kill();
    server.process = spawn(server.address, server.folder.path(), &durable).unwrap();
    server.wait();
    let before = load.live().answered;
    answers(&load, before + 3_000);
    let record = load.stop();
    let verdict = check(&record.history);
    assert!(
        verdict.is_good() || verdict.refused > 0 && verdict.lost == 0,
        "{verdict}"
    );
    assert!(record.reconnects >= 4, "{} reconnects", record.reconnects);
}

#[test]
fn a_missing_server_is_a_clear_error() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Load::start(Options::new(address, 1))
        .err()
        .expect("nobody listens there");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
