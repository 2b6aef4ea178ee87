//! The figures of `bench log` as a picture: the ratio on the left, the log's bandwidth on the right,
//! VMware's beside ours.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::log::Figures;

const FONT: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";
const SIZE: (u32, u32) = (1300, 640);
const OURS: RGBColor = RGBColor(45, 105, 190);
const THEIRS: RGBColor = RGBColor(190, 195, 205);
const INK: RGBColor = RGBColor(40, 44, 52);
const FAINT: RGBColor = RGBColor(225, 228, 233);
/// The least bandwidth that has a bar, Mbit/s.
const LEAST: f64 = 0.01;

type Area<'a, B> = DrawingArea<B, Shift>;

/// Draws both files.
pub fn draw(workloads: &[Figures], svg: &Path, png: &Path) -> Result<()> {
    let font = std::fs::read(FONT).with_context(|| {
        format!("the chart needs the font {FONT}: apt-get install fonts-dejavu-core")
    })?;
    // The library keeps fonts for as long as the process lives.
    let font: &'static [u8] = Box::leak(font.into_boxed_slice());
    register_font("sans-serif", FontStyle::Normal, font)
        .map_err(|_| anyhow!("{FONT} is not a font"))?;
    picture(&SVGBackend::new(svg, SIZE).into_drawing_area(), workloads)?;
    picture(
        &BitMapBackend::new(png, SIZE).into_drawing_area(),
        workloads,
    )
}

fn picture<B: DrawingBackend>(root: &Area<'_, B>, workloads: &[Figures]) -> Result<()>
where
    B::ErrorType: 'static,
{
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0 / 2);
    let ratios: Vec<Row> = workloads
        .iter()
        .map(|row| Row {
            name: row.workload.name(),
            ours: row.ratio,
            theirs: row.vmware.and_then(|reference| reference.ratio),
        })
        .collect();
    let bandwidths: Vec<Row> = workloads
        .iter()
        .map(|row| Row {
            name: row.workload.name(),
            ours: Some(row.log_mbit_per_s),
            theirs: row.vmware.map(|reference| {
                let (from, to) = reference.log_mbit_per_s;
                (from + to) / 2.0
            }),
        })
        .collect();
    panel(&left, "Speed with a backup / without", &ratios, |ratio| {
        ratio.min(1.2) / 1.2
    })?;
    panel(
        &right,
        "Log, Mbit/s (logarithmic; grey: VMware FT 2010)",
        &bandwidths,
        |mbit| (mbit.max(LEAST) / LEAST).log10() / 6.0,
    )?;
    root.present()?;
    Ok(())
}

struct Row {
    name: &'static str,
    ours: Option<f64>,
    theirs: Option<f64>,
}

/// Horizontal bars; `length` gives a value's share of the width.
fn panel<B: DrawingBackend>(
    area: &Area<'_, B>,
    caption: &str,
    rows: &[Row],
    length: impl Fn(f64) -> f64,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let style = |size: i32| ("sans-serif", size).into_font().color(&INK);
    let (width, height) = area.dim_in_pixel();
    let (left, top) = (130, 60);
    let room = f64::from(width) - f64::from(left) - 90.0;
    area.draw(&Text::new(caption.to_owned(), (20, 18), style(20)))?;
    let step = (height as i32 - top - 20) / rows.len().max(1) as i32;
    for (index, row) in rows.iter().enumerate() {
        let y = top + step * index as i32;
        let middle = y + step / 2;
        area.draw(&Text::new(row.name, (16, middle - 9), style(17)))?;
        area.draw(&PathElement::new(
            [(left, y + step - 2), (width as i32 - 20, y + step - 2)],
            FAINT,
        ))?;
        let bars = [
            (row.ours, OURS, y + step / 8),
            (row.theirs, THEIRS, y + step / 2),
        ];
        for (value, color, from) in bars {
            let Some(value) = value else { continue };
            let to = left + (length(value).clamp(0.0, 1.0) * room) as i32;
            let thick = step * 3 / 8 - 2;
            area.draw(&Rectangle::new(
                [(left, from), (to.max(left + 1), from + thick)],
                color.filled(),
            ))?;
            let label = (to + 6, from + thick / 2 - 8);
            area.draw(&Text::new(format!("{value:.2}"), label, style(15)))?;
        }
    }
    Ok(())
}
