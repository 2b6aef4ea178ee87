//! Whether the engine works on this host, found out by running code, and said in words.
//!
//! A VM that can be created proves nothing: some hosts offer a `/dev/kvm` that emulates, or whose
//! nested virtualisation is off. Every run is bounded by the engine's own timer.

mod guest;
mod host;

pub(crate) use host::shadow_paging;

pub use landing::{Check, Outcome};
use serde::Serialize;

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    pub checks: Vec<Check>,
}

impl Probe {
    /// What failed first; None if the engine works.
    pub fn failure(&self) -> Option<&Check> {
        self.checks
            .iter()
            .find(|check| check.result == Outcome::Fail)
    }

    pub fn works(&self) -> bool {
        self.failure().is_none()
    }

    /// In one line, why the engine can be used or not.
    pub fn why(&self) -> String {
        match self.failure() {
            Some(check) => format!("{}: {}", check.name, check.detail),
            None => {
                let speed = self.checks.iter().find(|check| check.name == guest::SPEED);
                let speed = speed.map_or("", |check| check.detail.as_str());
                format!("KVM ran a guest with every instruction trapped that must be; {speed}")
            }
        }
    }
}

/// Tries everything. Takes some tens of milliseconds where the engine works.
pub fn probe() -> Probe {
    let mut checks = host::checks();
    if checks.iter().any(|check| check.result == Outcome::Fail) {
        checks.push(Check::new(
            "kvm guest",
            Outcome::Skipped,
            "no guest was run, since something before it failed",
        ));
    } else {
        checks.extend(guest::checks());
    }
    Probe { checks }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On every host: it ends, says something of each thing, and tells how to mend what it refuses.
    #[test]
    fn tells_what_it_found() {
        let probe = probe();
        for check in &probe.checks {
            println!("{:?} {}: {}", check.result, check.name, check.detail);
            assert!(!check.detail.is_empty());
            let fault = matches!(check.result, Outcome::Fail | Outcome::Warn);
            assert!(!fault || check.fix.is_some(), "{check:?}");
        }
        if probe.works() {
            println!("the engine works here: the conformance guests can be run on it");
        } else {
            println!("left out, since the engine does not work here: everything that runs a guest");
        }
        assert!(!probe.why().is_empty());
    }
}
