//! Draws a comparison as SVG: for each measurement a group of bars (ours, the peers', the bandwidth bound) to its own
//! scale.

use std::fmt::Write as _;

use super::compare::{Line, Peer, lines};
use super::llm::LlmReport;

const WIDTH: f64 = 900.0;
/// x coordinate at which bars begin, in pixels.
const LEFT: f64 = 330.0;
/// Length of the longest bar in pixels.
const LONGEST: f64 = 460.0;
/// Height of a bar in pixels.
const BAR: f64 = 18.0;
/// Colours of the peers' bars, in their order; repeated if there are more peers.
const COLORS: [&str; 5] = ["#b0762c", "#8a4f9e", "#3c963c", "#a03c3c", "#507080"];

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Draws a report compared with its peers; returns SVG text.
pub fn compare_svg(report: &LlmReport, peers: &[Peer]) -> Result<String, String> {
    let mut body = String::new();
    let mut y = 40.0;
    for Line { what, own, limit, peers: rates } in lines(report, peers) {
        let mut bars = vec![("watus-build", own, "#2c6eb4")];
        let others = peers.iter().zip(&rates).zip(COLORS.iter().cycle());
        bars.extend(others.filter_map(|((peer, rate), color)| Some((&*peer.name, (*rate)?, *color))));
        bars.extend(limit.map(|limit| ("what memory allows", limit, "#c8c8c8")));
        let highest = bars.iter().map(|(_, rate, _)| *rate).fold(1.0, f64::max);
        write!(body, "<text x=\"12\" y=\"{:.0}\" font-weight=\"bold\">{}</text>", y + 14.0, escaped(&what))
            .map_err(|error| error.to_string())?;
        for (name, rate, color) in bars {
            let (length, middle) = (LONGEST * rate / highest, y + 14.0);
            write!(
                body,
                "<text x=\"{:.0}\" y=\"{middle:.0}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"{BAR}\" fill=\"{color}\"/>\
                 <text x=\"{:.0}\" y=\"{middle:.0}\">{rate:.0}</text>",
                LEFT - 8.0,
                escaped(name),
                LEFT + length + 6.0
            )
            .map_err(|error| error.to_string())?;
            y += BAR + 4.0;
        }
        y += 14.0;
    }
    let title = escaped(&format!("{} on {}: tokens a second", report.name, report.backend.device));
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{y:.0}\" font-family=\"sans-serif\" \
         font-size=\"13\"><rect width=\"100%\" height=\"100%\" fill=\"white\"/><text x=\"12\" y=\"24\" \
         font-size=\"16\">{title}</text>{body}</svg>\n"
    ))
}
