//! Where a turn ends, as the template shows it: the token it writes after an assistant's words ends an answer, whatever
//! generation_config.json and the tokenizer name.
//!
//! Many checkpoints name only the end of a text there and end turns with `<|im_end|>`, which they would run past. For a GGUF
//! `gguf.rs` knows the usual spellings by name, as llama.cpp does; what the template shows is added to them.

use tokenizers::Tokenizer;

use super::message::{Chat, Message};
use super::template::ChatTemplate;

/// Words that no template has.
const QUESTION: &str = "~question~";
const ANSWER: &str = "~answer~";

/// The token that ends a turn; none if the template shows none.
///
/// It follows the answer both where the conversation ends there and where it goes on: a template that begins answers whether
/// it is asked to or not, or that parts turns by tokens before them, has another in one of these places.
pub(super) fn of(template: &ChatTemplate, tokenizer: &Tokenizer) -> Option<u32> {
    let turns =
        [("user", QUESTION), ("assistant", ANSWER), ("user", QUESTION)].map(|(role, text)| Message::new(role, text));
    let added = tokenizer.get_added_tokens_decoder();
    let after_answer = |turns: &[Message]| {
        let text = template.render_until(&Chat { messages: turns.to_vec(), ..Chat::default() }, false).ok()?;
        let (_, after) = text.rsplit_once(ANSWER)?;
        let after = after.trim_start();
        // Runs of spaces are added tokens, too.
        let found =
            added.iter().filter(|(_, token)| !token.content.trim().is_empty() && after.starts_with(&token.content));
        found.max_by_key(|(_, token)| token.content.len()).map(|(id, _)| *id)
    };
    let end = after_answer(&turns[..2])?;
    (after_answer(&turns[..]) == Some(end)).then_some(end)
}
