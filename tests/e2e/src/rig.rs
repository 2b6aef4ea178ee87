//! A machine started process by process, as on several hosts, with whatever a test wants in between.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use wire::control::ControlAddr;
use wire::register::ReplicaId;
use wire::running::{Forwarded, ReplicaProcess, Running};

use crate::base::Base;
use crate::home::Home;
use crate::hosts::Network;
use crate::machine::Machine;
use crate::process::{self, Owned};
use crate::programs;
use crate::proxy::Proxy;

/// The hosts of a three-host set-up.
pub const HOST_A: u8 = 1;
pub const HOST_B: u8 = 2;
pub const HOST_C: u8 = 3;

/// What to start.
#[derive(Default)]
pub struct Layout<'a> {
    /// Primary on host A, backup on B, servers on C; without one: everything on loopback.
    pub network: Option<&'a Network>,
    /// Put proxies between the primary and the others.
    pub proxied: bool,
    /// Boot from power-on instead of going on from the saved state.
    pub boot: bool,
    /// More flags for the backup alone.
    pub backup_flags: &'a [&'a str],
}

/// A machine and what was put in between.
pub struct Rig {
    pub machine: Machine,
    pub proxies: Option<Proxies>,
}

/// Between the primary and the others.
pub struct Proxies {
    pub log: Proxy,
    pub disk: Proxy,
    pub net: Proxy,
}

struct Starting<'a> {
    home: Home,
    base: &'a Base,
    layout: Layout<'a>,
    name: String,
    own: Vec<Owned>,
}

/// Starts servers, backup and primary.
pub fn start(base: &Base, layout: Layout<'_>) -> Result<Rig> {
    let home = Home::temporary()?;
    let name = base.setting("name")?.to_owned();
    let mut starting = Starting {
        home,
        base,
        layout,
        name,
        own: Vec::new(),
    };
    let outcome = starting.all();
    let Starting { home, own, .. } = starting;
    let (running, proxies) = outcome?;
    Ok(Rig {
        machine: Machine::assembled(home, running, own),
        proxies,
    })
}

impl Starting<'_> {
    fn all(&mut self) -> Result<(Running, Option<Proxies>)> {
        std::fs::create_dir_all(self.file(""))?;
        std::fs::write(self.file("vm.toml"), &self.base.config)?;
        let image = self.file("disk.img");
        self.base.copy_disk(&image)?;

        let server = self.at(HOST_C);
        let disk = format!("name={},path={}", self.name, image.display());
        let state = self.file("register").display().to_string();
        std::fs::create_dir_all(&state)?;
        let args = [
            "--nbd",
            &server,
            "--register",
            &server,
            "--state",
            &state,
            "--disk",
            &disk,
        ];
        let diskd = self.start(HOST_C, "ft-diskd", "diskd", &args)?;
        let (nbd, register) = (text(&diskd, "nbd")?, text(&diskd, "register")?);

        let redis = format!("{server}:6379");
        let web = format!("{server}:80");
        let args = [
            "--replicas",
            &server,
            "--net",
            "user",
            "--forward",
            &redis,
            "--forward",
            &web,
        ];
        let netd = self.start(HOST_C, "ft-netd", "netd", &args)?;
        let switch = text(&netd, "replicas")?;
        self.create_view(&register)?;

        let flags = self.layout.backup_flags.to_vec();
        let listen = self.at(HOST_B);
        let backup = self.replica(2, "backup", [&nbd, &register, &switch, &listen], &flags)?;
        let log = text(&backup, "log")?;
        let proxies = match self.layout.proxied {
            true => Some(Proxies {
                log: Proxy::start(&log)?,
                disk: Proxy::start(&nbd)?,
                net: Proxy::start(&switch)?,
            }),
            false => None,
        };
        let to_primary = match &proxies {
            Some(between) => [
                &between.disk.address(),
                &register,
                &between.net.address(),
                &between.log.address(),
            ]
            .map(|address| address.to_owned()),
            None => [&nbd, &register, &switch, &log].map(|address| address.to_owned()),
        };
        let primary = self.replica(1, "primary", to_primary.each_ref(), &[])?;

        // In the order of their starting.
        let mut own = self.own.iter();
        let mut next = || own.next().map(Owned::process);
        let (diskd, netd_process) = (next(), next());
        let mut replicas = Vec::new();
        for (id, ready) in [(2, backup), (1, primary)] {
            let control: ControlAddr = text(&ready, "control")?.parse()?;
            let process = next().context("a process is missing")?;
            let id = ReplicaId(id);
            replicas.push(ReplicaProcess {
                id,
                process,
                control,
            });
        }
        let running = Running {
            name: self.name.clone(),
            vm: self.base.setting("uuid")?.parse()?,
            diskd,
            netd: netd_process,
            nbd: Some(nbd),
            register: Some(register),
            switch: Some(switch),
            forwards: serde_json::from_value::<Vec<Forwarded>>(netd["forwards"].clone())?,
            replicas,
        };
        Ok((running, proxies))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.file(&self.name).join(name)
    }

    /// A free port of a host.
    fn at(&self, host: u8) -> String {
        match self.layout.network {
            Some(_) => format!("{}:0", Network::address(host)),
            None => "127.0.0.1:0".to_owned(),
        }
    }

    fn command(&self, host: u8, program: &str) -> Result<Command> {
        let path = programs::path(program)?;
        Ok(match self.layout.network {
            Some(network) => network.command(host, &path),
            None => Command::new(path),
        })
    }

    fn start(&mut self, host: u8, program: &str, log: &str, args: &[&str]) -> Result<Value> {
        let mut command = self.command(host, program)?;
        command.args(args);
        let (owned, ready) = process::start(command, &self.file(&format!("{log}.log")))?;
        self.own.push(owned);
        Ok(ready)
    }

    fn create_view(&self, register: &str) -> Result<()> {
        let vm = self.base.setting("uuid")?;
        let mut command = self.command(HOST_C, "ft-ctl")?;
        command.args(["view", "create", "--register", register, vm]);
        command.args(["--primary", "1", "--backup", "2", "--disk", &self.name]);
        let output = command.output()?;
        if !output.status.success() {
            bail!(
                "ft-ctl view create: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// `[nbd, register, switch, log]` are the addresses that it is given.
    fn replica(
        &mut self,
        id: u64,
        role: &str,
        [nbd, register, switch, log]: [&String; 4],
        flags: &[&str],
    ) -> Result<Value> {
        let host = if role == "primary" { HOST_A } else { HOST_B };
        let path = |name: String| self.file(&name).display().to_string();
        let control = format!("unix:{}", path(format!("replica-{id}.sock")));
        let serial = path(format!("replica-{id}.serial"));
        let config = path("vm.toml".into());
        let state = self.base.state().display().to_string();
        let number = id.to_string();
        let mut args = vec!["--role", role, "--replica", &number, "--config", &config];
        args.extend(["--control", &control, "--serial-file", &serial]);
        args.extend([
            "--nbd",
            nbd,
            "--register",
            register,
            "--netd",
            switch,
            "--log",
            log,
        ]);
        if !self.layout.boot {
            args.extend(["--from", &state]);
        }
        args.extend(flags);
        self.start(host, "ft-vmm", &format!("replica-{id}"), &args)
    }
}

fn text(ready: &Value, key: &str) -> Result<String> {
    let value = ready[key].as_str();
    value
        .map(str::to_owned)
        .with_context(|| format!("a program's ready line has no {key}: {ready}"))
}
