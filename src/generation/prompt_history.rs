//! The prompts of late, from which beginnings that return are found: instructions and functions, which conversations share.
//!
//! A conversation's next turn repeats all of the last prompt and is no such return; to keep every turn would only wear the
//! disk. A beginning returns where two prompts differ before the end of both, or where one prompt is asked again.

use std::collections::VecDeque;

/// Shortest beginning that is worth a file.
pub(super) const SHORTEST: usize = 64;
/// Tokens that an earlier prompt has after the common beginning unless the new one goes on with its conversation: templates
/// end a prompt with a few that its next turn does not have, such as an empty thought.
const APART: usize = 7;
/// Most prompts, and tokens of all.
const PROMPTS: usize = 64;
const TOKENS: usize = 1 << 18;

/// Number of tokens that both begin with.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The prompts of late, each with its scope.
#[derive(Debug, Default)]
pub(super) struct PromptHistory(VecDeque<(u64, Vec<u32>)>);

impl PromptHistory {
    /// Adds a prompt. Returns the length of the longest beginning that returns with it; `visible` is the number of tokens
    /// that it may share with a prompt of a scope.
    pub(super) fn add(&mut self, scope: u64, prompt: &[u32], visible: impl Fn(u64) -> usize) -> Option<usize> {
        let mut longest = 0;
        let mut continued = None;
        for (at, (other, earlier)) in self.0.iter().enumerate() {
            let (same, most) = (common(earlier, prompt), visible(*other));
            let goes_on = earlier.len() < same + APART && prompt.len() > same;
            if same > most || !goes_on {
                longest = longest.max(same.min(most));
            } else if *other == scope {
                continued = Some(at);
            }
        }
        // What goes on is one conversation, whose earlier prompts say nothing more.
        if let Some(at) = continued {
            self.0.remove(at);
        }
        self.0.push_back((scope, prompt.to_vec()));
        while self.0.len() > PROMPTS || self.0.iter().map(|(_, prompt)| prompt.len()).sum::<usize>() > TOKENS {
            self.0.pop_front();
        }
        (longest >= SHORTEST).then_some(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A prompt of so many tokens that all share, then its own.
    fn prompt(shared: u32, own: &[u32]) -> Vec<u32> {
        (0..shared).chain(own.iter().map(|token| 1000 + token)).collect()
    }

    #[test]
    fn what_conversations_share_returns_and_a_conversation_does_not() {
        let all = |_: u64| usize::MAX;
        let mut history = PromptHistory::default();
        let question = [1, 2, 3, 90, 91, 92, 93];
        assert_eq!(history.add(1, &prompt(100, &question), all), None, "the first");
        // Its next turns: all of it, without the last tokens of the template, and more.
        let mut turn = prompt(100, &question[..5]);
        for more in 0..5 {
            turn.extend([200 + more; 20]);
            assert_eq!(history.add(1, &turn, all), None, "turn {more}");
        }
        assert_eq!(history.0.len(), 1, "one conversation");
        assert_eq!(history.add(1, &prompt(100, &[5; 7]), all), Some(100), "another question");
        assert_eq!(history.add(1, &prompt(40, &[5; 70]), all), None, "too short");
        let again = prompt(100, &[5; 7]);
        assert_eq!(history.add(1, &again, all), Some(107), "the same again");
        assert_eq!(history.add(1, &again[..80], all), Some(80), "a part of it");
    }

    #[test]
    fn others_prompts_return_as_far_as_they_may_be_seen() {
        let mut history = PromptHistory::default();
        let visible = |mine: u64, open: usize| move |other: u64| if other == mine { usize::MAX } else { open };
        assert_eq!(history.add(1, &prompt(100, &[1; 20]), visible(1, 0)), None);
        assert_eq!(history.add(2, &prompt(100, &[2; 20]), visible(2, 0)), None, "another's");
        assert_eq!(history.add(3, &prompt(100, &[3; 20]), visible(3, 80)), Some(80), "what all may share");
        // Also where another's prompt goes on.
        assert_eq!(history.add(4, &prompt(100, &[1; 40]), visible(4, 80)), Some(80));
        assert_eq!(history.add(1, &prompt(100, &[4; 20]), visible(1, 0)), Some(100));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut history = PromptHistory::default();
        for at in 0..100 {
            history.add(1, &[at; 70], |_| usize::MAX);
        }
        assert_eq!(history.0.len(), PROMPTS);
        assert_eq!(history.add(1, &[0; 70], |_| usize::MAX), None);
        assert_eq!(history.add(1, &[99; 70], |_| usize::MAX), Some(70));
        for at in 0..3 {
            history.add(1, &vec![at; TOKENS / 2], |_| usize::MAX);
        }
        assert_eq!(history.0.len(), 2);
    }
}
