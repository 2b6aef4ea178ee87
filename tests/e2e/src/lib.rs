//! Machines as a test sees them: started with `ft-ctl` like a user's, each with a folder of its own,
//! watched through the control API, ended whatever happens.
//!
//! | module | topic |
//! |---|---|
//! | [`machine`] | a machine that `ft-ctl up` started: its processes, status, forwards, end |
//! | [`programs`] | where Lockstep's programs are |
//! | [`wait`] | waiting for something to become true, within a bound, until Ctrl-C |
//! | [`samples`] | what the replicas said of themselves, ten times a second |
//! | [`failover`] | a load, a kill in the middle of it, and what clients saw |

pub mod failover;
pub mod machine;
pub mod programs;
pub mod samples;
pub mod wait;
