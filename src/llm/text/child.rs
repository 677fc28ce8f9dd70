//! Runs programs of strangers in a child process: chat templates, which come with a model, and grammars, which are made
//! of a client's schemas. Both may take all memory or never end, and neither library can be interrupted.
//!
//! If the program registered its executable (`confined::program`), which must have the subcommand [`SUBCOMMAND`], a
//! template is rendered by a child that stays alive; and a grammar is compiled by a child before it is compiled in this
//! process, where it is then known to take only a moment.

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

/// Hidden subcommand that starts a child.
pub const SUBCOMMAND: &str = "__text";

/// Limits of rendering a prompt of any length.
const RENDERING: Limits = Limits { memory: 1 << 30, time: Duration::from_secs(10) };
/// Limits of compiling a grammar; enough for a schema far larger than people write (FHIR's takes half a second).
const COMPILING: Limits = Limits { memory: 1 << 30, time: Duration::from_secs(3) };
/// Most grammars that are compiled at once, in children or here.
const PROBES: usize = 2;
/// Most grammars that are remembered as harmless.
const KNOWN: usize = 512;

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

/// The error for a request that the child did not answer: it may succeed another time, or the request itself is to
/// blame.
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

/// Compiles grammars in child processes, to find out whether they are harmless.
#[derive(Debug, Default)]
pub(super) struct Probes {
    idle: Mutex<Vec<Confined>>,
    running: Mutex<usize>,
    freed: Condvar,
    known: Mutex<HashSet<String>>,
}

/// Permission to compile a grammar; the next waiting request gets it when this is dropped.
pub(super) struct Turn<'a>(&'a Probes);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.freed.notify_one();
    }
}

/// Interval at which a waiting request checks whether its client has left.
const PATIENCE: Duration = Duration::from_millis(50);

impl Probes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Waits for permission to compile a grammar, and refuses a grammar that takes too much. Only a few are compiled at
    /// once, in children or here, known or not.
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
