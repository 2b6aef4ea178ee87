//! `watch`: a live view of a machine in the terminal, eight times a second, until `q`.

mod draw;
mod model;

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cli::println;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::rundir::RunDir;
use crate::status::{self, Overview};
use model::Model;

/// Between two looks at the replicas.
const PERIOD: Duration = Duration::from_millis(125);
/// How long a picture without a terminal measures for its rates.
const ONCE: Duration = Duration::from_millis(1000);
/// The size of that picture.
const ONCE_SIZE: (u16, u16) = (80, 24);

/// Shows the machine until `q`, Ctrl-C or the machine's end.
pub fn watch(name: Option<&str>) -> Result<()> {
    let (dir, _) = RunDir::find(name)?;
    let seen = poll(dir)?;
    let mut terminal =
        ratatui::try_init().context("the terminal cannot be drawn on; try --once")?;
    let outcome = show(&mut terminal, &seen);
    ratatui::try_restore()?;
    match outcome? {
        End::Asked => Ok(()),
        End::Down => {
            println!("the machine is down");
            Ok(())
        }
    }
}

/// One picture of 80 by 24 characters, as text.
pub fn once(name: Option<&str>) -> Result<String> {
    let (_, running) = RunDir::find(name)?;
    let mut model = Model::default();
    let begun = Instant::now();
    while begun.elapsed() < ONCE {
        model.update(status::status(&running));
        std::thread::sleep(PERIOD);
    }
    model.update(status::status(&running));
    picture(&model)
}

fn picture(model: &Model) -> Result<String> {
    let mut terminal = Terminal::new(TestBackend::new(ONCE_SIZE.0, ONCE_SIZE.1))?;
    terminal.draw(|frame| draw::draw(frame, model))?;
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..ONCE_SIZE.1 {
        let line: String = (0..ONCE_SIZE.0).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}

enum End {
    Asked,
    Down,
}

/// Asks the replicas from a thread of its own: one that is stopped takes half a second not to
/// answer. The channel closes when the machine is down.
fn poll(dir: RunDir) -> Result<Receiver<Overview>> {
    let (to_screen, seen) = mpsc::channel();
    std::thread::Builder::new()
        .name("poll".to_owned())
        .spawn(move || {
            while let Ok(running) = dir.load() {
                if to_screen.send(status::status(&running)).is_err() {
                    return;
                }
                std::thread::sleep(PERIOD);
            }
        })?;
    Ok(seen)
}

fn show(terminal: &mut ratatui::DefaultTerminal, seen: &Receiver<Overview>) -> Result<End> {
    let mut model = Model::default();
    loop {
        match seen.recv_timeout(PERIOD) {
            Ok(overview) => model.update(overview),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(End::Down),
        }
        terminal.draw(|frame| draw::draw(frame, &model))?;
        while event::poll(Duration::ZERO)? {
            if is_end(&event::read()?) {
                return Ok(End::Asked);
            }
        }
    }
}

fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let control_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && (control_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// Whether a live view can be shown at all.
pub fn check_terminal() -> Result<()> {
    use std::io::IsTerminal;
    if !std::io::stdout().is_terminal() {
        bail!("this is no terminal; `ft-ctl watch --once` prints one picture");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
