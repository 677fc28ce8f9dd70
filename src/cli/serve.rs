//! `serve`: an OpenAI-compatible endpoint for a language model.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};

use super::session::{Choice, open_llm};
use super::{Environment, Exit, say, source, upgrade};
use crate::diagnostic::Diagnostic;
use crate::engine_dir::EngineDir;
use crate::generation::Generator;
use crate::log::{self, LINES, printable, printable_json};
use crate::prefix_store::StateDir;
use crate::serve::{self, LogEntry, Options};
use crate::spec::LlmRecord;

/// Serve a language model over the OpenAI API
///
/// Clients connect to http://HOST:PORT/v1 and may use any of the model's names. http://HOST:PORT is a chat page for
/// browsers. A model that is named by a source (OWNER/NAME on a hub, ollama:NAME, a .gguf file or a folder) is built first if it
/// is not there; its recipe is written beside the engine.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engine directory of a language model, or a source
    #[arg(value_name = "ENGINE|SOURCE")]
    pub(super) engine: PathBuf,
    /// Directory of the engine and the recipe of a source
    #[arg(long, value_name = "DIR", default_value = "engines")]
    pub(super) engines: PathBuf,
    /// IP address to listen on; 0.0.0.0 listens on all networks
    #[arg(long, default_value = "127.0.0.1")]
    pub(super) host: IpAddr,
    /// TCP port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    pub(super) port: u16,
    /// Model name that clients may request; repeatable [default: local-trt-llm and the engine's name]
    #[arg(long = "name", value_name = "NAME")]
    pub(super) names: Vec<String>,
    /// File of API keys, one per line; every request must carry one of them, but for the chat page and /health
    #[arg(long, value_name = "FILE")]
    pub(super) api_key_file: Option<PathBuf>,
    /// Requests that may wait for a free slot; further ones are refused with status 429 and Retry-After
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(super) queue: usize,
    /// Longest time for one request, from arrival to the last token, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) timeout: u64,
    /// Time that running answers get to finish after SIGTERM, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(super) drain: u64,
    /// Allow browser pages of this origin to call the server (CORS), such as `http://robot.local:3000`
    #[arg(long, value_name = "ORIGIN")]
    pub(super) cors_origin: Option<String>,
    /// Additional host name that requests to a server on a loopback address may carry, such as a proxy's; repeatable
    #[arg(long = "allowed-host", value_name = "NAME")]
    pub(super) allowed_hosts: Vec<String>,
    /// IP address of a reverse proxy whose X-Forwarded-For header is trusted, so that scheduling and failed keys are
    /// counted for each client address; repeatable
    #[arg(long = "trusted-proxy", value_name = "ADDRESS")]
    pub(super) trusted_proxies: Vec<IpAddr>,
    /// Encode special tokens written in messages as special tokens instead of as text. Whoever writes a message can
    /// then end its turn and start a system turn
    #[arg(long)]
    pub(super) allow_special_tokens: bool,
    /// File with a system prompt whose cached prefix all clients share; other cached prefixes are shared only between
    /// requests with the same key and `user`
    #[arg(long, value_name = "FILE")]
    pub(super) shared_system: Option<PathBuf>,
    /// Folder in which keys and values of prompts' beginnings that return, such as instructions and functions, are kept over
    /// restarts. It is as confidential as the prompts. Each server needs a folder of its own
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// Most MiB in the folder of --state; beginnings that were used longest ago are removed
    #[arg(long, value_name = "MIB", default_value_t = 2048, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub(super) state_size: u64,
    /// Compute every token of an answer in a step of its own: draft none from the conversation, take none without a step
    /// that a grammar forces. Answers are the same, and slower where they repeat something
    #[arg(long)]
    pub(super) no_speculation: bool,
    /// Build the engine again first if it was built for another TensorRT, another GPU or by another version of this tool.
    /// The old engine stays until the new one has passed its verification
    #[arg(long)]
    pub(super) rebuild: bool,
    /// Recipe for --rebuild [default: the one that the engine was built from]
    #[arg(long, value_name = "RECIPE", requires = "rebuild")]
    pub(super) recipe: Option<PathBuf>,
    /// Hash every file of the engine directory before loading, not only those that changed
    #[arg(long)]
    pub(super) verify: bool,
    /// Log prompts and answers
    #[arg(long)]
    pub(super) log_prompts: bool,
    /// Where to run the model; `cpu` only if it is asked for
    #[arg(long, value_enum, default_value_t = Choice::Tensorrt)]
    pub(super) backend: Choice,
}

