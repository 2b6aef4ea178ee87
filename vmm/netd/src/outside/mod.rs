//! What is behind the switch: where live replicas' frames go, and where inbound ones come from.

pub mod passt;
pub mod tap;
pub mod user;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;

use crate::config::{Config, Outside, SubnetError};
use crate::server::Fabric;

/// Takes frames from live replicas. Called with the switch locked, so it must not block.
pub trait Sink: Send + Sync {
    fn send(&self, frame: &Bytes);

    /// The switch may have become ready for inbound frames that had to wait.
    fn ready(&self);

    /// The switch ends: the outside's threads must end too.
    fn stop(&self);
}

/// A forward as it was set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarded {
    pub guest_port: u16,
    pub host: SocketAddr,
}

/// A running outside.
pub struct Started {
    pub sink: Arc<dyn Sink>,
    pub forwards: Vec<Forwarded>,
    pub threads: Vec<JoinHandle<()>>,
}

/// Why the outside cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    #[error("--forward needs --net user or --net passt; {0} has no ports of this host")]
    ForwardWithout(Outside),
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    #[error(transparent)]
    User(#[from] user::UserError),
    #[error(transparent)]
    Passt(#[from] passt::PasstError),
    #[error(transparent)]
    Tap(#[from] tap::TapError),
}

/// Sets the outside up; its threads run when this returns.
pub fn start(config: &Config, fabric: &Arc<Fabric>) -> Result<Started, OutsideError> {
    let has_ports = matches!(config.outside, Outside::User | Outside::Passt);
    if !config.forwards.is_empty() && !has_ports {
        return Err(OutsideError::ForwardWithout(config.outside.clone()));
    }
    if has_ports {
        config.subnet.check()?;
    }
    Ok(match &config.outside {
        Outside::User => user::start(&config.forwards, config.subnet, fabric)?,
        Outside::Passt => passt::start(&config.forwards, config.subnet, fabric)?,
        Outside::Tap { name, bridge } => tap::start(name, bridge.as_deref(), fabric)?,
        Outside::None => Started {
            sink: Arc::new(Nowhere),
            forwards: Vec::new(),
            threads: Vec::new(),
        },
    })
}

/// No outside: machines of this switch reach each other only.
struct Nowhere;

impl Sink for Nowhere {
    fn send(&self, _frame: &Bytes) {}
    fn ready(&self) {}
    fn stop(&self) {}
}
