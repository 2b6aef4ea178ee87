//! A disk server for tests: in this process or as the real program.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ft_diskd::{Config, DiskConfig, Handle, serve};
use wire::nbd::{ExportName, NbdClient, NbdError, ViewTag};
use wire::register::{RegisterClient, ReplicaId, VmId};

pub const VM: VmId = VmId([4; 16]);
pub const TIMEOUT: Duration = Duration::from_secs(20);
pub const A: ReplicaId = ReplicaId(1);
pub const B: ReplicaId = ReplicaId(2);

pub fn make_image(dir: &Path, size: u64) -> PathBuf {
    let path = dir.join("disk.img");
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

pub fn config(dir: &Path) -> Config {
    let disk = DiskConfig {
        name: "disk0".to_owned(),
        path: dir.join("disk.img"),
        read_only: false,
    };
    Config {
        nbd: "127.0.0.1:0".to_owned(),
        register: "127.0.0.1:0".to_owned(),
        state: dir.join("state"),
        disks: vec![disk],
        snapshots: vec![dir.to_owned()],
    }
}

/// A server in this process over a fresh image.
pub fn start(dir: &Path, size: u64) -> Handle {
    make_image(dir, size);
    serve(&config(dir)).unwrap()
}

pub fn register(addr: impl ToString) -> RegisterClient {
    RegisterClient::new(addr.to_string(), TIMEOUT)
}

pub fn plain() -> ExportName {
    ExportName {
        disk: "disk0".to_owned(),
        view: None,
    }
}

pub fn of_view(view: u64, replica: ReplicaId) -> ExportName {
    ExportName {
        disk: "disk0".to_owned(),
        view: Some(ViewTag {
            vm: VM,
            view,
            replica,
        }),
    }
}

pub fn open(addr: impl ToString, export: &ExportName) -> Result<NbdClient, NbdError> {
    NbdClient::connect(&addr.to_string(), export, TIMEOUT)
}

/// The real program; killed when dropped.
pub struct Program {
    pub child: Child,
    pub nbd: String,
    pub register: String,
}

pub fn program(dir: &Path) -> Program {
    program_at(dir, "127.0.0.1:0", "127.0.0.1:0")
}

pub fn program_at(dir: &Path, nbd: &str, register: &str) -> Program {
    let mut child = Command::new(env!("CARGO_BIN_EXE_ft-diskd"))
        .args(["--nbd", nbd, "--register", register])
        .arg("--state")
        .arg(dir.join("state"))
        .arg("--disk")
        .arg(format!(
            "name=disk0,path={}",
            dir.join("disk.img").display()
        ))
        .env("RUST_LOG", "warn")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let ready: serde_json::Value =
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not ready: {line:?}"));
    let addr = |key: &str| ready[key].as_str().unwrap().to_owned();
    Program {
        nbd: addr("nbd"),
        register: addr("register"),
        child,
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a tool of this host; a missing one fails with the name of its Debian package.
pub fn tool(package: &str, program: &str, args: &[&str]) -> (bool, String) {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| {
            panic!("{program}: {error}; install the Debian package {package:?}")
        });
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}
