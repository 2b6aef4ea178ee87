//! What a long command says of itself: the steps as lines, and within a step that takes long how
//! far it is, on a terminal as a bar.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use cli::eprintln;
use guest_images::Progress as Building;
use indicatif::{ProgressBar, ProgressStyle};

/// How often an amount is told where there is no terminal for a bar.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Tells on stderr what goes on.
pub struct Teller {
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
    quiet: bool,
}

impl Teller {
    pub fn new(quiet: bool) -> Self {
        Self {
            bar: None,
            started: Instant::now(),
            last_line: Instant::now(),
            quiet,
        }
    }

    /// A step begins.
    pub fn step(&mut self, text: &str) {
        self.finish_bar();
        self.last_line = Instant::now();
        if !self.quiet {
            eprintln!("[{:6.1} s] {text}", self.started.elapsed().as_secs_f64());
        }
    }

    /// How far the present step is.
    pub fn amount(&mut self, done: u64, total: u64, what: &str) {
        if self.quiet {
            return;
        }
        if !std::io::stderr().is_terminal() {
            if self.last_line.elapsed() >= LINE_EVERY {
                self.step(&format!("  {done} of {total} {what}"));
            }
            return;
        }
        let bar = self.bar.get_or_insert_with(|| new_bar(what == "bytes"));
        bar.set_length(total);
        bar.set_position(done);
    }

    /// What the guest image's builder tells.
    pub fn building(&mut self, progress: Building<'_>) {
        match progress {
            Building::Step(text) => self.step(&format!("guest image: {text}")),
            Building::Amount { done, total, what } => self.amount(done, total, what),
            Building::Note(text) => self.step(&format!("guest image: {text}")),
        }
    }

    fn finish_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.finish_bar();
    }
}

fn new_bar(bytes: bool) -> ProgressBar {
    let template = if bytes {
        "  {bar:40} {bytes}/{total_bytes} {bytes_per_sec}"
    } else {
        "  {bar:40} {pos}/{len}"
    };
    let style = ProgressStyle::with_template(template).unwrap_or(ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}
