//! `ft-netd`: the switch between Lockstep's replicas and the outside.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use clap::Parser;
use ft_netd::config::Subnet;
use ft_netd::{Config, Forward, Outside, serve};

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
    let Args {
        replicas,
        net: outside,
        forwards,
        guest,
        gateway,
        prefix,
    } = Args::parse();
    let subnet = Subnet {
        guest,
        gateway,
        prefix,
    };
    wire::daemon::main("ft-netd", || {
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
        Ok((handle, ready))
    })
}
