//! The targets.

mod board;
mod channel;
mod config;
mod control;
mod frames;
mod guest;
mod images;
mod kernel;
mod log;
mod nbd;
mod netport;
mod register;
mod replay;
mod saved;
mod session;
mod toy;

use crate::Target;

/// All of them, in the order of the layers: what the guest reaches, peers, files, people.
pub const ALL: &[Target] = &[
    board::TARGET,
    guest::TARGET,
    log::TARGET,
    channel::TARGET,
    replay::TARGET,
    nbd::SERVER,
    nbd::CLIENT,
    register::REQUESTS,
    register::STATE,
    netport::TARGET,
    frames::TARGET,
    control::REQUESTS,
    control::ANSWERS,
    kernel::TARGET,
    saved::TARGET,
    config::TARGET,
];
