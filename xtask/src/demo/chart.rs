//! The demo's picture, once as SVG and once as PNG: the failover step by step with the answers that
//! each client got around it, the answers of the whole run, and the log's bandwidth by kind of entry.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use e2e::failover::Outcome;
use e2e::samples;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::report::{Report, steps};
use crate::packages::FONT;

const SIZE: (u32, u32) = (1500, 1260);
const HEADER: u32 = 86;
/// Lower edges of the first two panels.
const FAILOVER_END: u32 = 610;
const ANSWERS_END: u32 = 910;

const KILL: RGBColor = RGBColor(200, 30, 45);
const LIVE: RGBColor = RGBColor(20, 130, 75);
const INK: RGBColor = RGBColor(40, 44, 52);
const FAINT: RGBColor = RGBColor(225, 228, 233);
const ANSWER: RGBColor = RGBColor(45, 105, 190);
const BARS: [RGBColor; 5] = [
    RGBColor(214, 96, 77),
    RGBColor(230, 160, 60),
    RGBColor(120, 150, 90),
    RGBColor(60, 150, 140),
    RGBColor(60, 110, 180),
];
const KINDS: [RGBColor; 10] = [
    RGBColor(66, 113, 174),
    RGBColor(238, 134, 54),
    RGBColor(84, 162, 75),
    RGBColor(214, 84, 87),
    RGBColor(148, 111, 186),
    RGBColor(140, 106, 88),
    RGBColor(222, 145, 197),
    RGBColor(127, 127, 127),
    RGBColor(188, 189, 58),
    RGBColor(75, 187, 203),
];

type Area<'a, B> = DrawingArea<B, Shift>;

/// Draws both files.
pub fn draw(outcome: &Outcome, report: &Report, svg: &Path, png: &Path) -> Result<()> {
    let font = std::fs::read(FONT)
        .with_context(|| format!("{FONT} is missing: apt-get install fonts-dejavu-core"))?;
    // The library keeps fonts for as long as the process lives.
    let font: &'static [u8] = Box::leak(font.into_boxed_slice());
    register_font("sans-serif", FontStyle::Normal, font)
        .map_err(|_| anyhow!("{FONT} is not a font"))?;
    picture(
        &SVGBackend::new(svg, SIZE).into_drawing_area(),
        outcome,
        report,
    )?;
    picture(
        &BitMapBackend::new(png, SIZE).into_drawing_area(),
        outcome,
        report,
    )
}

