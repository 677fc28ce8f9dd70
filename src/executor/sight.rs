//! The attention mask of a pass: what each of its rows sees.

use super::Span;
use crate::convert::MASKED;

/// The causal attention mask of a pass over the rows of several sequences, none of which sees another. Cached positions of
/// the spans are columns one after the other, and so are their rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight<'a> {
    /// Number of query heads that share a key head; see `convert::layer_graph`.
    pub(super) group: usize,
    /// Number of columns for cached positions.
    pub(super) cache: usize,
    /// The spans, whose rows are all rows of the pass.
    pub(super) spans: &'a [Span],
    /// Length of the sliding window in positions, the query's own included; `None` for no window.
    pub(super) window: Option<usize>,
}

impl Sight<'_> {
    /// The additive mask `[group · rows, cache + rows]`.
    pub(super) fn mask(&self) -> Vec<f32> {
        let rows: usize = self.spans.iter().map(|span| span.count).sum();
        let width = self.cache + rows;
        let mut mask = vec![MASKED; rows * width];
        let mut lines = mask.chunks_exact_mut(width);
        // First column of the span's cached positions, and first of its rows.
        let (mut column, mut row) = (0, 0);
        for Span { position: cached, count, .. } in self.spans {
            for (query, line) in lines.by_ref().take(*count).enumerate() {
                // First visible position of the sequence.
                let first = self.window.map_or(0, |window| (cached + query + 1).saturating_sub(window));
                line[column + first.min(*cached)..column + cached].fill(0.0);
                let own = self.cache + row;
                line[own + first.saturating_sub(*cached)..=own + query].fill(0.0);
            }
            (column, row) = (column + cached, row + count);
        }
        mask.repeat(self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(sight: Sight<'_>) -> Vec<String> {
        let width = sight.cache + sight.spans.iter().map(|span| span.count).sum::<usize>();
        let mark = |v: &f32| if *v == 0.0 { '1' } else { '.' };
        sight.mask().chunks(width).map(|row| row.iter().map(mark).collect()).collect()
    }

    #[test]
    fn masks_show_the_past_and_the_window() {
        let span = [Span { slot: 0, position: 3, count: 2 }];
        let sight = Sight { group: 2, cache: 4, spans: &span, window: None };
        assert_eq!(seen(sight), ["111.1.", "111.11", "111.1.", "111.11"]);
        // A window of 3 shows positions 1 to 3 to query 3, and 2 to 4 to query 4.
        assert_eq!(seen(Sight { window: Some(3), group: 1, ..sight }), [".11.1.", "..1.11"]);
        assert_eq!(seen(Sight { window: Some(1), group: 1, ..sight }), ["....1.", ".....1"]);
        let fresh = [Span { slot: 0, position: 0, count: 2 }];
        assert_eq!(seen(Sight { window: None, group: 1, cache: 0, spans: &fresh }), ["1.", "11"]);
    }

    #[test]
    fn sequences_do_not_see_each_other() {
        let spans = [(3, 1), (0, 2), (2, 2)].map(|(position, count)| Span { slot: position, position, count });
        let sight = Sight { group: 1, cache: 6, spans: &spans, window: None };
        assert_eq!(seen(sight), ["111...1....", ".......1...", ".......11..", "...11....1.", "...11....11"]);
        let narrow = Sight { window: Some(2), ..sight };
        assert_eq!(seen(narrow), ["..1...1....", ".......1...", ".......11..", "....1....1.", ".........11"]);
    }
}
