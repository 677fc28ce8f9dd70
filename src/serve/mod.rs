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
//! JSON stays on this side: the worker knows tokens and texts. `openai.rs` and `turn.rs` are what requests say, `answer.rs`
//! what responses do, `error.rs` what clients are told when it does not work.

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

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use log::{Answered, Log, LogEntry};

use crate::diagnostic::{Diagnose, Diagnostic};
use crate::llm::Generator;

/// Bytes of a thread's stack, reserved and not used.
const STACK: usize = 32 << 20;
/// Threads that prepare requests, at most.
const BLOCKING: usize = 64;

/// Large grammars at once, of answers that are made or wait: each takes up to some 30 MB.
const LARGE_GRAMMARS: usize = 8;

/// The chat page.
const PAGE: &str = include_str!("page.html");

/// How to serve.
pub struct Options {
    /// Where to listen.
    pub address: SocketAddr,
    /// What clients may call the model; the first is its name.
    pub names: Vec<String>,
    /// The engine directory, for `/health`.
    pub engine: PathBuf,
    /// Tokens of an answer that sets no limit itself.
    pub max_output: usize,
    /// Keys clients must show one of; none if it is open to all.
    pub keys: Vec<String>,
    /// Requests that may wait.
    pub queue: usize,
    /// For all of one answer.
    pub timeout: Duration,
    /// For running answers when the server is told to end.
    pub drain: Duration,
    /// An origin whose pages may use the server.
    pub cors: Option<String>,
    /// Names besides its own by which clients may reach it.
    pub allowed_hosts: Vec<String>,
    /// Addresses of proxies whose `X-Forwarded-For` is believed.
    pub proxies: Vec<std::net::IpAddr>,
    /// Special tokens spelled in contents are special, not words.
    pub special_tokens: bool,
    /// Instructions that many conversations begin with, and that all clients may share in the cache.
    pub shared_system: Option<String>,
    /// Log what is asked and answered.
    pub log_prompts: bool,
    /// Takes log entries.
    pub log: Log,
}

/// Why serving ended before it was told to.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.diagnostic())]
#[allow(missing_docs)]
pub enum ServeError {
    Listen { address: SocketAddr, source: std::io::Error, help: &'static str },
    Io(#[from] std::io::Error),
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

/// What handlers share.
struct App {
    state: state::State,
    scheduler: scheduler::Scheduler,
    metrics: metrics::Metrics,
    names: Vec<String>,
    engine: String,
    created: u64,
    max_output: usize,
    keys: Vec<[u8; 32]>,
    brake: guard::Brake,
    hosts: guard::Hosts,
    proxies: Vec<std::net::IpAddr>,
    intake: body::Intake,
    /// To hold a large grammar.
    grammars: permits::Permits,
    cors: Option<guard::Cors>,
    log_prompts: bool,
    log: Log,
}

impl App {
    fn new(options: Options, scheduler: scheduler::Scheduler) -> Self {
        Self {
            state: state::State::new(),
            scheduler,
            metrics: metrics::Metrics::new(&options.names[0]),
            names: options.names,
            engine: options.engine.display().to_string(),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            max_output: options.max_output,
            keys: options.keys.iter().map(|key| guard::digest(key)).collect(),
            brake: guard::Brake::default(),
            hosts: guard::Hosts::new(options.address.ip(), &options.allowed_hosts),
            proxies: options.proxies.iter().map(std::net::IpAddr::to_canonical).collect(),
            intake: body::Intake::new(),
            grammars: permits::Permits::new(LARGE_GRAMMARS),
            cors: options.cors.and_then(guard::Cors::new),
            log_prompts: options.log_prompts,
            log: options.log,
        }
    }
}

/// Serves until `cancel` is set. `load` makes the model, on the thread that will own it; `listening` hears where clients
/// find the server, before the model is loaded.
pub fn run<E: Send + 'static>(
    options: Options,
    load: impl FnOnce() -> Result<Generator, E> + Send + 'static,
    listening: impl FnOnce(SocketAddr),
    cancel: &AtomicBool,
) -> Result<Result<(), E>, ServeError> {
    let (scheduler, inbox) = scheduler::Scheduler::new(options.queue, options.timeout);
    let (special, shared) = (options.special_tokens, options.shared_system.clone());
    let (address, drain) = (options.address, options.drain);
    let app = Arc::new(App::new(options, scheduler));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Schemas are compiled by recursion, on threads of this runtime.
    let runtime =
        runtime.worker_threads(2).thread_stack_size(STACK).max_blocking_threads(BLOCKING).enable_all().build()?;
    let listener = runtime.block_on(connection::listen(address))?;
    listening(listener.local_addr()?);
    let owner = Arc::clone(&app);
    let worker = std::thread::Builder::new().name("model".to_owned()).spawn(move || {
        let mut generator = load()?;
        if let Some(system) = &shared {
            let beginning = generator.text().beginning(system);
            if beginning.is_empty() {
                tracing::warn!("--shared-system: the chat template says nothing of it first, so nothing is shared");
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

/// Letters and digits nobody can guess in time.
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

/// A path as a label of a metric: there must not be one for everything a client makes up.
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
