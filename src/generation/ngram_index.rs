//! A text's n-grams by what follows them, to find where the end of an answer has been said before.

use std::collections::HashMap;

/// Lengths of the n-grams, the longest first.
const ORDERS: [usize; 3] = [8, 4, 2];
/// Length of the longest n-gram.
pub(super) const LONGEST: usize = ORDERS[0];

/// Tokens, and for each n-gram of them where it was last followed by another token.
#[derive(Debug, Clone, Default)]
pub(super) struct NgramIndex {
    tokens: Vec<u32>,
    /// Position of the token that follows, by the n-gram's hash; one map for each of [`ORDERS`].
    followed: [HashMap<u64, u32>; ORDERS.len()],
}

/// Number of places that are searched near another.
const NEAR: usize = 256;

/// FNV-1a over whole tokens; whoever looks one up compares the tokens themselves.
fn hash(tokens: &[u32]) -> u64 {
    let mix = |hash: u64, token: &u32| (hash ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3);
    tokens.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

/// The last `count` tokens, if there are as many.
fn end(tokens: &[u32], count: usize) -> Option<&[u32]> {
    tokens.len().checked_sub(count).map(|first| &tokens[first..])
}

impl NgramIndex {
    pub(super) fn new(tokens: &[u32]) -> Self {
        let mut index = Self::default();
        tokens.iter().for_each(|token| index.push(*token));
        index
    }

    /// The tokens.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Adds the text's next token.
    pub(super) fn push(&mut self, token: u32) {
        let at = u32::try_from(self.tokens.len()).unwrap_or(u32::MAX);
        for (order, followed) in ORDERS.into_iter().zip(&mut self.followed) {
            if let Some(ngram) = end(&self.tokens, order) {
                followed.insert(hash(ngram), at);
            }
        }
        self.tokens.push(token);
    }

    /// Where the longest n-gram at the end of `text`, of more than `length` tokens, is followed by another token, and its
    /// length. Of several places the last.
    pub(super) fn find(&self, text: &[u32], length: usize) -> Option<(usize, usize)> {
        let longer = ORDERS.into_iter().zip(&self.followed).filter(|(order, _)| *order > length);
        longer.into_iter().find_map(|(order, followed)| {
            let ngram = end(text, order)?;
            let at = *followed.get(&hash(ngram))? as usize;
            (self.tokens.get(at.checked_sub(order)?..at)? == ngram).then_some((at, order))
        })
    }

    /// As [`NgramIndex::find`], but of several places the first from `from` on, if there is one near.
    pub(super) fn find_near(&self, text: &[u32], length: usize, from: usize) -> Option<(usize, usize)> {
        let near = |order: usize| {
            let ngram = end(text, order)?;
            let mut places = from.max(order)..self.tokens.len().min(from + NEAR);
            let at = places.find(|at| self.tokens[at - order..*at] == *ngram)?;
            Some((at, order))
        };
        ORDERS.into_iter().filter(|order| *order > length).find_map(near).or_else(|| self.find(text, length))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By looking everywhere.
    fn found(index: &NgramIndex, text: &[u32], length: usize) -> Option<(usize, usize)> {
        let tokens = index.tokens();
        ORDERS.into_iter().filter(|order| *order > length && *order <= text.len()).find_map(|order| {
            let places = (order..tokens.len()).rev();
            let same = |at: &usize| tokens[at - order..*at] == text[text.len() - order..];
            places.into_iter().find(same).map(|at| (at, order))
        })
    }

    proptest! {
        #[test]
        fn it_finds_what_a_search_finds(
            tokens in proptest::collection::vec(0_u32..4, 0..60),
            text in proptest::collection::vec(0_u32..4, 0..12),
            length in 0_usize..9,
        ) {
            let index = NgramIndex::new(&tokens);
            prop_assert_eq!(index.find(&text, length), found(&index, &text, length));
            // Near the beginning of a short text is anywhere.
            let near = index.find_near(&text, length, 0);
            prop_assert_eq!(near.is_some(), index.find(&text, length).is_some());
            prop_assert!(near.zip(index.find(&text, length)).is_none_or(|(near, last)| near.0 <= last.0 && near.1 == last.1));
            // The end of the text itself is followed by nothing.
            prop_assert!(index.find(&tokens, length).is_none_or(|(at, _)| at < tokens.len()));
        }
    }
}
