//! The self-test: before positions by the counter are used on a host, a guest with branches, faults,
//! interrupts, system calls and REP strings is recorded and replayed many times there, and the mode
//! is refused unless every landing was exact.

mod guest;
mod record;
mod replay;

use std::error::Error;
use std::time::{Duration, Instant};

use engine::CpuState;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::counter::{BranchCounter, CounterError};
use crate::land::LandError;
use crate::stepper::Stepper;

pub use guest::Guest;

/// A vCPU that can be put to the self-test.
pub trait Subject: Stepper {
    /// Delivers an external interrupt: when this returns, the vCPU stands at the handler's first
    /// instruction. Only asked where one can be taken.
    fn inject(&mut self, vector: u8) -> Result<(), Self::Error>;

    /// Has the vCPU kicked once, when it has run for about this long, while it runs or before.
    fn kick_after(&mut self, time: Duration) -> Result<(), Self::Error>;
}

/// Makes a vCPU with a guest, and its counter.
type Maker<'a, S, C> = &'a mut dyn FnMut(&Guest) -> Result<(S, C), String>;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub recordings: u32,
    /// Of each recording.
    pub replays: u32,
    /// Of the guest's program, which retires some 2000 instructions in each.
    pub passes: u32,
    /// How long all of it may take.
    pub limit: Option<Duration>,
}

impl Effort {
    /// A full test: thousands of landings, a few seconds on hardware.
    pub const FULL: Effort = Effort {
        recordings: 8,
        replays: 25,
        passes: 2000,
        limit: None,
    };
}

/// What a passed test has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub seed: u64,
    pub recordings: u32,
    pub replays: u32,
    /// Positions landed on, all of them exactly.
    pub landings: u64,
    /// Interrupts put in there.
    pub interrupts: u64,
    /// Exits on the way.
    pub exits: u64,
    /// Kicks after which no position was near.
    pub nowhere: u64,
}

/// Why positions by the counter are not used here.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the self-test's vCPU could not be made: {0}")]
    NoVcpu(String),
    #[error("the self-test's vCPU failed")]
    Vcpu(#[source] Box<dyn Error + Send + Sync>),
    #[error("the branch counter failed")]
    Counter(#[from] CounterError),
    #[error(
        "nothing was tested: {landings} landings and {interrupts} interrupts in {replays} replays; \
         breakpoints do not strike here, or the counter's kicks do not come"
    )]
    Nothing {
        landings: u64,
        interrupts: u64,
        replays: u32,
    },
    #[error("not done within {} s: landings are too slow here", limit.as_secs())]
    Slow { limit: Duration },
    #[error("recording {recording}: {what}")]
    Recording { recording: u32, what: String },
    #[error("recording {recording}, replay {replay}, event {event}: the landing failed")]
    Landing {
        recording: u32,
        replay: u32,
        event: usize,
        #[source]
        source: LandError,
    },
    #[error("recording {recording}, replay {replay}, event {event}: {what}")]
    Differs {
        recording: u32,
        replay: u32,
        event: usize,
        what: String,
    },
}

fn vcpu<E: Error + Send + Sync + 'static>(e: E) -> Refused {
    Refused::Vcpu(Box::new(e))
}

/// Runs the whole test on vCPUs that `make` gives, each with its memory and registers as
/// [`Guest`] says and its counter at zero. `seed` decides when the guest is interrupted.
pub fn self_test<S: Subject, C: BranchCounter>(
    seed: u64,
    effort: Effort,
    make: Maker<S, C>,
) -> Result<Report, Refused> {
    let begun = Instant::now();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let guest = Guest::for_self_test(effort.passes).map_err(|e| Refused::NoVcpu(e.to_string()))?;
    let mut report = Report {
        seed,
        ..Report::default()
    };
    for recording in 0..effort.recordings {
        let (mut stepper, mut counter) = make(&guest).map_err(Refused::NoVcpu)?;
        let log = record::record(&mut stepper, &mut counter, &mut rng, &mut report)
            .map_err(|e| e.in_recording(recording))?;
        drop((stepper, counter));
        for replay in 0..effort.replays {
            let (mut stepper, mut counter) = make(&guest).map_err(Refused::NoVcpu)?;
            replay::replay(&mut stepper, &mut counter, &log, &mut report)
                .map_err(|e| e.in_replay(recording, replay))?;
            report.replays += 1;
            if let Some(limit) = effort.limit
                && begun.elapsed() > limit
            {
                return Err(Refused::Slow { limit });
            }
        }
        report.recordings += 1;
    }
    if report.landings < u64::from(report.replays) || report.interrupts == 0 {
        return Err(Refused::Nothing {
            landings: report.landings,
            interrupts: report.interrupts,
            replays: report.replays,
        });
    }
    Ok(report)
}

/// What can be compared of a vCPU at a position: a hash of its registers (the count is the
/// counter's) and of the guest's memory that the program changes.
fn fingerprint<S: Stepper>(stepper: &mut S, state: &CpuState) -> u64 {
    let state = CpuState {
        count: 0,
        ..state.clone()
    };
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    hasher.update(&state.hash().to_le_bytes());
    let mut page = vec![0; 4096];
    for start in guest::CHANGED.step_by(page.len()) {
        let len = stepper.read(start, &mut page);
        hasher.update(&page[..len]);
    }
    hasher.digest()
}

#[cfg(test)]
mod tests;