/// The model name that clients of the robot's earlier server request.
const NAME: &str = "local-trt-llm";

pub(super) fn execute(mut args: Args, environment: &Environment) -> anyhow::Result<Exit> {
    args.engine = source::engine(&args.engine, &args.engines, args.backend.into(), environment)?;
    let (engine, record) = fitting_model(&args, environment)?;
    let _held = engine.hold();
    let names = names(&args.names, &engine.manifest.name);
    for name in names.iter().filter(|name| name.starts_with('o') || name.starts_with("gpt-5")) {
        say(format!(
            "warning: pydantic-ai takes `{name}` for one of OpenAI's reasoning models, and drops temperature and penalties"
        ));
    }
    let keys = args.api_key_file.as_deref().map(read_keys).transpose()?.unwrap_or_default();
    if !args.host.is_loopback() && keys.is_empty() {
        let host = args.host;
        say(format!("warning: anybody who can connect to {host} may use this server; --api-key-file requires a key"));
    }
    let shared = args.shared_system.as_deref().map(read_text).transpose()?;
    let state = args.state.as_deref().map(StateDir::open).transpose().context("cannot open --state")?;
    // From here on nobody waits for who reads the log.
    log::queue().context("cannot start the log's thread")?;
    let plain = std::io::stderr().is_terminal();
    let options = Options {
        address: SocketAddr::new(args.host, args.port),
        names,
        engine: args.engine.clone(),
        max_output: record.max_output_len,
        keys,
        queue: args.queue,
        timeout: Duration::from_secs(args.timeout),
        drain: Duration::from_secs(args.drain),
        cors: args.cors_origin,
        allowed_hosts: args.allowed_hosts,
        proxies: args.trusted_proxies,
        special_tokens: args.allow_special_tokens,
        shared_system: shared,
        secret: state.as_ref().map(StateDir::secret),
        speculation: !args.no_speculation,
        log_prompts: args.log_prompts,
        log: Arc::new(move |entry: &LogEntry| write_entry(entry, plain)),
    };
    let progress = Arc::clone(&environment.progress);
    let load = move || {
        engine.check(args.verify, &*progress)?;
        let mut generator = open_llm(&engine, args.backend, &*progress)?;
        let info = generator.executor().info();
        if let Some(state) = state {
            keep_prefixes(&mut generator, state, &engine, args.state_size)?;
        }
        say(format!("{} is ready on {}, {}", printable(&engine.manifest.name), info.device, info.name));
        anyhow::Ok(generator)
    };
    let listening = |address: SocketAddr| {
        say(format!("loading; the API will be at http://{address}/v1, a chat page at http://{address}"));
    };
    serve::run(options, load, listening, &environment.cancel)??;
    Ok(Exit::Success)
}

/// The model's names in the API: those that are `given`, or the usual one and the engine's.
fn names(given: &[String], engine: &str) -> Vec<String> {
    match given.is_empty() {
        true if engine == NAME => vec![NAME.to_owned()],
        true => vec![NAME.to_owned(), engine.to_owned()],
        false => given.to_vec(),
    }
}

