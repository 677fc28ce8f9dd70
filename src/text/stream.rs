//! Detokenises incrementally: never emits half a character, or the beginning of a stop string.

use super::Text;
use super::error::TextError;

/// Detokenises the tokens of one answer.
#[derive(Debug, Default, Clone)]
pub struct TextStream {
    /// Tokens that may still affect the text of the next.
    tokens: Vec<u32>,
    /// Number of leading tokens whose text has been emitted, and that text.
    spoken: usize,
    prefix: String,
    special: bool,
}

impl TextStream {
    /// With or without the text of special tokens.
    pub fn new(special: bool) -> Self {
        Self { special, ..Self::default() }
    }

    /// Adds a token; returns the text that is now certain.
    pub fn push(&mut self, text: &Text, token: u32) -> Result<String, TextError> {
        self.tokens.push(token);
        let whole = text.decode(&self.tokens, !self.special)?;
        // A replacement character at the end is a character whose other bytes are still to come.
        if whole.ends_with('\u{fffd}') || whole.len() <= self.prefix.len() {
            return Ok(String::new());
        }
        let new = whole.get(self.prefix.len()..).unwrap_or_default().to_owned();
        // A few tokens of context are enough: spelling depends on the neighbour alone.
        self.tokens.drain(..self.spoken);
        self.spoken = self.tokens.len();
        self.prefix = text.decode(&self.tokens, !self.special)?;
        Ok(new)
    }

    /// The remaining text at the end of an answer; an incomplete character becomes �.
    pub fn finish(&mut self, text: &Text) -> Result<String, TextError> {
        let whole = text.decode(&self.tokens, !self.special)?;
        Ok(whole.get(self.prefix.len()..).unwrap_or_default().to_owned())
    }
}

/// Finds stop strings in a stream of text.
#[derive(Debug, Default, Clone)]
pub struct StopFinder {
    stops: Vec<String>,
    held: String,
}

impl StopFinder {
    /// Stops at the first of `stops`.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Adds text; returns the text before a stop string, and whether one was found.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        // Keep back the longest end that begins a stop string.
        let begins = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(begins).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text held back, at the end of an answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_strings_are_found_across_pieces() {
        let run = |stops: &[&str], pieces: &[&str]| {
            let mut finder = StopFinder::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
            let mut shown = Vec::new();
            for piece in pieces {
                let (text, stopped) = finder.push(piece);
                shown.push(text);
                if stopped {
                    return (shown, true);
                }
            }
            shown.push(finder.finish());
            (shown, false)
        };
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(run(&["END"], &["abE", "N", "Dxyz"]), (strings(&["ab", "", ""]), true));
        assert_eq!(run(&["END"], &["abE", "N", "x"]), (strings(&["ab", "", "ENx", ""]), false));
        assert_eq!(run(&["ą!", "\n\n"], &["zą", "b\n"]), (strings(&["z", "ąb", "\n"]), false));
        assert_eq!(run(&["b", "ab"], &["xab"]), (strings(&["x"]), true));
        assert_eq!(run(&[], &["any"]), (strings(&["any", ""]), false));
    }
}
