//! Values that are written as text: sizes, addresses, forwards, network modes.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::memory::{MAX_RAM, MIN_RAM, RAM_UNIT};

/// Serialises a type as its `Display` text and parses it with `FromStr`.
macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    )*};
}

as_text!(Address, ByteSize, Mac, NetMode, RamSize, Seed);

/// A number of bytes, written with a unit: `512MiB`, `64KiB`, `1GiB`, or plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is not a size: write a whole number and a unit, as in \"512MiB\" (KiB, \
                 MiB, GiB, TiB; K, M, G, T mean the same)"
            )
        };
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let unit = unit.trim_start();
        let shift = match unit {
            "" | "B" => 0,
            _ => UNITS
                .iter()
                .find(|(name, _)| *name == unit || name[..1] == *unit)
                .map(|(_, shift)| *shift)
                .ok_or_else(bad)?,
        };
        let bytes = number.checked_mul(1 << shift).ok_or_else(bad)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS
            .iter()
            .find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift));
        match unit {
            Some((name, shift)) => write!(f, "{}{name}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A size that RAM can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RamSize(ByteSize);

impl RamSize {
    /// 512 MiB.
    pub const DEFAULT: Self = Self(ByteSize(512 << 20));

    /// In bytes; [`crate::memory::GuestRam::new`] takes it.
    pub fn bytes(self) -> u64 {
        self.0.0
    }
}

impl FromStr for RamSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: ByteSize = text.parse()?;
        if (MIN_RAM..=MAX_RAM).contains(&size.0) && size.0.is_multiple_of(RAM_UNIT) {
            Ok(Self(size))
        } else {
            Err(format!(
                "memory of {size} is not possible: from {} to {}, a multiple of {}",
                ByteSize(MIN_RAM),
                ByteSize(MAX_RAM),
                ByteSize(RAM_UNIT)
            ))
        }
    }
}

impl fmt::Display for RamSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `HOST:PORT`; the host may be a name, an IPv4 address or an IPv6 address in brackets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// The loopback address with this port.
    pub fn loopback(port: u16) -> Self {
        Self {
            host: "127.0.0.1".into(),
            port,
        }
    }

    /// Without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        self.host.trim_start_matches('[').trim_end_matches(']')
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is not an address: write HOST:PORT, as in \"127.0.0.1:7000\", \
                 \"host-b:7000\" or \"[::1]:7000\""
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host_ok = match inner {
            Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
                !host.is_empty() && host.chars().all(word)
            }
        };
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match port.parse() {
            Ok(port) if host_ok && digits => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A unicast Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is not a unicast Ethernet address: write six bytes, as in \
                 \"02:00:5e:10:00:01\", the first of them even"
            )
        };
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() || mac[0] & 1 != 0 || mac == [0; 6] {
            return Err(bad());
        }
        Ok(Self(mac))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let colon = if i == 0 { "" } else { ":" };
            write!(f, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Seed of the guest's entropy device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Seed(pub [u8; 32]);

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is not a seed: write 64 hexadecimal digits, as `openssl rand -hex 32` does"
            )
        };
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut seed = [0; 32];
        for (byte, at) in seed.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(seed))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What the network interface is connected to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NetMode {
    /// A forwarder in `ft-netd` itself; needs no rights.
    #[default]
    User,
    /// `passt` behind `ft-netd`; needs no rights.
    Passt,
    /// A TAP device, and a bridge that it is put into.
    Tap {
        name: String,
        bridge: Option<String>,
    },
    /// No interface.
    None,
}

impl FromStr for NetMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text:?} is not a network mode: write user, passt, none, tap=NAME or \
                 tap=NAME,bridge=NAME (names of at most 15 bytes)"
            )
        };
        let interface = |name: &str| {
            let word = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ',' | ':');
            let valid = (1..16).contains(&name.len())
                && name.chars().all(word)
                && name != "."
                && name != "..";
            valid.then(|| name.to_owned()).ok_or_else(bad)
        };
        match text {
            "user" => return Ok(Self::User),
            "passt" => return Ok(Self::Passt),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let tap = text.strip_prefix("tap=").ok_or_else(bad)?;
        let (name, bridge) = match tap.split_once(",bridge=") {
            Some((name, bridge)) => (name, Some(interface(bridge)?)),
            None => (tap, None),
        };
        Ok(Self::Tap {
            name: interface(name)?,
            bridge,
        })
    }
}

impl fmt::Display for NetMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::Passt => f.write_str("passt"),
            Self::None => f.write_str("none"),
            Self::Tap { name, bridge: None } => write!(f, "tap={name}"),
            Self::Tap {
                name,
                bridge: Some(bridge),
            } => write!(f, "tap={name},bridge={bridge}"),
        }
    }
}

/// A TCP port of the guest that is reachable at an address of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// Port in the guest.
    pub guest: NonZeroU16,
    /// Where the host listens; port 0 takes a free one.
    #[serde(default = "any_loopback")]
    pub host: Address,
}

fn any_loopback() -> Address {
    Address::loopback(0)
}

impl Forward {
    /// A guest port at a free loopback port.
    pub fn to_guest(guest: NonZeroU16) -> Self {
        Self {
            guest,
            host: any_loopback(),
        }
    }
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |why: &str| {
            format!(
                "{text:?} is not a forward{why}: write GUEST_PORT, HOST_PORT:GUEST_PORT or \
                 ADDRESS:HOST_PORT:GUEST_PORT"
            )
        };
        let (host, guest) = match text.rsplit_once(':') {
            None => (any_loopback(), text),
            Some((host, guest)) if host.bytes().all(|b| b.is_ascii_digit()) => {
                let port = host.parse().map_err(|_| bad(" (bad host port)"))?;
                (Address::loopback(port), guest)
            }
            Some((host, guest)) => (host.parse().map_err(|_| bad(" (bad address)"))?, guest),
        };
        let guest = guest.parse().map_err(|_| bad(" (bad guest port)"))?;
        Ok(Self { guest, host })
    }
}
