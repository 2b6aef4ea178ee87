//! A pair of replicas as processes, which can be killed.

#![allow(clippy::unwrap_used)] // a test's helpers may fail the test

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use vmm::replica::ReadyAt;

use crate::{common, pair};

/// A replica's process. It ends with this value.
pub struct Replica {
    child: Child,
    pub at: ReadyAt,
}

pub struct Processes {
    pub primary: Replica,
    pub backup: Replica,
    pub diskd: ft_diskd::Handle,
}

impl Processes {
    pub fn start(dir: &tempfile::TempDir, guest: &[u8]) -> Self {
        let dir = dir.path();
        let (diskd, endpoints) = pair::serve(dir);
        let mut config = common::config(dir, pair::VM, guest);
        config.hash.interval = 200_000;
        // A busy host is not a dead one; a killed process closes its connection.
        config.detect.suspect_ms = 20_000.try_into().unwrap();
        let file = dir.join("vm.toml");
        std::fs::write(&file, config.to_toml().unwrap()).unwrap();
        let register = endpoints.register.unwrap().to_string();
        let start = |id, role, log: Option<&str>| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ft-vmm-exits"));
            command
                .args(["--role", role, "--replica", id, "--register", &register])
                .arg("--config")
                .arg(&file)
                .arg("--control")
                .arg(format!("unix:{}", dir.join(format!("{id}.sock")).display()))
                .arg("--serial-file")
                .arg(dir.join(format!("{id}.serial")));
            if let Some(log) = log {
                command.args(["--log", log]);
            }
            Replica::start(command, &dir.join(format!("{id}.log")))
        };
        let backup = start("2", "backup", None);
        let primary = start("1", "primary", backup.at.log.as_deref());
        Self {
            primary,
            backup,
            diskd,
        }
    }
}

impl Replica {
    fn start(mut command: Command, log: &Path) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let Ok(at) = serde_json::from_str::<serde_json::Value>(&line) else {
            panic!("it said {line:?} and {:?}", std::fs::read_to_string(log));
        };
        let at = ReadyAt {
            control: at["control"].as_str().unwrap().to_owned(),
            log: at["log"].as_str().map(str::to_owned),
        };
        Self { child, at }
    }

    /// As if its host had failed.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end; gives its exit status.
    pub fn end(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It has ended already, or nobody needs it any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
