//! What is wrong with a case besides its own assertions: a panic in any thread, time, memory.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeVal;

/// Processor time that a case may take, all threads together.
pub const SLOW: Duration = Duration::from_secs(2);
/// Time after which a case that has not ended is given up.
pub const HANGING: Duration = Duration::from_secs(30);
/// Address space that a process may take beyond what it has at its start, in bytes. More makes the
/// allocation fail, which aborts.
const MEMORY: u64 = 6 << 30;

/// Cases that got past the first parser.
static ACCEPTED: AtomicU64 = AtomicU64::new(0);
/// Panics since the last case, of any thread.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What a case did that it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// What was said, and where.
    Panic(String),
    /// The processor time that it took.
    Slow(Duration),
    /// It did not end.
    Hanging(Duration),
    /// The process died, in these words.
    Died(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(what) => write!(f, "panic: {what}"),
            Self::Slow(time) => write!(f, "it took {time:.1?} of processor time"),
            Self::Hanging(time) => write!(f, "it had not ended after {time:.0?}"),
            Self::Died(how) => write!(f, "the process died: {how}"),
        }
    }
}

/// A target says, once in a case, that its input was accepted: it got to what lies behind the first
/// parser. Only for the figures.
pub fn accepted() {
    ACCEPTED.fetch_add(1, Ordering::Relaxed);
}

/// How many cases said so.
pub fn count_accepted() -> u64 {
    ACCEPTED.load(Ordering::Relaxed)
}

fn panics() -> std::sync::MutexGuard<'static, Vec<String>> {
    PANICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Panics are collected, not printed, from here on.
pub fn collect_panics() {
    std::panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("?").to_owned();
        // Empty unless RUST_BACKTRACE asks for one.
        let trace = std::backtrace::Backtrace::capture();
        panics().push(format!("{info} (thread {name:?})\n{trace}"));
    }));
}

/// Bounds the memory that this process may take.
pub fn bound_memory() -> anyhow::Result<()> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = pages.split(' ').next().unwrap_or("0").parse()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_AS)?;
    let limit = (pages * 4096 + MEMORY).min(hard);
    Ok(setrlimit(Resource::RLIMIT_AS, limit, hard)?)
}

/// Runs one input and judges it.
pub fn judge(run: fn(&[u8]), input: &[u8]) -> Option<Finding> {
    let before = processor_time();
    let caught = catch_unwind(AssertUnwindSafe(|| run(input)));
    let time = processor_time().saturating_sub(before);
    let said: Vec<String> = std::mem::take(&mut *panics());
    if caught.is_err() || !said.is_empty() {
        return Some(Finding::Panic(said.join("\n")));
    }
    (time > SLOW).then_some(Finding::Slow(time))
}

fn processor_time() -> Duration {
    let of = |time: TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs())
            + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    getrusage(UsageWho::RUSAGE_SELF)
        .map(|usage| of(usage.user_time()) + of(usage.system_time()))
        .unwrap_or_default()
}

/// Notices when one case goes on for ever.
pub struct Watch {
    began: Instant,
    /// Milliseconds from `began` to the start of the present case.
    case: AtomicU64,
}

impl Watch {
    /// Starts a thread that calls `give_up` when a case hangs.
    pub fn start(give_up: impl Fn(Finding) + Send + 'static) -> std::sync::Arc<Self> {
        let watch = std::sync::Arc::new(Self {
            began: Instant::now(),
            case: AtomicU64::new(0),
        });
        let seen = watch.clone();
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(250));
                let since = Duration::from_millis(seen.case.load(Ordering::Relaxed));
                let time = seen.began.elapsed().saturating_sub(since);
                if time > HANGING {
                    give_up(Finding::Hanging(time));
                }
            }
        });
        watch
    }

    pub fn next_case(&self) {
        let now = self.began.elapsed().as_millis() as u64;
        self.case.store(now, Ordering::Relaxed);
    }
}
