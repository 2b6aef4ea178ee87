//! Hosts made of network namespaces: each with one interface, all on one bridge, away from the
//! machine's own network. Needs root, as ip-netns(8) does.

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, bail};
use cli::eprintln;
use nix::sched::{CloneFlags, setns};

/// A network of hosts; removed when this value goes.
pub struct Network {
    /// Part of every namespace's name.
    tag: String,
    hosts: Vec<String>,
}

impl Network {
    /// The hosts 10.77.0.1, 10.77.0.2, … on a switch.
    pub fn new(count: u8) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("network namespaces need root; run this scenario with sudo");
        }
        let tag = format!("ls{:x}", std::process::id());
        let mut network = Self {
            tag,
            hosts: Vec::new(),
        };
        let switch = network.add("switch")?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for number in 1..=count {
            let host = network.add(&number.to_string())?;
            let port = format!("port{number}");
            let link = [
                "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
                "netns", &host,
            ];
            ip(&link)?;
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
            let address = format!("{}/24", Self::address(number));
            ip(&["-n", &host, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &host, "link", "set", "eth0", "up"])?;
        }
        Ok(network)
    }

    fn add(&mut self, name: &str) -> Result<String> {
        let name = format!("{}-{name}", self.tag);
        ip(&["netns", "add", &name])?;
        self.hosts.push(name.clone());
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        Ok(name)
    }

    pub fn address(host: u8) -> String {
        format!("10.77.0.{host}")
    }

    /// `program`, to be run on a host.
    pub fn command(&self, host: u8, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &format!("{}-{host}", self.tag)])
            .arg(program);
        command
    }

    /// Plugs a host's cable in or out.
    pub fn plug(&self, host: u8, plugged: bool) -> Result<()> {
        let switch = format!("{}-switch", self.tag);
        let state = if plugged { "up" } else { "down" };
        ip(&["-n", &switch, "link", "set", &format!("port{host}"), state])
    }

    /// Runs `work` in a thread that is on a host; threads that it starts are there too.
    pub fn on<T: Send>(&self, host: u8, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/run/netns/{}-{host}", self.tag);
        let namespace = File::open(&path).with_context(|| path.clone())?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            if let Err(why) = ip(&["netns", "del", host]) {
                eprintln!("a namespace is left: {why:#}");
            }
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(args).output();
    let output = output.context("ip (of the package iproute2) could not be started")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", args.join(" "), said.trim_end());
    }
    Ok(())
}
