//! What strangers wrote as a program runs in a process of its own: a chat template, which comes with a model. It may take all
//! memory, or for ever, and its library cannot be stopped from outside.
//!
//! Where the program says that its executable answers to [`SUBCOMMAND`] (`confined::program`), a template is rendered by
//! a child that stays.

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

/// What a child is started with.
pub const SUBCOMMAND: &str = "__text";

/// For a prompt of any length.
const RENDERING: Limits = Limits { memory: 1 << 30, time: Duration::from_secs(10) };

/// What a template is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TemplateParts {
    /// The template.
    pub text: String,
    /// The one for conversations in which functions are offered, if that is another.
    pub tool_use: Option<String>,
    /// Special tokens, by the names of variables: `bos_token`, `pad_token`, …
    pub tokens: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
enum TextQuestion {
    Template(TemplateParts),
    /// A conversation, and whether an answer is to follow.
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

/// Renders a template out of this process.
pub(super) struct Renderer {
    parts: TemplateParts,
    child: Mutex<Option<Confined>>,
}

impl Renderer {
    /// None where this process is to do it.
    pub(super) fn of(parts: &TemplateParts) -> Option<Self> {
        confined::program()?;
        Some(Self { parts: parts.clone(), child: Mutex::new(None) })
    }

    /// The text, or what the template says against it.
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

    /// A child that knows the template, or why it takes it for none.
    fn start(&self) -> Result<Result<Confined, String>, ConfinedError> {
        let mut child = confined::start(SUBCOMMAND, RENDERING)?;
        let taken = ask(&mut child, &TextQuestion::Template(self.parts.clone()), &AtomicBool::new(false))?;
        Ok(taken.map(|_| child))
    }

    /// Asks a child, which is kept in its `place` if it lives.
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

/// What a child's failure is to whoever asked: another time may do, or it is what was asked.
pub(crate) fn unanswered(what: &str, error: &ConfinedError, asked: impl FnOnce(String) -> TextError) -> TextError {
    let message = format!("{what}: {error}");
    match error {
        ConfinedError::Starved | ConfinedError::Io(_) => TextError::Busy(message),
        ConfinedError::Died(death) => {
            tracing::warn!("{message}");
            asked(format!("{what}: {}", death.without_words()))
        }
        _ => asked(message),
    }
}
