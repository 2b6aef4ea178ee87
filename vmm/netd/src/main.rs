//! `ft-netd`: the switch between Lockstep's replicas and the outside.

use std::io::{IsTerminal, Write};
use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use ft_netd::config::Subnet;
use ft_netd::{Config, Forward, Outside, serve};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Switches Ethernet frames between the live replica of a virtual machine and the outside, and
/// keeps client connections alive while replicas change.
///
/// When ready, prints one line of JSON:
/// {"replicas":"HOST:PORT","forwards":[{"guest_port":6379,"host":"HOST:PORT"}]}.
/// Logs go to stderr (RUST_LOG chooses what). Ends in order on SIGTERM and SIGINT.
#[derive(Parser)]
#[command(name = "ft-netd", version)]
struct Args {
    /// Where replicas connect; port 0 picks a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:10811")]
    replicas: String,

    /// What is outside: user (TCP forwarding, built in), passt, tap=NAME[,bridge=NAME], none
    #[arg(long, value_name = "NET", default_value = "user")]
    net: Outside,

    /// Forward a TCP port of this host to the guest; host port 0 picks a free one; may be repeated
    #[arg(long = "forward", value_name = "ADDRESS:PORT:GUEST-PORT")]
    forwards: Vec<Forward>,

    /// The guest's address behind user or passt (DHCP gives it this one)
    #[arg(long, value_name = "IP", default_value_t = Subnet::default().guest)]
    guest: Ipv4Addr,

    /// The gateway's address behind user or passt
    #[arg(long, value_name = "IP", default_value_t = Subnet::default().gateway)]
    gateway: Ipv4Addr,

    /// Bits of the network part of both
    #[arg(long, value_name = "BITS", default_value_t = Subnet::default().prefix)]
    prefix: u8,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ft-netd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    // Before anything is served, so that no signal is lost.
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot wait for signals")?;
    let Args {
        replicas,
        net: outside,
        forwards,
        guest,
        gateway,
        prefix,
    } = args;
    let subnet = Subnet {
        guest,
        gateway,
        prefix,
    };
    let handle = serve(&Config {
        replicas,
        outside,
        forwards,
        subnet,
    })?;
    let forwards: Vec<_> = handle
        .forwards()
        .iter()
        .map(|f| serde_json::json!({ "guest_port": f.guest_port, "host": f.host.to_string() }))
        .collect();
    let ready =
        serde_json::json!({ "replicas": handle.replicas().to_string(), "forwards": forwards });
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{ready}")
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")?;
    if let Some(signal) = signals.forever().next() {
        tracing::info!(signal, "ending");
    }
    drop(handle);
    Ok(())
}
