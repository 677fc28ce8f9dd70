//! `list`: shows what is built and what is cached, with sizes.

use std::path::{Path, PathBuf};

use anyhow::bail;
use jiff::{Timestamp, tz::TimeZone};

use super::{Exit, print, print_json};
use crate::diagnostic::Diagnostic;
use crate::inventory::{CacheKind, CachedItem, EngineFacts, Inventory, ListedEngine, MachineFit, Places, Proof};
use crate::log::printable;

/// Show what is built and what is cached, with sizes
///
/// For engine directories: what they are, when and by what they were built, whether they are verified and whether they fit
/// this machine. For the caches: downloads by repository and revision, remembered hashes, compiled kernels, timings of
/// TensorRT, and what builds and downloads left that ended early. `remove` takes the names.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Further folders of engine directories, or engine directories, besides `engines` in the current folder
    #[arg(value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Print JSON: sizes in bytes, times in seconds since 1970
    #[arg(long)]
    json: bool,
}

pub(super) fn execute(args: &Args) -> anyhow::Result<Exit> {
    let inventory = Inventory::look(&places(&args.folders)?);
    if args.json {
        print_json(&inventory)?;
        return Ok(Exit::Success);
    }
    if inventory.engines.is_empty() && inventory.cache.is_empty() {
        let nothing = Diagnostic::new("nothing is built in `engines`, and nothing is cached");
        print(nothing.with_help("`watus-build build RECIPE` builds; `watus-build list DIR` looks in another folder"))?;
        return Ok(Exit::Success);
    }
    print_engines(&inventory.engines)?;
    print_cache(&inventory.cache)?;
    print(format!("together {}", size(inventory.bytes)))?;
    Ok(Exit::Success)
}

/// The default places and further folders, which must be there.
pub(super) fn places(folders: &[PathBuf]) -> anyhow::Result<Places> {
    if let Some(folder) = folders.iter().find(|folder| !folder.is_dir()) {
        let what = Diagnostic::new(format!("{}: not a folder", folder.display()));
        bail!(what.with_help("name the folder that holds engine directories, as `build --output` does"));
    }
    Ok(Places::from_env(folders))
}

fn print_engines(engines: &[ListedEngine]) -> anyhow::Result<()> {
    let width = engines.iter().map(|engine| engine.name.chars().count()).max().unwrap_or(0);
    let mut folder: Option<&Path> = None;
    for engine in engines {
        let parent = engine.path.parent().unwrap_or(Path::new(""));
        if folder != Some(parent) {
            let shown = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            print(printable(&format!("engines in {}", shown.display())))?;
            folder = Some(parent);
        }
        let name = printable(&engine.name);
        match (&engine.facts, &engine.problem) {
            (Some(facts), _) => {
                print(format!("  {name:width$}  {}", built_text(facts, engine.bytes)))?;
                print(format!("  {:width$}  {}; {}", "", proof_text(&facts.proof), fit_text(&facts.fit)))?;
                if let MachineFit::Misfit { rebuild, .. } = &facts.fit {
                    print(printable(&format!("  {:width$}  -> {rebuild}", "")))?;
                }
            }
            (None, problem) => {
                let problem = problem.clone().unwrap_or_default();
                print(format!(
                    "  {name:width$}  {}, cannot be read: {}",
                    size(engine.bytes),
                    printable(&problem.message)
                ))?;
                if let Some(help) = problem.help {
                    print(printable(&format!("  {:width$}  -> {help}", "")))?;
                }
            }
        }
    }
    Ok(())
}

fn built_text(facts: &EngineFacts, bytes: u64) -> String {
    let on = facts.gpu.as_ref().map_or("no GPU".to_owned(), |gpu| format!("{} ({})", gpu.name, gpu.compute_capability));
    let text = format!(
        "{} {}, {}, built {} by {} with {} on {on}",
        facts.kind,
        facts.precision,
        size(bytes),
        minute(facts.built),
        facts.tool,
        facts.tensorrt
    );
    printable(&text).into_owned()
}

fn proof_text(proof: &Proof) -> String {
    let text = match proof {
        Proof::Verified { on, by: Some(by) } => format!("verified on {on} against the {by}"),
        Proof::Verified { on, by: None } => format!("verified on {on}"),
        Proof::NotExecuted => "checked, but never executed".to_owned(),
        Proof::Failed { checks } => format!("FAILED verification: {}", checks.join(", ")),
        Proof::NeverVerified => "never verified".to_owned(),
    };
    printable(&text).into_owned()
}

fn fit_text(fit: &MachineFit) -> String {
    let text = match fit {
        MachineFit::Fits => "fits this machine".to_owned(),
        MachineFit::Misfit { why, .. } => format!("does not fit: it {why}"),
        MachineFit::Unknown { why } => format!("whether it fits cannot be told: {why}"),
    };
    printable(&text).into_owned()
}

fn print_cache(items: &[CachedItem]) -> anyhow::Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    print("cached")?;
    let width = items.iter().map(|item| item.name.chars().count()).max().unwrap_or(0);
    for item in items {
        let name = printable(&item.name);
        print(format!("  {name:width$}  {:>8}  {}", size(item.bytes), about(item)))?;
        for revision in &item.revisions {
            let refs =
                if revision.refs.is_empty() { String::new() } else { format!(" ({})", revision.refs.join(", ")) };
            let at = format!("@{}{refs}", revision.shown());
            let files = counted(revision.files.len(), "file");
            print(printable(&format!(
                "    {at:inner$}  {:>8}  {files}",
                size(revision.bytes),
                inner = width.saturating_sub(2)
            )))?;
        }
    }
    Ok(())
}

/// What an item is, and whether others share its files.
fn about(item: &CachedItem) -> String {
    let what = match item.kind {
        CacheKind::Hub => format!("from the hub, {}", counted(item.revisions.len(), "revision")),
        CacheKind::Url | CacheKind::Pypi => "downloaded".to_owned(),
        CacheKind::Hashes => "remembered hashes of large files".to_owned(),
        CacheKind::Kernels => format!("compiled kernels of language models, {}", counted(item.paths.len(), "file")),
        CacheKind::Rtx => format!("kernels that TensorRT-RTX compiled, {}", counted(item.paths.len(), "file")),
        CacheKind::Timing => format!("TensorRT's timings, {}", counted(item.paths.len(), "file")),
        CacheKind::Leftovers => format!("left by work that ended early, in {}", counted(item.paths.len(), "place")),
    };
    match item.bytes - item.freed_bytes.min(item.bytes) {
        0 => what,
        shared => format!("{what}; {} of it shared with engines", size(shared)),
    }
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A time of this machine's zone, to the minute.
fn minute(seconds: u64) -> String {
    let at = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let at = at.unwrap_or(Timestamp::UNIX_EPOCH).to_zoned_datetime(TimeZone::system());
    at.strftime("%Y-%m-%d %H:%M").to_string()
}

/// Bytes in the largest unit that leaves a number of at least 1.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..999_950 => format!("{:.1} kB", bytes as f64 / 1e3),
        999_950..999_950_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_fitting_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (271_000_000, "271.0 MB"),
            (999_949_999, "999.9 MB"),
            (999_950_000, "1.0 GB"),
            (14_483_464_192, "14.5 GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
