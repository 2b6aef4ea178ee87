//! The switch over real sockets. One program, so that what the tests share is compiled once and
//! used as a whole.

// Helpers outside #[test] functions: a failure to set up is a failed test all the same.
#![allow(clippy::unwrap_used)]

mod failover;
mod guest;
mod namespace;
mod passt;
mod program;
mod tap;
