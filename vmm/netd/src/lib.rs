//! `ft-netd`: the L2 switch between replicas and the outside.
//!
//! It outlives replicas: client connections end here (user-mode forwarding) or pass through here
//! (`passt`, TAP), so they survive a failover. Three rules make that so:
//!
//! 1. Frames are taken only from the replica that is live in the highest view announced.
//! 2. Inbound frames go to that replica alone, and are kept until it says that they are safe in
//!    the log; what is not goes to the next live replica again, in order.
//! 3. While no replica is live, inbound traffic waits.
//!
//! | module | topic |
//! |---|---|
//! | [`config`] | ports, forwards, which outside |
//! | [`switch`] | the rules, as a state machine |
//! | [`port`] | a replica's connection |
//! | [`outside`] | user-mode TCP forwarding, `passt`, TAP, nothing |
//! | [`server`] | listeners, threads, start and stop |

pub mod config;
pub mod outside;
pub mod port;
pub mod server;
pub mod switch;

pub use config::{Config, Forward, Outside};
pub use server::{Handle, ServeError, serve};
