//! The child's side: renders a template, and reports the result.

use super::TextQuestion;
use crate::text::template::ChatTemplate;

/// Answers a parent's requests.
pub fn answerer() -> impl FnMut(&[u8]) -> Vec<u8> + Send {
    let mut template = None;
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
            Err(error) => Err(format!("not a question: {error}")),
        };
        serde_json::to_vec(&answer).unwrap_or_default()
    }
}
