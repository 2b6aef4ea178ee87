//! Lockstep's tests, and what they and the demo share: a client that loads a
//! Redis server and records every operation with its answer ([`client`]), the
//! checker that says from such a history whether the server was one correct
//! server all the time ([`check`]), and a web client on one connection
//! ([`http`]).

pub mod check;
pub mod client;
pub mod history;
pub mod http;
