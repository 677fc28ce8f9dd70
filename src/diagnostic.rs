//! [`Diagnostic`]: an error message, and apart from it a hint with the next step.
//!
//! Errors that a user can fix contain one, so that callers can show message and hint separately. As text it is two
//! lines, the second of which begins with `  hint: `. [`Diagnose`] asks any such error for it.

use std::error::Error;
use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Separates message and hint in a text.
const HINT: &str = "\n  hint: ";

/// An error message and its hint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// What is wrong and where: the file and its tensor, key or node.
    pub message: String,
    /// The next step, shown after `hint: `.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The words of another program that the message sums up; they are shown last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<Box<str>>,
}

impl Diagnostic {
    /// A message without a hint.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, words: None }
    }

    /// Sets the hint, replacing any other.
    pub fn with_help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// With where it is wrong before what is wrong.
    pub fn at(self, place: impl fmt::Display) -> Self {
        Self { message: format!("{place}: {}", self.message), ..self }
    }

    /// With what is wrong said otherwise.
    pub fn map_message(self, change: impl FnOnce(&str) -> String) -> Self {
        Self { message: change(&self.message), ..self }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, "{HINT}{help}")?;
        }
        self.words.as_ref().map_or(Ok(()), |words| write!(f, "\n  {words}"))
    }
}

impl Error for Diagnostic {}

/// An error whose next step can be asked for. Its text is that of its diagnostic.
pub trait Diagnose {
    /// What is wrong, and apart from it what to do.
    fn diagnostic(&self) -> Diagnostic;
}

impl<E: Diagnose> From<E> for Diagnostic {
    fn from(error: E) -> Self {
        error.diagnostic()
    }
}

/// An error of reading may have a diagnostic within, as `regular_file` makes them.
impl Diagnose for io::Error {
    fn diagnostic(&self) -> Diagnostic {
        let within = self.get_ref().and_then(|error| error.downcast_ref::<Diagnostic>());
        within.cloned().unwrap_or_else(|| Diagnostic::new(self.to_string()))
    }
}

/// Asks a cause for its diagnostic, if it is an error of one type.
pub type Ask = fn(&(dyn Error + 'static)) -> Option<Diagnostic>;

/// Asks errors of type `E`.
pub fn ask<E: Diagnose + Error + 'static>(cause: &(dyn Error + 'static)) -> Option<Diagnostic> {
    cause.downcast_ref::<E>().map(Diagnose::diagnostic)
}

/// An error and its causes, a cause only where it says something new; the next step is the first that one of them has. Causes are
/// asked whose types are `known`: what a text quotes must not pass for a next step.
pub fn of_chain(error: &anyhow::Error, known: &[Ask]) -> Diagnostic {
    let mut whole = Diagnostic::default();
    for cause in error.chain() {
        let own = cause.downcast_ref::<Diagnostic>().cloned();
        let asked = own.or_else(|| known.iter().find_map(|ask| ask(cause)));
        let Diagnostic { message, help, words } = asked.unwrap_or_else(|| Diagnostic::new(cause.to_string()));
        if whole.message.is_empty() {
            whole.message = message;
        } else if !whole.message.contains(&message) {
            whole.message = format!("{}: {message}", whole.message);
        }
        whole.help = whole.help.or(help);
        whole.words = whole.words.or(words);
    }
    whole
}

/// A text is a message, whatever it quotes.
impl From<&str> for Diagnostic {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Diagnostic {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{}", self.diagnostic())]
    struct Odd(#[source] io::Error);

    impl Diagnose for Odd {
        fn diagnostic(&self) -> Diagnostic {
            Diagnostic::new(format!("x is odd: {}", self.0)).with_help("take ż")
        }
    }

    #[test]
    fn a_chain_says_everything_once_and_the_next_step_last() {
        let odd = || Odd(io::Error::other("torn"));
        let known: &[Ask] = &[ask::<Odd>, ask::<io::Error>];
        let step = || Diagnostic::new("y is even").with_help("halve it");
        let reading = || io::Error::other(Diagnostic::new("no text").with_help("save it"));
        let cases: [(anyhow::Error, &[Ask], &str); 7] = [
            (odd().into(), known, "x is odd: torn\n  hint: take ż"),
            (anyhow::Error::from(odd()).context("job 1"), known, "job 1: x is odd: torn\n  hint: take ż"),
            (step().into(), &[], "y is even\n  hint: halve it"),
            (anyhow::Error::from(step()).context("job 2"), &[], "job 2: y is even\n  hint: halve it"),
            (anyhow::Error::from(reading()).context("a.txt"), known, "a.txt: no text\n  hint: save it"),
            // Nobody asks it, and what a text quotes is no step.
            (odd().into(), &[], "x is odd: torn\n  hint: take ż"),
            (anyhow::anyhow!("no `a{HINT}rm`"), known, "no `a\n  hint: rm`"),
        ];
        for (error, known, said) in cases {
            assert_eq!(of_chain(&error, known).to_string(), said, "{error:?}");
        }
        let helps = [of_chain(&odd().into(), known), of_chain(&odd().into(), &[]), format!("a{HINT}b").into()];
        assert_eq!(helps.map(|told| told.help), [Some("take ż".to_owned()), None, None]);
    }

    #[test]
    fn a_place_comes_first_and_the_words_of_others_last() {
        let diagnostic = Diagnostic::new("x is odd").with_help("take ż").at("a.onnx").at("job 1");
        assert_eq!(diagnostic.to_string(), "job 1: a.onnx: x is odd\n  hint: take ż");
        let diagnostic = Diagnostic { words: Some("assertion".into()), ..diagnostic };
        assert_eq!(diagnostic.to_string(), "job 1: a.onnx: x is odd\n  hint: take ż\n  assertion");
        let sent = serde_json::to_string(&diagnostic).unwrap();
        assert_eq!(serde_json::from_str::<Diagnostic>(&sent).unwrap(), diagnostic);
        let reading = io::Error::other(diagnostic.clone());
        assert_eq!(reading.to_string(), diagnostic.to_string());
        assert_eq!(Diagnostic::from(reading), diagnostic);
        let missing = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(missing.diagnostic(), Diagnostic::new(missing.to_string()));
    }
}