fn picture<B: DrawingBackend>(root: &Area<'_, B>, outcome: &Outcome, report: &Report) -> Result<()>
where
    B::ErrorType: 'static,
{
    root.fill(&WHITE)?;
    let (header, rest) = root.split_vertically(HEADER);
    let (failover, rest) = rest.split_vertically(FAILOVER_END - HEADER);
    let (answers, log) = rest.split_vertically(ANSWERS_END - FAILOVER_END);
    title(&header, report)?;
    failover_panel(&failover, outcome, report)?;
    answers_panel(&answers, outcome)?;
    log_panel(&log, outcome)?;
    root.present()?;
    Ok(())
}

fn text(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

fn title<B: DrawingBackend>(area: &Area<'_, B>, report: &Report) -> Result<()>
where
    B::ErrorType: 'static,
{
    let first = format!(
        "Primary killed in mid-load: {} answers, {} lost, {} repeated, {} reversed, {} reconnects",
        report.answered, report.lost, report.repeated, report.reversed, report.reconnects
    );
    let second = format!(
        "stock Debian with Redis, engine `{}`, {:.0} answers/s before the kill; longest wait of a \
         client {:.0} ms; log {:.2} Mbit/s",
        report.engine, report.answers_per_s_before, report.interruption_ms, report.log_mbit_per_s
    );
    area.draw(&Text::new(first, (24, 16), text(27)))?;
    area.draw(&Text::new(second, (24, 54), text(18)))?;
    Ok(())
}

/// Bars for the steps, and below them a lane for each client with its answers.
fn failover_panel<B: DrawingBackend>(
    area: &Area<'_, B>,
    outcome: &Outcome,
    report: &Report,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let steps = steps(&report.timeline_ms);
    let end = steps.iter().map(|(_, ms)| *ms).fold(1.0, f64::max);
    let span = end.max(20.0);
    let (from, to) = (-0.9 * span, 1.7 * span);
    let clients: BTreeSet<u32> = (outcome.record.history.events.iter())
        .map(|event| event.client)
        .collect();
    let rows = steps.len() + clients.len() + 1;
    let mut chart = ChartBuilder::on(area)
        .caption("The failover: milliseconds since the kill", text(20))
        .margin(12)
        .margin_left(190)
        .margin_right(30)
        .x_label_area_size(32)
        .build_cartesian_2d(from..to, rows as f64..0.0)?;
    chart
        .configure_mesh()
        .disable_y_axis()
        .disable_y_mesh()
        .light_line_style(WHITE)
        .bold_line_style(FAINT)
        .x_labels(12)
        .x_label_formatter(&|ms| format!("{ms:.0}"))
        .label_style(text(15))
        .draw()?;
    line(&mut chart, 0.0, rows as f64, KILL)?;
    line(&mut chart, report.timeline_ms.live, rows as f64, LIVE)?;
    let mut since = 0.0f64;
    for (row, (name, ms)) in steps.iter().enumerate() {
        let y = row as f64;
        let bar = [(since.min(*ms), y + 0.2), (since.max(*ms), y + 0.8)];
        chart.draw_series([Rectangle::new(bar, BARS[row].filled())])?;
        let label = format!("{ms:.1} ms  (+{:.1})", ms - since);
        let at = (since.max(*ms) + 0.006 * (to - from), y + 0.26);
        chart.draw_series([Text::new(label, at, text(17))])?;
        row_name(area, &chart, y, name)?;
        since = *ms;
    }
    for (lane, client) in clients.iter().enumerate() {
        let y = (steps.len() + 1 + lane) as f64;
        row_name(area, &chart, y, &format!("answers to client {client}"))?;
        let times = answer_times(outcome, Some(*client), from, to);
        chart.draw_series(
            times
                .into_iter()
                .map(|ms| PathElement::new([(ms, y + 0.15), (ms, y + 0.85)], ANSWER.mix(0.5))),
        )?;
    }
    Ok(())
}

type Chart<'a, 'b, B> = ChartContext<
    'a,
    B,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

/// A row's name, left of the chart.
fn row_name<B: DrawingBackend>(
    area: &Area<'_, B>,
    chart: &Chart<'_, '_, B>,
    y: f64,
    name: &str,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let (_, pixel) = chart.backend_coord(&(0.0, y + 0.5));
    let (_, top) = area.get_base_pixel();
    area.draw(&Text::new(name.to_owned(), (18, pixel - top - 9), text(17)))?;
    Ok(())
}

fn line<B: DrawingBackend>(
    chart: &mut Chart<'_, '_, B>,
    x: f64,
    top: f64,
    color: RGBColor,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    chart.draw_series([PathElement::new(
        [(x, 0.0), (x, top)],
        color.stroke_width(2),
    )])?;
    Ok(())
}

/// When answers came, in ms since the kill.
fn answer_times(outcome: &Outcome, client: Option<u32>, from: f64, to: f64) -> Vec<f64> {
    let kill_ms = (outcome.kill_unix_us - outcome.start_unix_us) as f64 / 1e3;
    (outcome.record.history.events.iter())
        .filter(|event| client.is_none_or(|client| client == event.client))
        .filter_map(|event| event.return_ns)
        .map(|ns| ns as f64 / 1e6 - kill_ms)
        .filter(|ms| (from..to).contains(ms))
        .collect()
}

fn seconds(outcome: &Outcome, unix_us: u64) -> f64 {
    (unix_us as f64 - outcome.start_unix_us as f64) / 1e6
}

/// Answers per second over the whole run, in tenths of a second.
fn answers_panel<B: DrawingBackend>(area: &Area<'_, B>, outcome: &Outcome) -> Result<()>
where
    B::ErrorType: 'static,
{
    let end = seconds(outcome, outcome.end_unix_us);
    let mut counts = vec![0.0; (end * 10.0) as usize + 1];
    for event in &outcome.record.history.events {
        let tenth = event.return_ns.map(|ns| (ns / 100_000_000) as usize);
        if let Some(count) = tenth.and_then(|tenth| counts.get_mut(tenth)) {
            *count += 10.0;
        }
    }
    let top = counts.iter().copied().fold(10.0, f64::max) * 1.1;
    let mut chart = time_chart(area, "Answers per second", end, top)?;
    let steps = counts.iter().enumerate();
    let boxes = steps.map(|(tenth, count)| {
        let left = tenth as f64 / 10.0;
        Rectangle::new(
            [(left, 0.0), (left + 0.1, *count)],
            ANSWER.mix(0.7).filled(),
        )
    });
    chart.draw_series(boxes)?;
    marks(&mut chart, outcome, top)
}

/// The log's bandwidth, the kinds of entries on top of each other.
fn log_panel<B: DrawingBackend>(area: &Area<'_, B>, outcome: &Outcome) -> Result<()>
where
    B::ErrorType: 'static,
{
    let end = seconds(outcome, outcome.end_unix_us);
    let rates = samples::bandwidth(&outcome.samples, outcome.killed);
    let highest = rates.iter().map(samples::Bandwidth::total);
    let top = highest.fold(0.1, f64::max) * 1.15;
    let mut chart = time_chart(area, "Bandwidth of the log, Mbit/s", end, top)?;
    let kinds: BTreeSet<&String> = (rates.iter())
        .flat_map(|rate| rate.by_kind.iter())
        .filter(|(_, mbit)| **mbit > 0.0)
        .map(|(kind, _)| kind)
        .collect();
    let mut below = vec![0.0; rates.len()];
    for (index, kind) in kinds.into_iter().enumerate() {
        let color = KINDS[index % KINDS.len()];
        let mut boxes = Vec::new();
        for (rate, low) in rates.iter().zip(&mut below) {
            let high = *low + rate.by_kind.get(kind).copied().unwrap_or(0.0);
            let left = seconds(outcome, rate.from_unix_us);
            let right = seconds(outcome, rate.to_unix_us);
            boxes.push(Rectangle::new(
                [(left, *low), (right, high)],
                color.filled(),
            ));
            *low = high;
        }
        chart
            .draw_series(boxes)?
            .label(kind.clone())
            .legend(move |(x, y)| Rectangle::new([(x, y - 6), (x + 14, y + 6)], color.filled()));
    }
    marks(&mut chart, outcome, top)?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(FAINT)
        .label_font(text(15))
        .draw()?;
    Ok(())
}

fn time_chart<'a, 'b, B: DrawingBackend + 'a>(
    area: &'a Area<'a, B>,
    caption: &str,
    end: f64,
    top: f64,
) -> Result<Chart<'a, 'b, B>>
where
    B::ErrorType: 'static,
{
    let mut chart = ChartBuilder::on(area)
        .caption(caption, text(20))
        .margin(12)
        .margin_right(30)
        .x_label_area_size(38)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(FAINT)
        .x_desc("seconds since the load began; red: the kill, green: the backup is live")
        .x_label_formatter(&|s| format!("{s:.0}"))
        .y_label_formatter(&|y| {
            if top < 10.0 {
                format!("{y:.1}")
            } else {
                format!("{y:.0}")
            }
        })
        .label_style(text(15))
        .axis_desc_style(text(15))
        .draw()?;
    Ok(chart)
}

/// The moments of the kill and of going live.
fn marks<B: DrawingBackend>(chart: &mut Chart<'_, '_, B>, outcome: &Outcome, top: f64) -> Result<()>
where
    B::ErrorType: 'static,
{
    let kill = seconds(outcome, outcome.kill_unix_us);
    line(chart, kill + outcome.timeline.live / 1e3, top, LIVE)?;
    line(chart, kill, top, KILL)
}
