//! The state that every run begins from: the Debian guest, booted once, prepared and saved.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::home::Home;
use e2e::machine::Machine;
use tempfile::TempDir;

use super::Teller;
use super::shell::Shell;
use super::workload::{FILE_MIB, SINK_PORT};

/// They bound hangs only.
const BOOT: Duration = Duration::from_secs(600);
const PREPARE: Duration = Duration::from_secs(100);

/// Counts what it is sent, and says how much that was.
const SINK: &str = "\
import socket
listener = socket.create_server(('', PORT))
buffer = bytearray(262144)
while True:
    link, _ = listener.accept()
    total = 0
    while True:
        n = link.recv_into(buffer)
        if n == 0:
            break
        total += n
    link.sendall(str(total).encode())
    link.close()
";

/// A saved machine, removed at the end.
pub struct Base {
    folder: TempDir,
}

impl Base {
    /// Boots, prepares and saves. Takes about half a minute.
    pub fn make(teller: &Teller) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("lockstep-base-")
            .tempdir()?;
        let base = Self { folder };
        teller.say("base: booting the Debian guest, once");
        let machine = start(&["--ft", "false"])?;
        machine.wait_redis(BOOT, |status| {
            teller.say(&format!(
                "base: booting, {:.0} s of the guest's time",
                status.guest_clock_ns as f64 / 1e9
            ));
        })?;
        teller.say("base: preparing files and programs in it");
        prepare(&machine)?;
        teller.say("base: saving it");
        machine.save(&base.state())?;
        machine.down()?;
        Ok(base)
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// A machine that goes on from it, with or without a backup.
    pub fn resume(&self, ft: bool, more: &[&str]) -> Result<Machine> {
        let state = self.state();
        let state = state.to_str().context("the folder's name is not UTF-8")?;
        let mut args = vec!["--from", state];
        args.extend(ft_args(ft));
        args.extend(more);
        start(&args)
    }
}

/// A machine from power-on.
pub fn boot(ft: bool) -> Result<Machine> {
    start(&ft_args(ft))
}

fn ft_args(ft: bool) -> [&'static str; 2] {
    ["--ft", if ft { "true" } else { "false" }]
}

fn start(args: &[&str]) -> Result<Machine> {
    let sink = SINK_PORT.to_string();
    let mut all = vec!["--name", "bench"];
    for port in ["6379", "80", &sink] {
        all.extend(["--forward", port]);
    }
    all.extend(args);
    Home::temporary()?.up(&all)
}

fn prepare(machine: &Machine) -> Result<()> {
    let mut shell = Shell::open(machine)?;
    shell.silence(PREPARE)?;
    let sink = SINK.replace("PORT", &SINK_PORT.to_string());
    shell.run(&format!("cat >/root/sink.py <<'END'\n{sink}END"), PREPARE)?;
    shell.run(
        "python3 /root/sink.py </dev/null >/dev/null 2>&1 &",
        PREPARE,
    )?;
    let blocks =
        format!("dd if=/dev/urandom of=/var/www/html/big bs=1M count={FILE_MIB} 2>/dev/null");
    shell.run(&blocks, PREPARE)?;
    shell.run("sync", PREPARE)?;
    Ok(())
}
