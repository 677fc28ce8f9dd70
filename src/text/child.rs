//! What strangers wrote as programs runs in a process of its own: chat templates, which come with a model, and grammars, which
//! are made of a client's schemas. Both may take all memory, or for ever, and neither library can be stopped from outside.
//!
//! Where the program says that its executable answers to [`SUBCOMMAND`] (`confined::program`), a template is rendered by
//! a child that stays; and a grammar is compiled by one before it is compiled here, so that here it takes a moment.

mod answers;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use answers::answerer;

use super::message::Chat;
use crate::artifact::sha256;
use crate::confined::{self, Confined, ConfinedError, Limits};
use crate::llm::executor::LlmError;

/// What a child is started with.
pub const SUBCOMMAND: &str = "__text";

/// For a prompt of any length.
const RENDERING: Limits = Limits { memory: 1 << 30, time: Duration::from_secs(10) };
/// For a schema far larger than people write: FHIR's takes half a second.
const COMPILING: Limits = Limits { memory: 1 << 30, time: Duration::from_secs(3) };
/// Grammars that are compiled at once, in children or here.
const PROBES: usize = 2;
/// Grammars that are known to be harmless.
const KNOWN: usize = 512;

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
    Grammar(String),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask(
    child: &mut Confined,
    question: &TextQuestion,
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
pub(super) fn unanswered(what: &str, error: &ConfinedError, asked: impl FnOnce(String) -> LlmError) -> LlmError {
    let message = format!("{what}: {error}");
    match error {
        ConfinedError::Starved | ConfinedError::Io(_) => LlmError::Busy(message),
        ConfinedError::Died(death) => {
            tracing::warn!("{message}");
            asked(format!("{what}: {}", death.without_words()))
        }
        _ => asked(message),
    }
}

/// Tries grammars out of this process.
#[derive(Debug, Default)]
pub(super) struct Probes {
    idle: Mutex<Vec<Confined>>,
    running: Mutex<usize>,
    freed: Condvar,
    known: Mutex<HashSet<String>>,
}

/// A turn to compile a grammar; the next has it when this is dropped.
pub(super) struct Turn<'a>(&'a Probes);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.freed.notify_one();
    }
}

/// How long somebody waits for a turn before it is asked whether he still does.
const PATIENCE: Duration = Duration::from_millis(50);

impl Probes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Waits for a turn to compile a grammar, and refuses one that takes too much. A few are compiled at once, wherever that
    /// is, and whether they are known or not.
    pub(super) fn check(&self, lark: &str, left: &AtomicBool) -> Result<Turn<'_>, LlmError> {
        let mut running = lock(&self.running);
        while *running >= PROBES {
            if left.load(Ordering::Relaxed) {
                return Err(LlmError::Request("nobody waits for it any more".to_owned()));
            }
            running = self.freed.wait_timeout(running, PATIENCE).unwrap_or_else(PoisonError::into_inner).0;
        }
        *running += 1;
        drop(running);
        let turn = Turn(self);
        let name = sha256(lark.as_bytes());
        if confined::program().is_none() || lock(&self.known).contains(&name) {
            return Ok(turn);
        }
        match self.try_out(lark, left) {
            Ok(Ok(_)) => {
                let mut known = lock(&self.known);
                if known.len() >= KNOWN {
                    known.clear();
                }
                known.insert(name);
                Ok(turn)
            }
            Ok(Err(message)) => Err(LlmError::Request(message)),
            Err(error) => Err(unanswered("it cannot be compiled", &error, LlmError::Request)),
        }
    }

    fn try_out(&self, lark: &str, left: &AtomicBool) -> Result<Result<String, String>, ConfinedError> {
        let question = TextQuestion::Grammar(lark.to_owned());
        let idle = lock(&self.idle).pop();
        if let Some(mut child) = idle {
            match ask(&mut child, &question, left) {
                // As above.
                Err(ConfinedError::Died(_) | ConfinedError::Io(_)) => {}
                outcome => {
                    if outcome.is_ok() {
                        lock(&self.idle).push(child);
                    }
                    return outcome;
                }
            }
        }
        let mut child = confined::start(SUBCOMMAND, COMPILING)?;
        let outcome = ask(&mut child, &question, left)?;
        lock(&self.idle).push(child);
        Ok(outcome)
    }
}
