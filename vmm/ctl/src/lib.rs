//! What `ft-ctl` does, as a library, so that demos, benches and tests start and stop machines in
//! the very way that people do.
//!
//! | module | topic |
//! |---|---|
//! | [`rundir`] | where a running machine's files are, and which processes are its own |
//! | [`process`] | starting a program and waiting until it is ready; ending it by id |
//! | [`up`] | the whole of a machine: guest image, disk, servers, replicas |
//! | [`down`] | ending it, and leaving nothing behind |
//! | [`status`] | what both replicas say, as one |
//! | [`doctor`] | what this host offers and lacks |
//! | [`watch`] | the live view in a terminal |
//! | [`bench`] | what protection costs, and what clients see of failovers |
//! | [`interrupt`] | Ctrl-C |
//! | [`console`] | the guest's console in a terminal |
//! | [`log`] | log files: dump and replay |

pub mod bench;
pub mod console;
pub mod doctor;
pub mod down;
pub mod interrupt;
pub mod log;
pub mod process;
pub mod progress;
pub mod rundir;
pub mod status;
pub mod up;
pub mod watch;
