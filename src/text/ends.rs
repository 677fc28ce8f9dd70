//! Finds the end-of-turn token by the chat template: the token it writes after an assistant's message ends an answer,
//! whatever generation_config.json and the tokenizer say.
//!
//! Many checkpoints only name the end of a text there, but end turns with `<|im_end|>`, which they would continue
//! after. For a GGUF, `gguf.rs` knows the usual end-of-turn tokens by name, like llama.cpp; the template's is added to
//! them.

use tokenizers::Tokenizer;

use super::message::{Chat, Message};
use super::template::ChatTemplate;

/// Text that no template contains.
const QUESTION: &str = "~question~";
const ANSWER: &str = "~answer~";

/// The token that ends a turn; `None` if the template shows none.
///
/// It must follow the answer both at the end of a conversation and inside of it: a template that always begins an
/// answer, or that separates turns by tokens before them, has another token in one of these places.
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
