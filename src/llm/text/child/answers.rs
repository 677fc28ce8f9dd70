//! The child's side: renders a template, compiles grammars, and reports the results.

use super::TextQuestion;
use crate::llm::grammar::Grammars;
use crate::llm::text::template::ChatTemplate;

/// Answers a parent's requests.
pub fn answerer() -> impl FnMut(&[u8]) -> Vec<u8> + Send {
    let (mut template, mut grammars) = (None, None);
    move |question: &[u8]| {
        let answer: Result<String, String> = match serde_json::from_slice(question) {
            Ok(TextQuestion::Template(parts)) => match ChatTemplate::of_parts(parts) {
                Ok(new) => {
                    template = Some(new);
                    Ok(String::new())
                }
                Err(error) => Err(error.to_string()),
            },
            Ok(TextQuestion::Render(chat, answer)) => match &template {
                Some(template) => template.render_here(&chat, answer),
                None => Err("no template was given".to_owned()),
            },
            Ok(TextQuestion::Grammar(lark)) => grammars
                .get_or_insert_with(Grammars::of_bytes)
                .as_ref()
                .map_err(ToString::to_string)
                .and_then(|grammars| grammars.compile(&lark).map_err(|error| error.to_string()))
                .map(|_| String::new()),
            Err(error) => Err(format!("not a question: {error}")),
        };
        serde_json::to_vec(&answer).unwrap_or_default()
    }
}
