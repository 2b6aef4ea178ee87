//! NBD from both sides: the server's session with a hostile client, the client with a hostile
//! server.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ft_diskd::DiskConfig;
use ft_diskd::access::{Access, Standing};
use ft_diskd::image::Image;
use ft_diskd::nbd::{self, Export};
use ftlog::register::Record;
use tempfile::TempDir;
use wire::nbd::handshake::{self, *};
use wire::nbd::transmission::{FLAG_FUA, REPLY_MAGIC, Request};
use wire::nbd::{Command, ExportInfo, ExportName, NbdClient, Operation, ViewTag};
use zerocopy::IntoBytes;

use super::{session, toy};
use crate::Target;

pub const SERVER: Target = Target {
    name: "nbd-server",
    about: "ft-diskd's NBD session with a hostile client",
    run: serve,
    samples: client_samples,
    cases: 2_000,
};

pub const CLIENT: Target = Target {
    name: "nbd-client",
    about: "ft-vmm's NBD client with a hostile server",
    run: connect,
    samples: server_samples,
    cases: 1_000,
};

/// Bytes of the image; small, since a client may ask for all of it many times.
const IMAGE: usize = 32 << 10;
const DISK: &str = "disk";

/// A disk that a machine has in view 1, and one that is free.
struct Disks {
    exports: Vec<Arc<Export>>,
    access: Arc<Access>,
    _folder: TempDir,
}

fn disks() -> &'static Disks {
    static DISKS: OnceLock<Disks> = OnceLock::new();
    DISKS.get_or_init(|| {
        let folder = crate::scratch::folder();
        let open = |name: &str, read_only| {
            let path = folder.path().join(name);
            std::fs::write(&path, vec![0; IMAGE]).expect("room for a small image");
            let config = DiskConfig {
                name: name.into(),
                path,
                read_only,
            };
            let image = Image::open(&config).expect("an image that was just made");
            Arc::new(Export {
                image: Arc::new(image),
                name: name.into(),
                figures: nbd::Figures::default(),
            })
        };
        let exports = vec![open(DISK, false), open("free", false), open("rom", true)];
        let access = Arc::new(Access::default());
        let record = Record {
            view: toy::view(),
            claimed: false,
            on: true,
        };
        let disks = [DISK.to_owned()].into();
        access.fence(toy::VM, 1, Standing { record, disks });
        Disks {
            exports,
            access,
            _folder: folder,
        }
    })
}

/// Input: what the client sends.
fn serve(bytes: &[u8]) {
    let disks = disks();
    let before = disks.exports[0]
        .figures
        .connections
        .load(std::sync::atomic::Ordering::SeqCst);
    let answers = session::play(bytes, |stream| {
        if let Err(error) = nbd::serve(stream, &disks.exports, &disks.access) {
            assert!(!error.to_string().is_empty());
        }
    });
    let simple = REPLY_MAGIC.to_be_bytes();
    if answers.windows(4).any(|word| word == simple) {
        crate::findings::accepted();
    }
    let after = disks.exports[0]
        .figures
        .connections
        .load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(before, after, "a connection is still counted");
}

fn name(disk: &str, replica: Option<ftlog::ReplicaId>) -> String {
    let view = replica.map(|replica| ViewTag {
        vm: toy::VM,
        view: 1,
        replica,
    });
    let disk = disk.into();
    ExportName { disk, view }.to_string()
}

fn client_samples() -> Vec<Vec<u8>> {
    let names = [
        name(DISK, Some(toy::PRIMARY)),
        name(DISK, Some(toy::BACKUP)),
        name("free", None),
        name("rom", None),
    ];
    let mut samples = Vec::new();
    for name in &names {
        let mut sample = 3u32.to_be_bytes().to_vec();
        option(&mut sample, OPT_LIST, &[]);
        let request = InfoRequest {
            name: name.clone(),
            wants: vec![INFO_NAME, INFO_BLOCK_SIZE],
        };
        option(&mut sample, OPT_INFO, &info_request_bytes(&request));
        option(&mut sample, OPT_GO, &info_request_bytes(&request));
        requests(&mut sample);
        samples.push(sample);
    }
    let mut old = 1u32.to_be_bytes().to_vec();
    option(&mut old, 99, b"unknown");
    option(&mut old, OPT_EXPORT_NAME, names[2].as_bytes());
    requests(&mut old);
    let mut gone = 3u32.to_be_bytes().to_vec();
    option(&mut gone, OPT_ABORT, &[]);
    samples.extend([old, gone]);
    samples
}

