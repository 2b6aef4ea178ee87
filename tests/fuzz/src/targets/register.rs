//! The view register: requests as lines, and the file that keeps its state.

use std::sync::Arc;

use ft_diskd::DiskConfig;
use ft_diskd::access::Access;
use ft_diskd::image::Image;
use ft_diskd::register::{Register, connection};
use ft_diskd::store::Store;
use wire::line;
use wire::register::{Request, Response, ServerInfo};

use super::{session, toy};
use crate::Target;
use crate::input::{Input, put_block};

pub const REQUESTS: Target = Target {
    name: "register",
    about: "requests to the view register; a view never goes back, a claim is won once",
    run: requests,
    samples: request_samples,
    cases: 1_500,
};

pub const STATE: Target = Target {
    name: "register-state",
    about: "the register's state file, and requests to a register that began with it",
    run: state,
    samples: state_samples,
    cases: 1_500,
};

/// A register with one disk, in a folder of its own.
struct Server {
    folder: tempfile::TempDir,
}

impl Server {
    fn new() -> Self {
        let folder = crate::scratch::folder();
        std::fs::write(folder.path().join("image"), [0; 4096]).expect("room for a small image");
        std::fs::create_dir(folder.path().join("snapshots")).expect("room for a folder");
        Self { folder }
    }

    /// `None`: its state is refused.
    fn start(&self) -> Option<Register> {
        let path = self.folder.path();
        let (store, state) = match Store::open(&path.join("state")) {
            Ok(opened) => opened,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                return None;
            }
        };
        let disk = DiskConfig {
            name: "disk".into(),
            path: path.join("image"),
            read_only: false,
        };
        let image = Arc::new(Image::open(&disk).expect("an image that was just made"));
        let access = Arc::new(Access::default());
        let snapshots = vec![path.join("snapshots")];
        Some(Register::start(
            store,
            state,
            access,
            vec![image],
            snapshots,
        ))
    }
}

/// Input: what the client sends.
fn requests(bytes: &[u8]) {
    let server = Server::new();
    let register = server.start().expect("an empty state");
    converse(&register, bytes);
    let kept = register.records();
    if !kept.is_empty() {
        crate::findings::accepted();
    }
    drop(register);
    let again = server.start().expect("what was kept can be read");
    assert_eq!(again.records(), kept, "what was answered is what was kept");
}

fn converse(register: &Register, bytes: &[u8]) {
    let info = || ServerInfo {
        version: "1".into(),
        pid: 1,
        nbd: "127.0.0.1:1".into(),
        exports: Vec::new(),
        records: register.records(),
    };
    let answers = session::play(bytes, |stream| {
        // An error ends the connection; the client was told why.
        let _ = connection::serve(stream, register, &info);
    });
    let mut answers = answers.as_slice();
    let mut view = 0;
    let mut winner = None;
    while let Ok(Some(answer)) = line::read_message(&mut answers, 1 << 20) {
        match answer {
            // One machine in the samples; another id has numbers of its own.
            Response::Won { view: won } if register.records().len() == 1 => {
                assert!(
                    won.number >= view,
                    "the view went back from {view} to {won}"
                );
                let first = *winner.get_or_insert(won);
                assert!(
                    won.number > first.number || won == first,
                    "{first} and {won}"
                );
                (view, winner) = (won.number, Some(won));
            }
            Response::Refused { reason } | Response::Unavailable { reason } => {
                assert!(!reason.is_empty());
            }
            _ => {}
        }
    }
}

fn lines() -> Vec<u8> {
    let (vm, primary, backup) = (toy::VM, toy::PRIMARY, toy::BACKUP);
    let create = |reset| Request::Create {
        vm,
        primary,
        backup: Some(backup),
        disks: vec!["disk".into()],
        reset,
    };
    let claim = |from_view, claimant| Request::Claim {
        vm,
        from_view,
        claimant,
    };
    let snapshot = Request::Snapshot {
        export: "disk".into(),
        path: "/nowhere/copy".into(),
    };
    let requests = [
        Request::Get { vm },
        create(false),
        claim(1, backup),
        claim(1, backup),
        claim(1, primary),
        Request::Info,
        snapshot,
        Request::Off { vm, view: 2 },
        create(true),
        Request::Off { vm, view: 3 },
    ];
    let mut text = Vec::new();
    for request in requests {
        line::write_message(&mut text, &request).expect("a vector takes everything");
    }
    text
}

fn request_samples() -> Vec<Vec<u8>> {
    let all = lines();
    let each = all
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec);
    let mut samples: Vec<Vec<u8>> = each.collect();
    samples.extend([all.clone(), all.clone(), [all.clone(), all].concat()]);
    samples
}

/// Input: whether length and checksum are made right, the file as a block, requests.
fn state(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.u8();
    let mut file = input.block().to_vec();
    if flags & 1 != 0 {
        file = repaired(&file);
    }
    let server = Server::new();
    let folder = server.folder.path().join("state");
    std::fs::create_dir(&folder).expect("room for a folder");
    std::fs::write(folder.join("register.state"), file).expect("room for a small file");
    if let Some(register) = server.start() {
        crate::findings::accepted();
        converse(&register, input.rest());
    }
}

/// The file with a right first line.
fn repaired(file: &[u8]) -> Vec<u8> {
    let body = file
        .splitn(2, |byte| *byte == b'\n')
        .nth(1)
        .unwrap_or_default();
    let head = format!(
        "lockstep-view-register 1 {} {:08x}\n",
        body.len(),
        crc32c::crc32c(body)
    );
    [head.as_bytes(), body].concat()
}

fn state_samples() -> Vec<Vec<u8>> {
    let lines = lines();
    let mut samples = Vec::new();
    // After the creation, the claim, the end.
    for many in [2, 3, 8] {
        let server = Server::new();
        let register = server.start().expect("an empty state");
        let all = lines.split_inclusive(|byte| *byte == b'\n');
        let some: Vec<u8> = all.take(many).flatten().copied().collect();
        converse(&register, &some);
        let path = server.folder.path().join("state/register.state");
        let file = std::fs::read(path).expect("a state was kept");
        for flags in [1, 1, 0] {
            let mut sample = vec![flags];
            put_block(&mut sample, &file);
            sample.extend(&lines);
            samples.push(sample);
        }
    }
    samples
}
