//! The picture: at 80 by 24 everything fits; more room goes to what happened.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline};
use wire::control::{Protection, Role};

use super::model::{self, Model};
use crate::status::{Overview, ReplicaStatus};

const DIM: Style = Style::new().fg(Color::DarkGray);

pub fn draw(frame: &mut Frame, model: &Model) {
    let [title, replicas, middle, events, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Min(5),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let Some(overview) = &model.overview else {
        frame.render_widget(Paragraph::new(" asking the replicas …"), title);
        return;
    };
    frame.render_widget(heading(overview), title);
    draw_replicas(frame, replicas, model, overview);
    draw_protection(frame, middle, model, overview);
    draw_events(frame, events, model);
    frame.render_widget(footer(overview), foot);
}

fn heading(overview: &Overview) -> Paragraph<'static> {
    let color = match overview.state {
        Protection::Protected => Color::Green,
        Protection::Starting | Protection::NeedBackup => Color::Yellow,
        Protection::NotRunning | Protection::Halted(_) => Color::Red,
    };
    let view = overview
        .view
        .as_ref()
        .map_or(String::new(), |view| format!("   {view}"));
    Paragraph::new(Line::from(vec![
        Span::styled(
            format!(" {} ", overview.name),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Span::styled(overview.state.to_string(), Style::new().fg(color)),
        Span::raw(view),
    ]))
}

fn draw_replicas(frame: &mut Frame, area: Rect, model: &Model, overview: &Overview) {
    let shares = overview.replicas.iter().map(|_| Constraint::Fill(1));
    let areas = Layout::horizontal(shares).split(area);
    for (replica, area) in overview.replicas.iter().zip(areas.iter()) {
        let color = match replica.role {
            Role::Primary | Role::Solo => Color::Green,
            Role::Backup => Color::Cyan,
            Role::Halted => Color::Red,
        };
        let block = Block::bordered()
            .title(format!(" replica {}: {} ", replica.replica, replica.role))
            .border_style(Style::new().fg(color));
        frame.render_widget(
            Paragraph::new(replica_lines(model, replica)).block(block),
            *area,
        );
    }
}

fn replica_lines(model: &Model, replica: &ReplicaStatus) -> Vec<Line<'static>> {
    let Some(details) = &replica.details else {
        return vec![
            row("pid", replica.pid.to_string()),
            Line::raw(format!(" {}", replica.state)),
        ];
    };
    vec![
        row(
            "pid",
            format!(
                "{}, {}, up {:.0} s",
                replica.pid,
                replica.engine,
                details.uptime_ms as f64 / 1e3
            ),
        ),
        row("position", grouped(replica.position.count)),
        row("rip", replica.position.rip.clone()),
        row(
            "guest clock",
            format!("{:.3} s", details.guest_clock_ns as f64 / 1e9),
        ),
        row(
            "speed",
            format!(
                "{}, {} equal hashes",
                details.rate(model.counts_per_s(replica.replica)),
                details.hashes_compared
            ),
        ),
    ]
}

fn row(name: &str, value: String) -> Line<'static> {
    Line::from(vec![
        Span::styled(format!(" {name:11} "), DIM),
        Span::raw(value),
    ])
}

fn draw_protection(frame: &mut Frame, area: Rect, model: &Model, overview: &Overview) {
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas(area);
    draw_figures(frame, left, model, overview);
    draw_log(frame, right, model, overview);
}

fn draw_figures(frame: &mut Frame, area: Rect, model: &Model, overview: &Overview) {
    let block = Block::bordered().title(" protection ");
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [text, curve] = Layout::vertical([Constraint::Length(4), Constraint::Min(1)]).areas(inner);
    let details = model::live(overview).and_then(|replica| replica.details.as_ref());
    let mut lines = vec![row("lag", format!("{:.1} ms", overview.lag_ms))];
    if let Some(details) = details {
        let (lag, hold) = (details.lag_quantiles_ms, details.output_hold_ms);
        lines = vec![
            row(
                "lag",
                format!(
                    "{:.1} ms (p50 {:.0}, p99 {:.0})",
                    overview.lag_ms, lag.p50, lag.p99
                ),
            ),
            row(
                "output hold",
                format!("p50 {:.2}, p99 {:.2} ms", hold.p50, hold.p99),
            ),
            row(
                "held now",
                format!("{} of {}", details.outputs_held, hold.samples),
            ),
            row("CPU share", format!("{:.0} %", details.speed * 100.0)),
        ];
    }
    frame.render_widget(Paragraph::new(lines), text);
    draw_curve(frame, curve, model.lag.iter().copied(), "lag", Color::Cyan);
}

fn draw_log(frame: &mut Frame, area: Rect, model: &Model, overview: &Overview) {
    let title = format!(" log {:.2} Mbit/s ", overview.log_mbit_per_s);
    let block = Block::bordered().title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [text, curve] = Layout::vertical([Constraint::Length(5), Constraint::Min(1)]).areas(inner);
    let lines: Vec<Line> = model
        .kinds()
        .into_iter()
        .take(5)
        .map(|(kind, bytes, rate)| {
            Line::raw(format!(
                " {kind:13} {:>9}/s {:>9}",
                size(rate),
                size(bytes as f64)
            ))
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), text);
    let bandwidth = model.bandwidth.iter().copied();
    draw_curve(frame, curve, bandwidth, "log", Color::Yellow);
}

/// The last values, newest on the right.
fn draw_curve(
    frame: &mut Frame,
    area: Rect,
    values: impl ExactSizeIterator<Item = u64>,
    name: &str,
    color: Color,
) {
    let [label, area] = Layout::horizontal([
        Constraint::Length(name.len() as u16 + 2),
        Constraint::Min(0),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(format!(" {name}")).style(DIM), label);
    let skip = values.len().saturating_sub(usize::from(area.width));
    let shown: Vec<u64> = values.skip(skip).collect();
    frame.render_widget(
        Sparkline::default()
            .data(&shown)
            .style(Style::new().fg(color)),
        area,
    );
}

fn draw_events(frame: &mut Frame, area: Rect, model: &Model) {
    let block = Block::bordered().title(" what happened (UTC) ");
    let room = usize::from(block.inner(area).height);
    let skip = model.events.len().saturating_sub(room);
    let lines: Vec<Line> = model
        .events
        .iter()
        .skip(skip)
        .map(|(at, text)| {
            Line::from(vec![
                Span::styled(format!(" {} ", time_of_day(*at)), DIM),
                Span::raw(text.clone()),
            ])
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn footer(overview: &Overview) -> Paragraph<'static> {
    let forwards: Vec<String> = overview
        .forwards
        .iter()
        .map(|(guest, host)| format!("{guest} is {host}"))
        .collect();
    Paragraph::new(Line::from(vec![
        Span::styled(" q ends  ", Style::new().add_modifier(Modifier::BOLD)),
        Span::styled(format!("guest port {}", forwards.join(", ")), DIM),
    ]))
}

fn time_of_day(unix_us: u64) -> String {
    let ms = unix_us / 1000 % 86_400_000;
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    format!(
        "{:02}:{:02}:{seconds:02}.{ms:03}",
        minutes / 60,
        minutes % 60
    )
}

/// A number with its digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Bytes with a decimal unit.
fn size(bytes: f64) -> String {
    match bytes {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.2} MB", b / 1e6),
        b if b >= 1e3 => format!("{:.1} kB", b / 1e3),
        b => format!("{b:.0} B"),
    }
}