fn option(out: &mut Vec<u8>, option: u32, data: &[u8]) {
    handshake::write_option(out, option, data).expect("a vector takes everything");
}

fn requests(out: &mut Vec<u8>) {
    let commands = [
        (Command::Write, 0, 4096, 600),
        (Command::Read, 0, 4096, 600),
        (Command::Write, FLAG_FUA, 0, 512),
        (Command::Flush, 0, 0, 0),
        (Command::Trim, 0, 8192, 4096),
        (Command::WriteZeroes, 2, 1024, 2048),
        (Command::Read, 0, IMAGE as u64 - 512, 512),
        (Command::Read, 0, IMAGE as u64, 1),
        (Command::Unknown(9), 0, 0, 0),
        (Command::Disconnect, 0, 0, 0),
    ];
    for (handle, (command, flags, offset, length)) in (1..).zip(commands) {
        let request = Request {
            command,
            flags,
            handle,
            offset,
            length,
        };
        out.extend(request.to_header().as_bytes());
        if command == Command::Write {
            out.extend(vec![0x5a; length as usize]);
        }
    }
}

fn listener() -> &'static TcpListener {
    static LISTENER: OnceLock<TcpListener> = OnceLock::new();
    LISTENER.get_or_init(|| TcpListener::bind("127.0.0.1:0").expect("a free port on loopback"))
}

/// Input: what the server sends.
fn connect(bytes: &[u8]) {
    let listener = listener();
    let addr = listener.local_addr().expect("it is bound").to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let Ok((mut stream, _)) = listener.accept() else {
                return;
            };
            // The client may hang up first.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(Shutdown::Write);
            let mut scrap = [0; 4096];
            while let Ok(1..) = stream.read(&mut scrap) {}
        });
        let export = ExportName {
            disk: DISK.into(),
            view: None,
        };
        match NbdClient::connect(&addr, &export, Duration::from_secs(5)) {
            Ok(client) => {
                crate::findings::accepted();
                ask(client);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
}

/// Four requests in flight, and answers until something is wrong.
fn ask(client: NbdClient) {
    let (mut sender, mut receiver) = client.split();
    let data = [1; 8];
    let operations = [
        Operation::Read {
            offset: 0,
            length: 16,
        },
        Operation::Write {
            offset: 0,
            data: &data,
            fua: true,
        },
        Operation::Flush,
        Operation::Read {
            offset: 512,
            length: 4,
        },
    ];
    for (handle, operation) in (1..).zip(operations) {
        if sender.send(handle, operation).is_err() {
            return;
        }
    }
    let mut answers = 0;
    while let Ok(reply) = receiver.recv() {
        assert!(
            (1..=4).contains(&reply.handle),
            "{reply:?} was not asked for"
        );
        answers += 1;
    }
    assert!(answers <= 4, "{answers} answers to 4 requests");
    let _ = sender.disconnect();
}

fn server_samples() -> Vec<Vec<u8>> {
    let info = ExportInfo {
        size: 1 << 20,
        flags: wire::nbd::flags::HAS_FLAGS,
        block_min: 1,
        block_preferred: 4096,
        block_max: 1 << 20,
    };
    let mut greeting = MAGIC.to_be_bytes().to_vec();
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend(3u16.to_be_bytes());
    let reply = |kind, data: &[u8]| option_reply_bytes(OPT_GO, kind, data);
    let mut whole = greeting.clone();
    whole.extend(reply(REP_INFO, &info_export_bytes(&info)));
    whole.extend(reply(REP_INFO, &info_block_size_bytes(&info)));
    whole.extend(reply(REP_ACK, &[]));
    for (handle, error, data) in [(1u64, 0u32, 16), (2, 0, 0), (3, 5, 0), (4, 0, 4)] {
        whole.extend(REPLY_MAGIC.to_be_bytes());
        whole.extend(error.to_be_bytes());
        whole.extend(handle.to_be_bytes());
        whole.extend(vec![0x5a; data]);
    }
    let refused = [greeting.clone(), reply(REP_ERR_POLICY, b"view 1 has ended")].concat();
    let unknown = [greeting, reply(REP_ERR_UNKNOWN, b"no such disk")].concat();
    vec![whole, refused, unknown]
}
