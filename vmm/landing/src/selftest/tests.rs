//! The self-test, put to vCPUs on the software CPU: good ones pass, bad ones are refused.

use engine::EngineError;

use super::*;
use crate::counter::BranchCounter;
use crate::fake::{Lateness, SoftCounter, SoftVcpu, make};
use crate::stepper::{Motion, Place, Stop};

const EXACT: Lateness = Lateness {
    bound: 100,
    branches: 100,
    instructions: 0,
};

const SHORT: Effort = Effort {
    recordings: 2,
    replays: 4,
    passes: 40,
    limit: None,
};

fn test(lateness: Lateness, replays: u32) -> Result<Report, Refused> {
    let mut n = 0;
    let effort = Effort { replays, ..SHORT };
    self_test::<SoftVcpu, SoftCounter>(1, effort, &mut |guest| {
        n += 1;
        Ok(make(guest, lateness, n))
    })
}

#[test]
fn a_late_counter_passes() {
    for lateness in [
        EXACT,
        Lateness {
            branches: 0,
            ..EXACT
        },
        // Late in instructions, too: a margin of as many branches covers it.
        Lateness {
            branches: 60,
            instructions: 40,
            ..EXACT
        },
    ] {
        let report = test(lateness, 4).unwrap_or_else(|e| panic!("{lateness:?}: {e:?}"));
        println!("{lateness:?}: {report:?}");
        assert!(report.landings > 1000, "{report:?}");
        assert!(report.interrupts > 200, "{report:?}");
        assert!(report.exits >= 40, "{report:?}");
    }
}

#[test]
fn a_counter_later_than_it_says_is_refused() {
    let lateness = Lateness {
        bound: 10,
        branches: 400,
        instructions: 0,
    };
    let refused = test(lateness, 4).expect_err("it cannot land");
    println!("{refused}");
    match refused {
        Refused::Landing { source, .. } => {
            assert!(source.to_string().contains("overshot"), "{source}");
        }
        // An exit came where the landing should have been.
        Refused::Differs { .. } => {}
        other => panic!("{other:?}"),
    }
}

/// A counter that gains a branch now and then, as with SpecLockMap or SMM.
struct Gaining {
    inner: SoftCounter,
    gained: u64,
    reads: u64,
    every: u64,
}

impl BranchCounter for Gaining {
    fn read(&mut self) -> Result<u64, CounterError> {
        self.reads += 1;
        if self.reads.is_multiple_of(self.every) {
            self.gained += 1;
        }
        Ok(self.inner.read()? + self.gained)
    }

    fn arm(&mut self, at: u64) -> Result<(), CounterError> {
        let at = at - self.gained;
        let next = self.inner.read()? + 1;
        self.inner.arm(at.max(next))
    }

    fn disarm(&mut self) -> Result<(), CounterError> {
        self.inner.disarm()
    }

    fn skid(&self) -> u64 {
        self.inner.skid()
    }
}

#[test]
fn a_miscounting_counter_is_refused() {
    for every in [97, 499, 1009] {
        let refused = self_test(1, SHORT, &mut |guest| {
            let (vcpu, inner) = make(guest, EXACT, every);
            let counter = Gaining {
                inner,
                gained: 0,
                reads: 0,
                every,
            };
            Ok((vcpu, counter))
        })
        .expect_err("it miscounts");
        println!("{refused}");
    }
}

#[test]
fn no_vcpu_is_a_refusal() {
    let refused =
        self_test::<SoftVcpu, SoftCounter>(1, SHORT, &mut |_| Err("no such CPU".to_owned()));
    assert!(matches!(refused, Err(Refused::NoVcpu(why)) if why == "no such CPU"));
}

/// One whose breakpoints never strike.
struct Blind(SoftVcpu);

impl Stepper for Blind {
    type Error = EngineError;

    fn go(&mut self, motion: Motion, _breakpoints: &[u64]) -> Result<Stop, EngineError> {
        self.0.go(motion, &[])
    }
    fn place(&mut self) -> Result<Place, EngineError> {
        self.0.place()
    }
    fn state(&mut self) -> Result<CpuState, EngineError> {
        self.0.state()
    }
    fn read(&mut self, linear: u64, into: &mut [u8]) -> usize {
        self.0.read(linear, into)
    }
}

impl Subject for Blind {
    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        self.0.inject(vector)
    }
    fn kick_after(&mut self, time: Duration) -> Result<(), EngineError> {
        self.0.kick_after(time)
    }
}

#[test]
fn a_vcpu_without_breakpoints_is_refused() {
    let refused = self_test(1, SHORT, &mut |guest| {
        let (vcpu, counter) = make(guest, EXACT, 1);
        Ok((Blind(vcpu), counter))
    })
    .expect_err("nothing can be landed on");
    println!("{refused}");
}

#[test]
fn a_test_that_takes_too_long_is_refused() {
    let effort = Effort {
        limit: Some(Duration::ZERO),
        ..SHORT
    };
    let refused = self_test(1, effort, &mut |guest| Ok(make(guest, EXACT, 1)));
    assert!(matches!(refused, Err(Refused::Slow { .. })), "{refused:?}");
}
