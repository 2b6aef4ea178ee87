//! The control API: a server with hostile clients, and what clients read from hostile servers.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use tempfile::TempDir;
use wire::control::client::ControlStream;
use wire::control::server::{ControlServer, Handler, serve};
use wire::control::{
    ControlAddr, MAX_ANSWER, PositionStatus, Protection, Quantiles, Request, Response, Role, Status,
};
use wire::line;
use wire::register;

use super::toy;
use crate::Target;

pub const REQUESTS: Target = Target {
    name: "control",
    about: "the control API's server with a hostile client",
    run: requests,
    samples: request_samples,
    cases: 2_000,
};

pub const ANSWERS: Target = Target {
    name: "answers",
    about: "what clients of control API and register read; what is read is written the same",
    run: answers,
    samples: answer_samples,
    cases: 10_000,
};

/// Answers everything, and its console echoes.
struct Echo;

impl Handler for Echo {
    fn handle(&self, request: Request) -> Response {
        match request {
            Request::Status => Response::Status(Box::new(status())),
            Request::Save { path } => Response::Saved { path, bytes: 1 },
            Request::Hash { memory } => Response::Hash {
                position: PositionStatus::new(1, 2),
                registers: 3,
                memory: memory.then_some(4),
                devices: 5,
            },
            Request::Kill => Response::Error {
                message: "not here".into(),
            },
            Request::Quit | Request::Console | Request::Poweroff | Request::Reset => Response::Done,
        }
    }

    fn console(&self, mut stream: BufReader<ControlStream>) {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = stream.read(&mut buffer) {
            if stream.get_mut().write_all(&buffer[..len]).is_err() {
                return;
            }
        }
    }
}

fn server() -> &'static PathBuf {
    static SERVER: OnceLock<(TempDir, PathBuf, ControlServer)> = OnceLock::new();
    let (_, path, _) = SERVER.get_or_init(|| {
        let folder = crate::scratch::folder();
        let path = folder.path().join("control");
        let addr = ControlAddr::Unix(path.clone());
        let server = serve(&addr, Arc::new(Echo)).expect("a socket in a new folder");
        (folder, path, server)
    });
    path
}

/// Input: what the client sends.
fn requests(bytes: &[u8]) {
    let stream = UnixStream::connect(server()).expect("the server listens");
    let mut writer = stream.try_clone().expect("a second handle of a socket");
    let answered = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A connection that the server ends does not take all of the input.
            let _ = writer.write_all(bytes);
            let _ = writer.shutdown(Shutdown::Write);
        });
        let mut answers = BufReader::new(stream.take(1 << 20));
        let first = line::read_message::<Response>(&mut answers, MAX_ANSWER);
        let _ = std::io::copy(&mut answers.into_inner().into_inner(), &mut std::io::sink());
        if matches!(&first, Ok(Some(answer)) if !matches!(answer, Response::Error { .. })) {
            crate::findings::accepted();
        }
        matches!(first, Ok(Some(_)))
    });
    // A line is always answered, be it a request or not.
    assert!(
        answered || !bytes.contains(&b'\n'),
        "a line was not answered"
    );
}

fn status() -> Status {
    Status {
        vm: toy::VM,
        replica: toy::PRIMARY,
        role: Role::Primary,
        state: Protection::Protected,
        view: toy::view(),
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
        output_hold_ms: Quantiles::default(),
        outputs_held: 0,
        speed: 1.0,
        instructions_per_s: 5e7,
        stretches: Default::default(),
        exits: [("in".to_owned(), 7)].into(),
        address: None,
        hashes_compared: 4,
        last_failover: None,
    }
}

fn text<T: serde::Serialize>(messages: &[T]) -> Vec<u8> {
    let mut text = Vec::new();
    for message in messages {
        line::write_message(&mut text, message).expect("a vector takes everything");
    }
    text
}

fn request_samples() -> Vec<Vec<u8>> {
    let requests = [
        Request::Status,
        Request::Save {
            path: "/tmp/state".into(),
        },
        Request::Hash { memory: true },
        Request::Poweroff,
        Request::Kill,
        Request::Reset,
        Request::Quit,
    ];
    let all = text(&requests);
    let mut console = text(&[Request::Console]);
    console.extend(b"ls\nexit\n");
    vec![all.clone(), [all, console.clone()].concat(), console]
}

/// Input: lines.
fn answers(bytes: &[u8]) {
    let mut read = false;
    for line in bytes.split(|byte| *byte == b'\n') {
        read |= again::<Response>(line);
        read |= again::<Request>(line);
        read |= again::<register::Response>(line);
        read |= again::<register::Request>(line);
    }
    if read {
        crate::findings::accepted();
    }
}

/// A message that can be read can be written, and is read as the same. (Not compared by value: a
/// float's last digit may be rounded once.)
fn again<T: serde::Serialize + serde::de::DeserializeOwned>(line: &[u8]) -> bool {
    let Ok(message) = serde_json::from_slice::<T>(line) else {
        return false;
    };
    let written = serde_json::to_vec(&message).expect("a message can be written");
    serde_json::from_slice::<T>(&written).expect("what was written can be read");
    true
}

fn answer_samples() -> Vec<Vec<u8>> {
    let control = [
        Response::Status(Box::new(status())),
        Response::Done,
        Response::Error {
            message: "no".into(),
        },
        Response::Hash {
            position: PositionStatus::new(1, 2),
            registers: 3,
            memory: Some(4),
            devices: 5,
        },
    ];
    let record = register::Record {
        vm: toy::VM,
        view: toy::view(),
        disks: vec!["disk".into()],
        on: true,
    };
    let register = [
        register::Response::Record {
            record: Some(record),
        },
        register::Response::Won { view: toy::view() },
        register::Response::Lost { view: toy::view() },
        register::Response::Refused {
            reason: "no".into(),
        },
    ];
    vec![text(&control), text(&register), text(&[Response::Done])]
}
