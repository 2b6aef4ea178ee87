//! Machines as a test sees them: started with `ft-ctl` like a user's, or process by process as on
//! several hosts, each with a folder of its own; watched through the control API; ended whatever
//! happens.
//!
//! | module | topic |
//! |---|---|
//! | [`conditions`] | the configuration of all machines, and how patient waits are |
//! | [`base`] | the saved state from which most tests start |
//! | [`machine`] | a running machine: its processes, status, forwards, end |
//! | [`home`] | a machine's folder, and starting it with `ft-ctl up` |
//! | [`process`] | its processes |
//! | [`rig`] | starting it process by process, with proxies or hosts in between |
//! | [`proxy`] | a TCP proxy that can be cut and that counts what passes |
//! | [`hosts`] | network namespaces as hosts |
//! | [`failover`] | a load, a kill in the middle of it, and what clients saw |
//! | [`samples`] | what the replicas said of themselves, ten times a second |
//! | [`programs`] | where Lockstep's programs are |
//! | [`wait`] | waiting for something to become true, within a bound, until Ctrl-C |
//! | [`scenarios`] | the end-to-end tests |

pub mod base;
pub mod conditions;
pub mod failover;
pub mod home;
pub mod hosts;
pub mod machine;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod rig;
pub mod samples;
pub mod scenarios;
pub mod wait;
