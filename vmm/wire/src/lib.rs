//! The wire formats between Lockstep's processes, and small blocking clients for them.
//!
//! | module | between | carries |
//! |---|---|---|
//! | [`nbd`] | `ft-vmm` (or any NBD client) and `ft-diskd` | the shared disk |
//! | [`register`] | `ft-vmm`, `ft-ctl` and `ft-diskd` | the view register: test-and-set, snapshots |
//! | [`netport`] | `ft-vmm` and `ft-netd` | Ethernet frames and who is live |
//! | [`control`] | `ft-ctl` and `ft-vmm` | status, console, save, power |
//! | [`running`] | `ft-ctl` and itself, later | which processes a machine has |
//!
//! Parsing is pure and bounded: every length that a peer sends is checked before anything of that
//! length is allocated, and bad input is an error that says what was wrong, never a panic. The
//! clients are plain threads' clients: one `TcpStream` each, with timeouts, split into halves
//! where a caller wants many requests in flight.
//!
//! [`daemon`] is how a server's program starts and ends.

pub mod control;
pub mod daemon;
pub mod line;
pub mod nbd;
pub mod net;
pub mod netport;
pub mod register;
pub mod running;
