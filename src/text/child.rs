//! Runs programs of strangers in a child process: chat templates, which come with a model. They may take all memory or never
//! end, and their library cannot be interrupted.
//!
//! If the program registered its executable (`confined::program`), which must answer to [`SUBCOMMAND`], a template is rendered
//! by a child that stays alive.

mod answers;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use answers::answerer;

use super::error::TextError;
use super::message::Chat;
use crate::confined::{self, Confined, ConfinedError, Limits};
use crate::diagnostic::Diagnose;

/// Hidden subcommand that starts a child.
pub const SUBCOMMAND: &str = "__text";

/// Limits of rendering a prompt of any length.
const RENDERING: Limits = Limits { memory: 1 << 30, time: Duration::from_secs(10) };

/// The sources of a chat template.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TemplateParts {
    /// Source of the template.
    pub text: String,
    /// Source of the template for conversations with functions, if it is another.
    pub tool_use: Option<String>,
    /// Special tokens by the template's variables: `bos_token`, `pad_token`, …
    pub tokens: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
enum TextQuestion {
    Template(TemplateParts),
    /// Render a conversation, with or without the beginning of an answer.
    Render(Box<Chat>, bool),
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks a child of this program, as long as `left` is not true.
pub(crate) fn ask(
    child: &mut Confined,
    question: &impl Serialize,
    left: &AtomicBool,
) -> Result<Result<String, String>, ConfinedError> {
    let question = serde_json::to_vec(question).unwrap_or_default();
    let answer = child.ask_until(&question, &|| left.load(Ordering::Relaxed))?;
    Ok(serde_json::from_slice(&answer)
        .unwrap_or_else(|error| Err(format!("the child's answer makes no sense: {error}"))))
}

/// Renders a template in a child process.
pub(super) struct Renderer {
    parts: TemplateParts,
    child: Mutex<Option<Confined>>,
}

impl Renderer {
    /// `None` if templates are rendered in this process.
    pub(super) fn of(parts: &TemplateParts) -> Option<Self> {
        confined::program()?;
        Some(Self { parts: parts.clone(), child: Mutex::new(None) })
    }

    /// The rendered text, or the template's error.
    pub(super) fn render(&self, chat: &Chat, answer: bool) -> Result<Result<String, String>, ConfinedError> {
        let mut place = lock(&self.child);
        if let Some(child) = place.take() {
            match self.ask(child, (chat, answer), &mut place) {
                // It may have died long ago: when memory runs out, the kernel takes children first.
                Err(ConfinedError::Died(_) | ConfinedError::Io(_)) => {}
                rendered => return rendered,
            }
        }
        match self.start()? {
            Ok(child) => self.ask(child, (chat, answer), &mut place),
            Err(message) => Ok(Err(message)),
        }
    }

    /// Starts a child with the template; the inner error says why the template is invalid.
    fn start(&self) -> Result<Result<Confined, String>, ConfinedError> {
        let mut child = confined::start(SUBCOMMAND, RENDERING)?;
        let taken = ask(&mut child, &TextQuestion::Template(self.parts.clone()), &AtomicBool::new(false))?;
        Ok(taken.map(|_| child))
    }

    /// Sends a request to a child, which is kept in `place` if it survives.
    fn ask(
        &self,
        mut child: Confined,
        (chat, answer): (&Chat, bool),
        place: &mut Option<Confined>,
    ) -> Result<Result<String, String>, ConfinedError> {
        let rendered = ask(&mut child, &TextQuestion::Render(Box::new(chat.clone()), answer), &AtomicBool::new(false))?;
        *place = Some(child);
        Ok(rendered)
    }
}

/// The error for a request that the child did not answer: it may succeed another time, or the request itself is to blame, or
/// neither, where there was no child or it left on its own.
pub(crate) fn unanswered(what: &str, error: &ConfinedError, asked: impl FnOnce(String) -> TextError) -> TextError {
    let message = format!("{what}: {error}");
    match error {
        ConfinedError::Starved => TextError::Busy(message),
        ConfinedError::Died(death) => {
            tracing::warn!("{message}");
            let message = format!("{what}: {}", death.without_words());
            if death.is_crash() { asked(message) } else { TextError::Internal(message.into()) }
        }
        ConfinedError::Io(_) | ConfinedError::NotEnabled => {
            tracing::warn!("{message}");
            TextError::Internal(error.diagnostic().at(what))
        }
        ConfinedError::TooLong(_) | ConfinedError::Stopped => asked(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_is_blamed_for_what_crashes_alone() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("child");
        let limits = Limits { memory: 1 << 30, time: Duration::from_secs(60) };
        let told = |text: &str| {
            std::fs::write(&script, text).unwrap();
            let mut child = Confined::start("/bin/sh".as_ref(), script.to_str().unwrap(), limits).unwrap();
            unanswered("it failed", &child.ask(b"?").unwrap_err(), TextError::Request)
        };
        let crash = told("kill -SEGV $$");
        assert!(matches!(&crash, TextError::Request(said) if said.contains("signal 11")), "{crash:?}");
        let end = told("exit 3");
        assert!(matches!(&end, TextError::Internal(said) if said.message.contains("exit status: 3")), "{end:?}");
        let none = Confined::start("/nope/żaba".as_ref(), SUBCOMMAND, limits).unwrap_err();
        let none = unanswered("it failed", &none, TextError::Request);
        assert!(matches!(&none, TextError::Internal(said) if said.message.contains("/nope/żaba")), "{none:?}");
        let starved = unanswered("it failed", &ConfinedError::Starved, TextError::Request);
        assert!(matches!(starved, TextError::Busy(_)));
    }
}