/// Keeps prefixes in the folder of --state, of at most so many MiB.
fn keep_prefixes(generator: &mut Generator, state: StateDir, engine: &EngineDir, most: u64) -> anyhow::Result<()> {
    let Some(layout) = generator.executor().kv_layout() else { return Ok(()) };
    let key = engine.state_key(&generator.executor().info());
    let store = state.store(key, layout, most << 20).context("cannot read --state")?;
    Ok(generator.keep_prefixes(store)?)
}

/// Opens the engine directory to serve. One that was built for another machine or by another version is refused before
/// gigabytes are hashed, or with `--rebuild` built again.
fn fitting_model(args: &Args, environment: &Environment) -> anyhow::Result<(EngineDir, LlmRecord)> {
    if args.rebuild {
        upgrade::rebuild(&args.engine, args.recipe.as_deref(), args.backend.into(), environment)?;
    }
    let (engine, record) = language_model(&args.engine)?;
    match engine.misfit(args.backend.into()) {
        Some(why) => Err(upgrade::refused(&engine, &why).into()),
        None => Ok((engine, record)),
    }
}

/// Opens an engine directory, which must hold a language model.
pub(super) fn language_model(folder: &Path) -> anyhow::Result<(EngineDir, LlmRecord)> {
    let engine = EngineDir::load(folder)?;
    let Some(record) = engine.manifest.contents.llm().cloned() else {
        bail!(
            Diagnostic::new(format!("{} is no language model", folder.display()))
                .with_help("`watus-build run` answers for one picture")
        );
    };
    Ok((engine, record))
}

/// Reads a text file of at most 1 MiB.
fn read_text(path: &Path) -> anyhow::Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    let about = std::fs::metadata(path).with_context(cannot)?;
    anyhow::ensure!(about.is_file() && about.len() <= 1 << 20, "{} is not a file of at most 1 MiB", path.display());
    std::fs::read_to_string(path).with_context(cannot)
}

fn read_keys(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = read_text(path)?;
    let keys: Vec<String> = text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    if keys.is_empty() {
        bail!(
            Diagnostic::new(format!("{} holds no key", path.display()))
                .with_help("one a line, for example from `openssl rand -hex 32`")
        );
    }
    use std::os::unix::fs::PermissionsExt;
    let about = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if about.permissions().mode() & 0o004 != 0 {
        let path = path.display();
        say(format!("warning: every user of this machine may read {path}; `chmod 640` keeps the keys secret"));
    }
    Ok(keys)
}

/// Writes an entry of the request log: a line of text if `plain`, else JSON.
fn write_entry(entry: &LogEntry, plain: bool) {
    let line = match plain {
        true => text_line(entry),
        false => printable_json(&serde_json::to_string(entry).unwrap_or_default()).into_owned(),
    };
    tracing::info!(target: LINES, "{line}");
}

fn text_line(entry: &LogEntry) -> String {
    let mut line = format!("{} {} {:.2} s", entry.status, printable(&entry.path), entry.seconds);
    if let Some(answer) = &entry.answer {
        line.push_str(&format!(
            ", prompt {} ({} cached), first token after {:.0} ms, {} tokens at {:.1} tok/s, {}",
            answer.prompt_tokens,
            answer.cached_tokens,
            1e3 * answer.first_token_seconds,
            answer.completion_tokens,
            answer.tokens_per_second,
            if answer.finish_reason.is_empty() { "cut off" } else { answer.finish_reason },
        ));
        if answer.drafted_tokens + answer.forced_tokens > 0 {
            let (accepted, drafted, forced) = (answer.accepted_tokens, answer.drafted_tokens, answer.forced_tokens);
            line.push_str(&format!(", {accepted} of {drafted} drafted tokens accepted, {forced} forced"));
        }
    }
    if let Some(error) = &entry.error {
        line.push_str(&format!(": {}", printable(error)));
    }
    for (what, text) in [("asked", &entry.prompt), ("answered", &entry.text)] {
        if let Some(text) = text {
            line.push_str(&format!("\n  {what}: {text:?}"));
        }
    }
    format!("{line}  [{}]", entry.request_id)
}
