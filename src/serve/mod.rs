//! An OpenAI-compatible server for one language model.
//!
//! ```text
//! connection ─▶ guard ─▶ routes ─▶ body, prepare ──▶ scheduler ──▶ worker thread: Generator
//! head          hosts,   paths      bytes, template,    queue           slots, prefixes, grammars
//! crowd         keys,               grammar, limits                        │ pieces
//!               origins                                                    ▼
//!                        JSON or events ◀──────────────── answer: words, thoughts, calls
//! ```
//!
//! JSON stays on the handlers' side: the worker thread knows tokens and texts. `openai.rs` and `turn.rs` parse
//! requests, `answer.rs` encodes responses, `error.rs` encodes errors.

mod answer;
mod body;
mod completion;
mod connection;
mod crowd;
mod error;
mod foreign;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod guard;
mod head;
mod log;
mod metrics;
mod openai;
mod permits;
mod prepare;
mod routes;
mod scheduler;
mod state;
mod systemd;
mod turn;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use log::{Answered, Log, LogEntry};

use crate::diagnostic::{Diagnose, Diagnostic};
use crate::generation::Generator;
use crate::prefix_store::{Secret, random_secret};

/// Stack of a thread in bytes; reserved, not committed.
const STACK: usize = 32 << 20;
/// Most threads that prepare requests.
const BLOCKING: usize = 64;

/// Most large grammars in memory, of running and waiting answers: each takes up to about 30 MB.
const LARGE_GRAMMARS: usize = 8;

/// The chat page.
const PAGE: &str = include_str!("page.html");

/// Options of the server.
pub struct Options {
    /// Address to listen on.
    pub address: SocketAddr,
    /// Names by which clients may request the model; the first is its name in responses.
    pub names: Vec<String>,
    /// Engine directory, shown by `/health`.
    pub engine: PathBuf,
    /// Longest answer in tokens for requests without a limit.
    pub max_output: usize,
    /// API keys, one of which every request must carry; empty if the server is open to all.
    pub keys: Vec<String>,
    /// Most waiting requests.
    pub queue: usize,
    /// Longest time for one request.
    pub timeout: Duration,
    /// Time for running answers to finish at shutdown.
    pub drain: Duration,
    /// Origin whose pages may call the server.
    pub cors: Option<String>,
    /// Additional host names that requests may carry.
    pub allowed_hosts: Vec<String>,
    /// Addresses of proxies whose `X-Forwarded-For` is trusted.
    pub proxies: Vec<std::net::IpAddr>,
    /// Whether special tokens written in messages are encoded as special tokens instead of text.
    pub special_tokens: bool,
    /// System prompt whose cached prefix all clients share.
    pub shared_system: Option<String>,
    /// Secret that the scopes of cached prefixes are numbered with, for prefixes that are kept over restarts; `None` for
    /// one that nobody else ever has.
    pub secret: Option<Secret>,
    /// Whether tokens are drafted, and those that a grammar forces taken without a step.
    pub speculation: bool,
    /// Whether to log prompts and answers.
    pub log_prompts: bool,
    /// Receives log entries.
    pub log: Log,
}

/// Why the server stopped by itself.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.diagnostic())]
#[allow(missing_docs)]
pub enum ServeError {
    Listen { address: SocketAddr, source: io::Error, help: &'static str },
    Io(#[from] io::Error),
    Engine(String),
}

impl Diagnose for ServeError {
    fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::Listen { address, source, help } => {
                Diagnostic::new(format!("cannot listen on {address}: {source}")).with_help(*help)
            }
            Self::Io(error) => error.diagnostic(),
            Self::Engine(message) => Diagnostic::new(message)
                .with_help("the server ends so that it can be started afresh; `watus-build service install` does that"),
        }
    }
}

/// State shared by the handlers.
struct App {
    state: state::State,
    scheduler: scheduler::Scheduler,
    metrics: metrics::Metrics,
    names: Vec<String>,
    engine: String,
    created: u64,
    max_output: usize,
    keys: Vec<[u8; 32]>,
    secret: Secret,
    brake: guard::Brake,
    hosts: guard::Hosts,
    proxies: Vec<std::net::IpAddr>,
    intake: body::Intake,
    /// Permits for large grammars.
    grammars: permits::Permits,
    cors: Option<guard::Cors>,
    log_prompts: bool,
    log: Log,
}

