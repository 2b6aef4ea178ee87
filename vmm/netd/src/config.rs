//! What a switch connects, and where it listens.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// The settings of one switch.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST:PORT` where replicas connect; port 0 lets the system pick.
    pub replicas: String,
    pub outside: Outside,
    pub forwards: Vec<Forward>,
    pub subnet: Subnet,
}

/// The network that the guest sees behind user-mode forwarding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    pub guest: Ipv4Addr,
    pub gateway: Ipv4Addr,
    /// Bits of the network part.
    pub prefix: u8,
}

/// Why a subnet cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest {0} and the gateway {1} must be two hosts of one network of {2} bits (8 to 30)")]
pub struct SubnetError(Ipv4Addr, Ipv4Addr, u8);

impl Subnet {
    pub fn netmask(&self) -> Ipv4Addr {
        let host_bits = 32u32.saturating_sub(u32::from(self.prefix));
        Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0))
    }

    pub fn check(&self) -> Result<(), SubnetError> {
        let mask = self.netmask().to_bits();
        let (guest, gateway) = (self.guest.to_bits(), self.gateway.to_bits());
        let is_host = |address: u32| address & !mask != 0 && address & !mask != !mask;
        let good = (8..=30).contains(&self.prefix)
            && guest & mask == gateway & mask
            && guest != gateway
            && is_host(guest)
            && is_host(gateway);
        if good {
            Ok(())
        } else {
            Err(SubnetError(self.guest, self.gateway, self.prefix))
        }
    }
}

impl Default for Subnet {
    fn default() -> Subnet {
        Subnet {
            guest: Ipv4Addr::new(10, 0, 2, 15),
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            prefix: 24,
        }
    }
}

/// What is behind the switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outside {
    /// TCP forwarding by this process itself.
    User,
    /// TCP forwarding by a `passt` process.
    Passt,
    /// A TAP interface, made if missing, and attached to a bridge if named.
    Tap {
        name: String,
        bridge: Option<String>,
    },
    None,
}

/// Why a `--net` argument cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network: write user, passt, tap=NAME[,bridge=NAME] or none")]
pub struct OutsideError(String);

/// An interface's name as the kernel takes it.
fn interface_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    (1..16).contains(&name.len()) && name.chars().all(plain)
}

impl FromStr for Outside {
    type Err = OutsideError;

    fn from_str(text: &str) -> Result<Outside, OutsideError> {
        let bad = || OutsideError(text.to_owned());
        match text {
            "user" => return Ok(Outside::User),
            "passt" => return Ok(Outside::Passt),
            "none" => return Ok(Outside::None),
            _ => {}
        }
        let (mut name, mut bridge) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("tap", value)) if interface_name(value) => name = Some(value.to_owned()),
                Some(("bridge", value)) if interface_name(value) => bridge = Some(value.to_owned()),
                _ => return Err(bad()),
            }
        }
        Ok(Outside::Tap {
            name: name.ok_or_else(bad)?,
            bridge,
        })
    }
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outside::User => f.write_str("user"),
            Outside::Passt => f.write_str("passt"),
            Outside::None => f.write_str("none"),
            Outside::Tap { name, bridge: None } => write!(f, "tap={name}"),
            Outside::Tap {
                name,
                bridge: Some(bridge),
            } => write!(f, "tap={name},bridge={bridge}"),
        }
    }
}

/// A TCP port of the host that leads to one of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// Port 0: a free one is picked.
    pub host: SocketAddr,
    pub guest_port: u16,
}

/// Why a `--forward` argument cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a forward: write HOST-ADDRESS:HOST-PORT:GUEST-PORT, as 127.0.0.1:0:6379")]
pub struct ForwardError(String);

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Forward, ForwardError> {
        let bad = || ForwardError(text.to_owned());
        let (host, guest) = text.rsplit_once(':').ok_or_else(bad)?;
        let host = host.parse().map_err(|_| bad())?;
        match guest.parse() {
            Ok(0) | Err(_) => Err(bad()),
            Ok(guest_port) => Ok(Forward { host, guest_port }),
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.guest_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_holds_two_hosts() {
        let good = Subnet::default();
        assert_eq!(good.check(), Ok(()));
        assert_eq!(good.netmask(), Ipv4Addr::new(255, 255, 255, 0));
        for prefix in [0, 7, 28, 31, 32, 33, 255] {
            // 10.0.2.15 is the broadcast address of 10.0.2.0/28.
            assert!(Subnet { prefix, ..good }.check().is_err(), "/{prefix}");
        }
        assert!(
            Subnet {
                guest: good.gateway,
                ..good
            }
            .check()
            .is_err()
        );
        assert!(
            Subnet {
                guest: Ipv4Addr::new(10, 0, 3, 1),
                ..good
            }
            .check()
            .is_err()
        );
    }

    #[test]
    fn arguments_are_read_or_explained() {
        for text in ["user", "passt", "none", "tap=ft0", "tap=ft0,bridge=br0"] {
            assert_eq!(text.parse::<Outside>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "tap",
            "tap=",
            "tap=a/b",
            "bridge=b",
            "tap=aaaaaaaaaaaaaaaaa",
            "user,x",
        ] {
            assert!(text.parse::<Outside>().is_err(), "{text:?}");
        }
        for text in ["127.0.0.1:0:6379", "[::1]:80:8080"] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        for text in [
            "6379",
            "127.0.0.1:6379",
            "127.0.0.1:1:0",
            "127.0.0.1:1:70000",
            "host:1:2",
        ] {
            assert!(text.parse::<Forward>().is_err(), "{text:?}");
        }
    }
}
