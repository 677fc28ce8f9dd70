//! [`Diagnostic`]: an error message, and apart from it a hint with the next step.
//!
//! Errors that a user can fix contain one, so that callers can show message and hint separately. As text it is two
//! lines, the second of which begins with `  hint: `.

use std::fmt;

/// Separates message and hint in a text.
const HINT: &str = "\n  hint: ";

/// An error message and its hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong and where: the file and its tensor, key or node.
    pub message: String,
    /// The next step, shown after `hint: `.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A message without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    /// Sets the hint, replacing any other.
    pub fn with_help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.help.as_ref().map_or(Ok(()), |help| write!(f, "{HINT}{help}"))
    }
}

/// Splits a text at its hint, such as the output of another process or of a chain of errors.
impl From<&str> for Diagnostic {
    fn from(text: &str) -> Self {
        match text.rsplit_once(HINT) {
            Some((message, help)) => Self::new(message).with_help(help),
            None => Self::new(text),
        }
    }
}

impl From<String> for Diagnostic {
    fn from(text: String) -> Self {
        if text.contains(HINT) { Self::from(text.as_str()) } else { Self::new(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_taken_apart_and_put_together_again() {
        for (text, message, help) in [
            ("x is odd", "x is odd", None),
            ("x is odd\n  hint: take y", "x is odd", Some("take y")),
            ("x: y\n  hint: z\n  hint: take ż", "x: y\n  hint: z", Some("take ż")),
            ("hint: none", "hint: none", None),
        ] {
            let diagnostic = Diagnostic::from(text);
            assert_eq!((diagnostic.message.as_str(), diagnostic.help.as_deref()), (message, help));
            assert_eq!(diagnostic, Diagnostic::from(text.to_owned()));
            assert_eq!(diagnostic.to_string(), text);
        }
    }
}
