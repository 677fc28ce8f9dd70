//! Compiles grammars, which are made of a client's schemas. Compiling one may take all memory or never end, and llguidance
//! cannot be interrupted.
//!
//! If the program registered its executable (`confined::program`), which must answer to [`SUBCOMMAND`], a grammar is compiled
//! by a child before it is compiled in this process, where it is then known to take only a moment.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::grammar::{Grammar, Grammars};
use crate::artifact::sha256;
use crate::confined::{self, Confined, ConfinedError, Limits};
use crate::diagnostic::Diagnostic;
use crate::executor::LlmError;
use crate::text::child::{ask, lock, unanswered};
use crate::text::{Text, TextError};

/// Hidden argument that starts a child.
pub const SUBCOMMAND: &str = "__grammar";

/// Limits of compiling a grammar; enough for a schema far larger than people write (FHIR's takes half a second).
const COMPILING: Limits = Limits { memory: 1 << 30, time: Duration::from_secs(3) };
/// Most grammars that are compiled at once, in children or here.
const PROBES: usize = 2;
/// Most grammars that are remembered as harmless.
const KNOWN: usize = 512;

/// Compiles grammars for a model's tokens.
pub struct GrammarCompiler {
    text: Arc<Text>,
    grammars: OnceLock<Result<Grammars, Diagnostic>>,
    probes: Probes,
}

impl GrammarCompiler {
    /// For the tokens of this model.
    pub fn new(text: Arc<Text>) -> Self {
        Self { text, grammars: OnceLock::new(), probes: Probes::default() }
    }

    /// Compiles a grammar for the model's tokens; the first takes a moment longer. If the program registered its executable, the
    /// cost is first measured in a child process. Gives up once `left` is true.
    pub fn compile(&self, lark: &str, left: &AtomicBool) -> Result<Grammar, LlmError> {
        let new = || {
            let text = Arc::clone(&self.text);
            let tokenize = Box::new(move |part: &str| text.encode_part(part, None).unwrap_or_default());
            Grammars::with_tokenizer(self.text.words(), &self.text.stop_tokens, tokenize).map_err(Diagnostic::from)
        };
        let grammars = self.grammars.get_or_init(new).as_ref().map_err(|error| LlmError::internal(error.clone()))?;
        let _turn = self.probes.check(lark, left)?;
        // With far more stack than the child had: what that held, this does.
        let thread = std::thread::Builder::new().name("grammar".to_owned()).stack_size(4 * confined::STACK);
        std::thread::scope(|scope| {
            let failed = |what: &str| LlmError::internal(format!("the grammar's thread {what}"));
            let thread = thread.spawn_scoped(scope, || grammars.compile(lark)).map_err(|_| failed("did not start"))?;
            thread.join().unwrap_or_else(|_| Err(failed("panicked")))
        })
    }
}

/// Answers a parent's requests: a question is a grammar.
pub fn answerer() -> impl FnMut(&[u8]) -> Vec<u8> + Send {
    let mut grammars = None;
    move |question: &[u8]| {
        let answer: Result<String, String> = match serde_json::from_slice::<String>(question) {
            Ok(lark) => grammars
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

/// Compiles grammars in child processes, to find out whether they are harmless.
#[derive(Debug, Default)]
struct Probes {
    idle: Mutex<Vec<Confined>>,
    running: Mutex<usize>,
    freed: Condvar,
    known: Mutex<HashSet<String>>,
}

/// Permission to compile a grammar; the next waiting request gets it when this is dropped.
struct Turn<'a>(&'a Probes);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) -= 1;
        self.0.freed.notify_one();
    }
}

/// Interval at which a waiting request checks whether its client has left.
const PATIENCE: Duration = Duration::from_millis(50);

impl Probes {
    /// Waits for permission to compile a grammar, and refuses a grammar that takes too much. Only a few are compiled at once, in
    /// children or here, known or not.
    fn check(&self, lark: &str, left: &AtomicBool) -> Result<Turn<'_>, LlmError> {
        let mut running = lock(&self.running);
        while *running >= PROBES {
            if left.load(Ordering::Relaxed) {
                return Err(LlmError::request("nobody waits for it any more"));
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
            Ok(Err(message)) => Err(LlmError::request(message)),
            Err(error) => Err(unanswered("it cannot be compiled", &error, TextError::Request).into()),
        }
    }

    fn try_out(&self, lark: &str, left: &AtomicBool) -> Result<Result<String, String>, ConfinedError> {
        let idle = lock(&self.idle).pop();
        if let Some(mut child) = idle {
            match ask(&mut child, &lark, left) {
                // It may have died long ago: when memory runs out, the kernel takes children first.
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
        let outcome = ask(&mut child, &lark, left)?;
        lock(&self.idle).push(child);
        Ok(outcome)
    }
}
