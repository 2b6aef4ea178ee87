//! Tests of the control API's words and of its server.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::client::ControlStream;
use super::server::{ControlListenError, ControlServer, Handler, serve};
use super::*;
use crate::register::{ReplicaId, View, VmId};

const TIMEOUT: Duration = Duration::from_secs(20);

fn status() -> Status {
    Status {
        vm: VmId([2; 16]),
        replica: ReplicaId(1),
        role: Role::Primary,
        state: Protection::Protected,
        view: View {
            number: 1,
            primary: ReplicaId(1),
            backup: Some(ReplicaId(2)),
        },
        pid: 42,
        engine: "soft".to_owned(),
        counts: "instructions".to_owned(),
        position: PositionStatus::new(1_000_000, 0xffff_ffff_8100_0000),
        guest_clock_ns: 5,
        uptime_ms: 6,
        lag_ms: 1.5,
        lag_quantiles_ms: Quantiles::default(),
        log_mbit_per_s: 2.25,
        log_bytes: [("event".to_owned(), 10)].into(),
        log_entries: 3,
        output_hold_ms: Quantiles {
            p50: 0.5,
            p99: 1.0,
            max: 2.0,
            samples: 9,
        },
        outputs_held: 0,
        speed: 1.0,
        instructions_per_s: 5e7,
        stretches: Default::default(),
        exits: Default::default(),
        address: None,
        hashes_compared: 4,
        last_failover: None,
    }
}

/// Answers status, refuses what it does not know, and its console shouts back.
struct Fake;

impl Handler for Fake {
    fn handle(&self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(status())),
            Request::Console => Response::Done,
            other => Response::Error {
                message: format!("no {other:?} here"),
            },
        }
    }

    fn console(&self, mut stream: BufReader<ControlStream>) {
        let mut line = String::new();
        stream.read_line(&mut line).expect("the client writes");
        stream
            .get_mut()
            .write_all(line.to_uppercase().as_bytes())
            .expect("the client reads");
    }
}

struct Served {
    server: ControlServer,
    dir: PathBuf,
}

impl Drop for Served {
    fn drop(&mut self) {
        // Left behind: nothing but an empty directory below the temporary one.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn unix(name: &str) -> (ControlAddr, PathBuf) {
    let dir = std::env::temp_dir().join(format!("lockstep-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    (ControlAddr::Unix(dir.join("control")), dir)
}

fn served(name: &str) -> Served {
    let (addr, dir) = unix(name);
    Served {
        server: serve(&addr, Arc::new(Fake)).expect("the socket is free"),
        dir,
    }
}

#[test]
fn states_are_said_in_the_words_that_users_know() {
    for (state, words) in [
        (Protection::Protected, "Protected"),
        (Protection::Starting, "Not protected: starting"),
        (Protection::NeedBackup, "Not protected: need backup VM"),
        (Protection::NotRunning, "Not protected: VM not running"),
        (
            Protection::Halted("it lost view 2".to_owned()),
            "Halted: it lost view 2",
        ),
    ] {
        assert_eq!(state.to_string(), words);
        assert_eq!(serde_json::to_string(&state).unwrap(), format!("{words:?}"));
        assert_eq!(words.parse(), Ok(state));
    }
    assert!("Happy".parse::<Protection>().is_err());
}

#[test]
fn addresses_are_read_or_refused() {
    for text in [
        "unix:/run/ft/a.sock",
        "127.0.0.1:80",
        "host.example:9",
        "[::1]:80",
    ] {
        assert_eq!(text.parse::<ControlAddr>().unwrap().to_string(), text);
    }
    for text in ["", "unix:", "/run/x", "host", ":80", "host:x", "host:70000"] {
        assert!(text.parse::<ControlAddr>().is_err(), "{text:?}");
    }
}

#[test]
fn requests_are_answered_and_bad_ones_explained() {
    let served = served("answers");
    let mut client = ControlClient::connect(served.server.addr(), TIMEOUT).unwrap();
    assert_eq!(client.status().unwrap(), status());
    let error = client.call(&Request::Quit).unwrap_err().to_string();
    assert!(error.contains("no Quit here"), "{error}");
    let ControlAddr::Unix(path) = served.server.addr() else {
        panic!("not a Unix socket")
    };
    let raw = UnixStream::connect(path).unwrap();
    let mut reader = BufReader::new(&raw);
    let mut ask = |line: &[u8]| {
        (&raw).write_all(line).unwrap();
        let mut answer = String::new();
        reader.read_line(&mut answer).unwrap();
        answer
    };
    assert!(ask(b"{\"op\":\"dance\"}\n").contains("dance"));
    assert!(ask(b"\xff\xfe\n").contains("not a valid request"));
    assert!(
        ask(b"{\"op\":\"status\"}\n").contains("Protected"),
        "the connection goes on"
    );
    assert!(ask(&vec![b'x'; MAX_REQUEST + 1]).contains("longer than"));
    assert_eq!(
        reader.read_to_end(&mut Vec::new()).unwrap_or(0),
        0,
        "then it ends"
    );
}

#[test]
fn a_connection_becomes_the_console() {
    let served = served("console");
    let client = ControlClient::connect(served.server.addr(), TIMEOUT).unwrap();
    let mut console = client.console().unwrap();
    console.get_mut().write_all(b"hello\n").unwrap();
    let mut answer = String::new();
    console.read_line(&mut answer).unwrap();
    assert_eq!(answer, "HELLO\n");
}

#[test]
fn the_socket_is_private_and_a_dead_one_is_replaced() {
    let served = served("private");
    let addr = served.server.addr().clone();
    let ControlAddr::Unix(path) = &addr else {
        panic!("not a Unix socket")
    };
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = serve(&addr, Arc::new(Fake)).err().unwrap();
    assert!(
        matches!(second, ControlListenError::InUse { .. }),
        "{second}"
    );
    let (stale_addr, stale_dir) = unix("stale");
    let ControlAddr::Unix(stale) = &stale_addr else {
        panic!("not a Unix socket")
    };
    drop(std::os::unix::net::UnixListener::bind(stale).unwrap());
    let again = serve(&stale_addr, Arc::new(Fake)).expect("nobody serves it any more");
    drop(again);
    assert!(!stale.exists(), "removed at the end");
    std::fs::write(stale, "a file of somebody's").unwrap();
    let error = serve(&stale_addr, Arc::new(Fake)).err().unwrap();
    assert!(matches!(error, ControlListenError::Unix { .. }), "{error}");
    assert_eq!(
        std::fs::read_to_string(stale).unwrap(),
        "a file of somebody's"
    );
    std::fs::remove_dir_all(stale_dir).unwrap();
}

#[test]
fn tcp_works_too() {
    let server = serve(&"127.0.0.1:0".parse().unwrap(), Arc::new(Fake)).unwrap();
    let mut client = ControlClient::connect(server.addr(), TIMEOUT).unwrap();
    assert_eq!(client.status().unwrap().pid, 42);
    drop(server);
}
