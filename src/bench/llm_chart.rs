//! Draws a language model's speed as SVG: bars of tokens per second, prefill on the left, decoding on the right.

use plotters::prelude::*;

use super::chart::{Area, DrawError};
use super::llm::LlmReport;

const WIDTH: u32 = 900;
const HEIGHT: u32 = 320;

/// Draws all reports below each other; returns SVG text.
pub fn llm_svg(reports: &[LlmReport]) -> Result<String, String> {
    let mut text = String::new();
    {
        let rows = reports.len().max(1);
        let root = SVGBackend::with_string(&mut text, (WIDTH, HEIGHT * u32::try_from(rows).unwrap_or(1)));
        let root = root.into_drawing_area();
        root.fill(&WHITE).map_err(|error| error.to_string())?;
        for (report, area) in reports.iter().zip(root.split_evenly((rows, 1))) {
            let (left, right) = area.split_horizontally(WIDTH / 2);
            let title = format!("{} on {}", report.name, report.backend.device);
            let prompts: Vec<(String, f64)> =
                report.prefill.iter().map(|p| (p.tokens.to_string(), p.tokens_per_second)).collect();
            let answers = report.decode.iter().map(|d| (format!("{} at {}", d.batch, d.context), d.tokens_per_second));
            let answers: Vec<(String, f64)> = answers.collect();
            let blue = RGBColor(44, 110, 180);
            bars(&left, &title, "prompt tokens", &prompts, blue).map_err(|error| error.to_string())?;
            let green = RGBColor(60, 150, 60);
            bars(&right, "", "sequences at context", &answers, green).map_err(|error| error.to_string())?;
        }
        root.present().map_err(|error| error.to_string())?;
    }
    Ok(text)
}

fn bars<'a>(
    area: &Area<'a>,
    title: &str,
    what: &str,
    values: &[(String, f64)],
    color: RGBColor,
) -> Result<(), DrawError<'a>> {
    let highest = values.iter().map(|(_, value)| *value).fold(1.0, f64::max) * 1.15;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d((0..values.len().saturating_sub(1)).into_segmented(), 0.0..highest)?;
    let label = |at: &SegmentValue<usize>| match at {
        SegmentValue::CenterOf(index) => values.get(*index).map_or_else(String::new, |(name, _)| name.clone()),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .y_label_formatter(&|value| format!("{value:.0}"))
        .x_labels(values.len().max(1))
        .x_label_formatter(&label)
        .x_desc(what)
        .y_desc("tokens a second")
        .draw()?;
    chart.draw_series(values.iter().enumerate().map(|(index, (_, value))| {
        let end = if index + 1 < values.len() { SegmentValue::Exact(index + 1) } else { SegmentValue::Last };
        let corners = [(SegmentValue::Exact(index), 0.0), (end, *value)];
        let mut bar = Rectangle::new(corners, color.mix(0.6).filled());
        bar.set_margin(0, 0, 12, 12);
        bar
    }))?;
    chart.draw_series(values.iter().enumerate().map(|(index, (_, value))| {
        let at = (SegmentValue::CenterOf(index), *value);
        let style = ("sans-serif", 13).into_font().color(&BLACK.mix(0.8));
        EmptyElement::at(at) + Text::new(format!("{value:.0}"), (-12, -16), style)
    }))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_drawn() {
        let prefill = [(128, 14802.0), (512, 32241.0), (2048, 26067.0)];
        let report = LlmReport::of_rates(&prefill, &[(1, 128, 123.0), (4, 128, 462.0)], 0.5);
        let svg = llm_svg(&[report]).unwrap();
        for text in ["m7b on GPU", "14802", "32241", "26067", "123", "462", "1 at 128", "2048"] {
            assert!(svg.contains(text), "{text}");
        }
        // A background, and five bars.
        assert!(svg.matches("<rect").count() >= 6, "{svg}");
    }
}
