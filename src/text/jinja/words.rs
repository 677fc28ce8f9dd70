//! Operations of Python's str: white space, lines, parts, indices and widths, counted in characters.

use minijinja::Error;

use super::values::refused;

/// Largest width in characters that a string may be padded to.
const WIDEST: usize = 1 << 20;

/// Whether a character is white space in Python: Unicode's, and the separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Strips white space, or the given characters, from the ends.
pub(super) fn strip(this: &str, chars: Option<&str>, sides: (bool, bool)) -> String {
    let drop = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let this = if sides.0 { this.trim_start_matches(drop) } else { this };
    if sides.1 { this.trim_end_matches(drop) } else { this }.to_owned()
}

pub(super) fn capitalize(this: &str) -> String {
    let mut letters = this.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(letters.as_str().to_lowercase().chars()).collect()
}

pub(super) fn title(this: &str) -> String {
    let mut within = false;
    let mut titled = String::with_capacity(this.len());
    for c in this.chars() {
        let cased = c.is_lowercase() || c.is_uppercase();
        match within {
            true => titled.extend(c.to_lowercase()),
            false => titled.extend(c.to_uppercase()),
        }
        within = cased;
    }
    titled
}

pub(super) fn split(this: &str, separator: Option<&str>, most: usize, forwards: bool) -> Vec<String> {
    let own = |parts: Vec<&str>| parts.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let pieces = most.saturating_add(1);
    match (separator, forwards) {
        (Some(separator), true) => own(this.splitn(pieces, separator).collect()),
        (Some(separator), false) => {
            let mut parts = own(this.rsplitn(pieces, separator).collect());
            parts.reverse();
            parts
        }
        (None, true) => {
            let (mut parts, mut rest) = (Vec::new(), this.trim_start_matches(is_space));
            while !rest.is_empty() && parts.len() < most {
                let (part, after) = rest.split_at(rest.find(is_space).unwrap_or(rest.len()));
                parts.push(part);
                rest = after.trim_start_matches(is_space);
            }
            parts.extend((!rest.is_empty()).then_some(rest));
            own(parts)
        }
        (None, false) => {
            let (mut parts, mut rest) = (Vec::new(), this.trim_end_matches(is_space));
            while !rest.is_empty() && parts.len() < most {
                let at = rest.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(at, c)| at + c.len_utf8());
                let (before, part) = rest.split_at(at);
                parts.push(part);
                rest = before.trim_end_matches(is_space);
            }
            parts.extend((!rest.is_empty()).then_some(rest));
            parts.reverse();
            own(parts)
        }
    }
}

/// Splits at every line boundary that Python knows.
pub(super) fn lines(this: &str, ends: bool) -> Vec<String> {
    let (mut lines, mut rest) = (Vec::new(), this);
    let ending = ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    while let Some(at) = rest.find(ending) {
        let end = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => rest[at..].chars().next().map_or(1, char::len_utf8),
        };
        lines.push(rest[..if ends { at + end } else { at }].to_owned());
        rest = &rest[at + end..];
    }
    lines.extend((!rest.is_empty()).then(|| rest.to_owned()));
    lines
}

/// The characters between two indices, and the number of characters before them; `None` if the range is invalid.
pub(super) fn range(this: &str, start: Option<i128>, end: Option<i128>) -> Option<(usize, &str)> {
    let length = this.chars().count();
    let all = i128::try_from(length).ok()?;
    let place =
        |at: i128| usize::try_from(if at < 0 { at.saturating_add(all).max(0) } else { at }).unwrap_or(usize::MAX);
    let (start, end) = (start.map_or(0, place), end.map_or(length, place).min(length));
    if start > end {
        return None;
    }
    let byte = |place: usize| this.char_indices().nth(place).map_or(this.len(), |(at, _)| at);
    Some((start, &this[byte(start)..byte(end)]))
}

/// Pads a string. Python's `center` puts the odd space on the left if the width is odd.
pub(super) fn fill_up(this: &str, name: &str, width: usize, fill: char) -> Result<String, Error> {
    if width > WIDEST {
        return Err(refused(format!("{name}: a text has more than {WIDEST} characters")));
    }
    let missing = width.saturating_sub(this.chars().count());
    let many = |count: usize| String::from_iter(std::iter::repeat_n(fill, count));
    Ok(match name {
        "ljust" => format!("{this}{}", many(missing)),
        "rjust" => format!("{}{this}", many(missing)),
        "zfill" => {
            let (sign, digits) = this.split_at(usize::from(this.starts_with(['-', '+'])));
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            let left = missing / 2 + (missing & width & 1);
            format!("{}{this}{}", many(left), many(missing - left))
        }
    })
}

pub(super) fn expand(this: &str, width: usize) -> String {
    let (mut expanded, mut column) = (String::new(), 0);
    for c in this.chars() {
        match c {
            '\t' if width == 0 => {}
            '\t' => {
                let spaces = width - column % width;
                expanded.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            _ => {
                expanded.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    expanded
}