impl App {
    fn new(options: Options, scheduler: scheduler::Scheduler) -> io::Result<Self> {
        Ok(Self {
            state: state::State::new(),
            scheduler,
            metrics: metrics::Metrics::new(&options.names[0]),
            names: options.names,
            engine: options.engine.display().to_string(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            max_output: options.max_output,
            keys: options.keys.iter().map(|key| guard::digest(key)).collect(),
            secret: options.secret.map_or_else(random_secret, Ok)?,
            brake: guard::Brake::default(),
            hosts: guard::Hosts::new(options.address.ip(), &options.allowed_hosts),
            proxies: options.proxies.iter().map(std::net::IpAddr::to_canonical).collect(),
            intake: body::Intake::new(),
            grammars: permits::Permits::new(LARGE_GRAMMARS),
            cors: options.cors.and_then(guard::Cors::new),
            log_prompts: options.log_prompts,
            log: options.log,
        })
    }
}

/// Serves until `cancel` is set. `load` loads the model on the thread that will own it; `listening` is called with the
/// address before that.
pub fn run<E: Send + 'static>(
    options: Options,
    load: impl FnOnce() -> Result<Generator, E> + Send + 'static,
    listening: impl FnOnce(SocketAddr),
    cancel: &AtomicBool,
) -> Result<Result<(), E>, ServeError> {
    let (scheduler, inbox) = scheduler::Scheduler::new(options.queue, options.timeout);
    let (special, shared, speculation) = (options.special_tokens, options.shared_system.clone(), options.speculation);
    let (address, drain) = (options.address, options.drain);
    let app = Arc::new(App::new(options, scheduler)?);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Schemas are compiled by recursion, on threads of this runtime.
    let runtime =
        runtime.worker_threads(2).thread_stack_size(STACK).max_blocking_threads(BLOCKING).enable_all().build()?;
    let listener = runtime.block_on(connection::listen(address))?;
    listening(listener.local_addr()?);
    let owner = Arc::clone(&app);
    let worker = std::thread::Builder::new().name("model".to_owned()).spawn(move || {
        let mut generator = load()?;
        if !speculation {
            generator.without_speculation();
        }
        if let Some(system) = &shared {
            let beginning = generator.text().beginning(system);
            if beginning.is_empty() {
                tracing::warn!(
                    "--shared-system: the chat template does not put the system prompt first, so nothing is shared"
                );
            }
            generator.share(beginning);
        }
        owner.scheduler.set_slots(generator.executor().slots());
        owner.metrics.set_slots(generator.executor().slots());
        owner.state.loaded(scheduler::about(&mut generator, special));
        Ok(inbox.work(generator, &owner.state, &owner.metrics))
    })?;
    runtime.block_on(async {
        let over = async {
            while !cancel.load(Ordering::Relaxed) && !worker.is_finished() {
                systemd::report(&app.state);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            systemd::stopping();
            app.state.enter(state::Phase::Draining);
        };
        let end = connection::Shutdown { drain, cut: || app.scheduler.cut_off() };
        connection::serve(listener, routes::router(&app), over, end).await;
    });
    // The worker ends by itself when it has failed, and with the process when it has not.
    if !worker.is_finished() {
        runtime.shutdown_timeout(Duration::from_secs(1));
        return Ok(Ok(()));
    }
    match worker.join() {
        Ok(Ok(Ok(()))) => Ok(Ok(())),
        Ok(Ok(Err(message))) => Err(ServeError::Engine(message)),
        Ok(Err(error)) => Ok(Err(error)),
        Err(_) => Err(ServeError::Engine("the model's thread panicked".to_owned())),
    }
}

/// A random text of letters and digits that cannot be guessed.
fn random_name(length: usize) -> String {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::atomic::AtomicU64;
    static COUNT: AtomicU64 = AtomicU64::new(0);
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    static SEED: std::sync::OnceLock<RandomState> = std::sync::OnceLock::new();
    let seed = SEED.get_or_init(RandomState::new);
    let mut letters = String::new();
    while letters.len() < length {
        // SipHash of a counter, under a random key.
        let mut bits = seed.hash_one(COUNT.fetch_add(1, Ordering::Relaxed));
        for _ in 0..10 {
            letters.push(char::from(LETTERS[(bits % 62) as usize]));
            bits /= 62;
        }
    }
    letters.truncate(length);
    letters
}

/// The route as a label of metrics; unknown paths share one label, since clients can invent any number.
fn known(route: &str) -> &'static str {
    const ROUTES: [&str; 9] = [
        "/",
        "/health",
        "/health/ready",
        "/metrics",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
    ];
    let same = |known: &&&str| **known == route || known.strip_prefix("/v1") == Some(route);
    ROUTES.iter().find(same).copied().unwrap_or("other")
}
