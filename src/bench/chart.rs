//! A latency histogram per report as one SVG: a bar per bin, a line at the median and the 99th percentile.

use plotters::prelude::*;

use super::{Latency, LatencyReport, WHOLE};

const BINS: usize = 60;
const WIDTH: u32 = 900;
const HEIGHT: u32 = 320;

/// Draws the histograms of all reports below each other; returns SVG text.
pub fn svg(reports: &[LatencyReport]) -> Result<String, String> {
    let mut text = String::new();
    {
        let height = HEIGHT * u32::try_from(reports.len().max(1)).unwrap_or(1);
        let root = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE).map_err(|error| error.to_string())?;
        let areas = root.split_evenly((reports.len().max(1), 1));
        for (report, area) in reports.iter().zip(&areas) {
            draw(report, area).map_err(|error| error.to_string())?;
        }
        root.present().map_err(|error| error.to_string())?;
    }
    Ok(text)
}

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
pub(super) type DrawError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

/// The latencies in a report: name, samples in milliseconds, summary, colour.
fn series(report: &LatencyReport) -> Vec<(&'static str, &[f64], &Latency, RGBColor)> {
    let mut series =
        vec![("with host copies", report.samples.end_to_end_ms.as_slice(), &report.end_to_end, RGBColor(44, 110, 180))];
    if let Some(compute) = &report.compute {
        series.push(("GPU only", report.samples.compute_ms.as_slice(), compute, RGBColor(60, 150, 60)));
    }
    if let Some(whole) = report.stages.iter().find(|stage| stage.name == WHOLE) {
        series.push((WHOLE, whole.samples_ms.as_slice(), &whole.latency, RGBColor(220, 130, 30)));
    }
    series
}

fn draw<'a>(report: &LatencyReport, area: &Area<'a>) -> Result<(), DrawError<'a>> {
    let series = series(report);
    let low = series.iter().map(|(_, _, latency, _)| latency.min_ms).fold(f64::INFINITY, f64::min);
    // A few outliers must not squeeze the rest into one bar.
    let high = series.iter().map(|(_, _, latency, _)| latency.p99_ms).fold(low, f64::max) * 1.1 + 1e-6;
    let low = (low * 0.95).min(high * 0.9);
    let width = (high - low) / BINS as f64;
    let count = |samples: &[f64]| {
        let mut bins = [0usize; BINS];
        for sample in samples {
            bins[(((sample - low) / width) as usize).min(BINS - 1)] += 1;
        }
        bins
    };
    let tallest = series.iter().flat_map(|(_, samples, ..)| count(samples)).max().unwrap_or(1);
    let title =
        format!("{} on {}, batch {}, {} runs", report.name, report.backend.device, report.batch, report.iterations);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(48)
        .build_cartesian_2d(low..high, 0..tallest + tallest / 8 + 1)?;
    chart.configure_mesh().disable_x_mesh().x_desc("milliseconds").y_desc("runs").draw()?;
    for (name, samples, latency, color) in series {
        let bars = count(samples).into_iter().enumerate().map(|(bin, runs)| {
            let left = low + width * bin as f64;
            Rectangle::new([(left, 0), (left + width, runs)], color.mix(0.55).filled())
        });
        let text = format!("{name}: p50 {:.3} ms, p99 {:.3} ms", latency.p50_ms, latency.p99_ms);
        chart
            .draw_series(bars)?
            .label(text)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.mix(0.55).filled()));
        for at in [latency.p50_ms, latency.p99_ms] {
            chart.draw_series(LineSeries::new([(at, 0), (at, tallest)], color.stroke_width(2)))?;
        }
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.85)).border_style(BLACK.mix(0.3)).draw()?;
    Ok(())
}
