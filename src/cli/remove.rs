//! `remove`: removes engine directories and what is cached, if `list` shows it.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;

use super::list::{places, size};
use super::{Environment, Exit, print, say, service};
use crate::diagnostic::Diagnostic;
use crate::inventory::{CacheKind, Footprint, Inventory, Removal};

/// Remove engine directories and what is cached
///
/// Only what `list` shows is removed, and no link is followed. An engine that a server, a build or an installed service uses
/// stays. Everything is checked before anything is removed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Engines (by name or path), downloads (hub:OWNER/NAME, hub:OWNER/NAME@REVISION) and other names that `list` shows
    #[arg(value_name = "NAME", required_unless_present = "cache")]
    names: Vec<String>,
    /// Everything cached of a kind; repeatable, or separated by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    cache: Vec<Kind>,
    /// Look for engines in this folder, too; repeatable
    #[arg(long = "in", value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Kinds of what is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Repositories in the hub's cache, which huggingface_hub uses as well
    Hub,
    /// Files of `url:` sources
    Url,
    /// Files of `pypi:` sources
    Pypi,
    /// Remembered hashes: files are read again where they are needed
    Hashes,
    /// Compiled kernels of language models: they are compiled again at the next start
    Kernels,
    /// Kernels that TensorRT-RTX compiled: they are compiled again at the next start
    Rtx,
    /// TensorRT's timings: the next builds take longer
    Timing,
    /// What builds and downloads left that ended early
    Leftovers,
}

impl From<Kind> for CacheKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Hub => CacheKind::Hub,
            Kind::Url => CacheKind::Url,
            Kind::Pypi => CacheKind::Pypi,
            Kind::Hashes => CacheKind::Hashes,
            Kind::Kernels => CacheKind::Kernels,
            Kind::Rtx => CacheKind::Rtx,
            Kind::Timing => CacheKind::Timing,
            Kind::Leftovers => CacheKind::Leftovers,
        }
    }
}

pub(super) fn execute(args: &Args, environment: &Environment) -> anyhow::Result<Exit> {
    let inventory = Inventory::look(&places(&args.folders)?);
    let chosen = chosen(args, &inventory)?;
    for removal in &chosen {
        if let Some(refusal) = inventory.refusal(removal, &chosen)?.or_else(|| serving(removal)) {
            bail!(refusal);
        }
    }
    let mut all = Footprint::default();
    chosen.iter().for_each(|removal| all.join(removal.footprint()));
    let would = if args.dry_run { "would remove" } else { "to be removed:" };
    if args.dry_run || !args.yes {
        for removal in &chosen {
            print(format!("{would} {}", text(removal)))?;
        }
    }
    if args.dry_run {
        print(format!("would free {}", size(all.freed())))?;
        return Ok(Exit::Success);
    }
    if chosen.is_empty() {
        print("nothing of that kind is cached")?;
        return Ok(Exit::Success);
    }
    if !args.yes && !agreed(&format!("Remove this and free {}?", size(all.freed())), &environment.cancel)? {
        say("nothing was removed");
        return Ok(if environment.cancel.load(Ordering::Relaxed) { Exit::Cancelled } else { Exit::Failure });
    }
    for removal in &chosen {
        removal.remove()?;
        print(format!("removed {}", removal.name()))?;
    }
    print(format!("{} freed", size(all.freed())))?;
    Ok(Exit::Success)
}

/// What the arguments name, each once; engines first, since they may need what else is removed.
fn chosen<'a>(args: &Args, inventory: &'a Inventory) -> anyhow::Result<Vec<Removal<'a>>> {
    let mut named = Vec::new();
    for name in &args.names {
        named.push(inventory.find(name)?);
    }
    args.cache.iter().for_each(|kind| named.extend(inventory.of_kind((*kind).into())));
    let mut chosen: Vec<Removal<'a>> = Vec::new();
    for removal in named {
        if !chosen.iter().any(|other| removal.is_within(other)) {
            chosen.retain(|other| !other.is_within(&removal));
            chosen.push(removal);
        }
    }
    chosen.sort_by_key(|removal| !matches!(removal, Removal::Engine(_)));
    Ok(chosen)
}

/// Why an engine must stay that an installed service serves: the next boot would look for it.
fn serving(removal: &Removal<'_>) -> Option<Diagnostic> {
    let Removal::Engine(engine) = removal else { return None };
    let path = fs::canonicalize(&engine.path).ok()?;
    let (unit, _) =
        service::served().into_iter().find(|(_, served)| fs::canonicalize(served).is_ok_and(|it| it == path))?;
    let what = Diagnostic::new(format!("{} is in use: {unit} serves it", engine.path.display()));
    Some(what.with_help(format!("remove that service first: `sudo watus-build service uninstall '{unit}'`")))
}

fn text(removal: &Removal<'_>) -> String {
    let (bytes, freed) = (removal.footprint().bytes(), removal.footprint().freed());
    let shared =
        if freed < bytes { format!(", of which {} stay in use elsewhere", size(bytes - freed)) } else { String::new() };
    format!("{}, {}{shared}", removal.name(), size(bytes))
}

/// Asks on the terminal. Where there is none, the answer has to be `--yes`.
fn agreed(question: &str, cancel: &AtomicBool) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let what = Diagnostic::new("nothing was removed: there is no terminal to ask on");
        bail!(what.with_help("--yes removes without asking, --dry-run only tells"));
    }
    write!(io::stderr(), "{question} [y/N] ")?;
    let (sender, answers) = channel();
    // Aside: Ctrl-C does not end reading.
    std::thread::spawn(move || {
        let mut answer = String::new();
        let read = io::stdin().read_line(&mut answer).map(|_| answer);
        let _ = sender.send(read);
    });
    loop {
        match answers.recv_timeout(Duration::from_millis(50)) {
            Ok(answer) => return Ok(matches!(answer?.trim().to_lowercase().as_str(), "y" | "yes")),
            Err(RecvTimeoutError::Timeout) if !cancel.load(Ordering::Relaxed) => {}
            Err(_) => return Ok(false),
        }
    }
}
