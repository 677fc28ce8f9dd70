//! Protects the user's files: only what this tool wrote is replaced, and files of the user are copied, never linked. A
//! hard link would change a published engine with the user's next write to the file, and `onnx.load` refuses files with
//! more than one name.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, bail, ensure};
use rustix::fs::ioctl_ficlone;

use super::Context;
use crate::artifact::{about, free_space, staged_for, sweep};
use crate::backend::BackendError;
use crate::diagnostic::Diagnostic;
use crate::hashes::Hashes;
use crate::manifest::Manifest;
use crate::manifest::layout::{ENGINES, FILE, IMAGES, MODEL, REPORT_FILE, SPECULATION, WEIGHTS, engine_file};
use crate::onnx::Model;
use crate::progress::Event;
use crate::recipe::SourcePlan;
use crate::text::TEXT_FILES;

/// The error for a place that is taken by something that is not ours.
fn occupied(place: &Path, what: &str, or: &str) -> anyhow::Error {
    let what = Diagnostic::new(format!("{} {what}; it was left as it is", place.display()));
    what.with_help(format!("move it away, or choose another folder with --output{or}")).into()
}

/// Metadata of `place`; `None` if there is nothing.
fn look(place: &Path) -> anyhow::Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(place) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", place.display())),
    }
}

/// Names in a folder.
fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let names: io::Result<Vec<String>> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    names.with_context(|| format!("cannot read {}", folder.display()))
}

/// Checks a place before it is known whether a build is needed: a published engine directory may stay as it is,
/// whatever else is in it.
pub(super) fn check_at_first(place: &Path) -> anyhow::Result<()> {
    if Manifest::load(place).is_ok() { Ok(()) } else { check_engine(place) }
}

/// Refuses a place for an engine directory that holds anything else; checked before work begins, and before publishing.
pub(super) fn check_engine(place: &Path) -> anyhow::Result<()> {
    let Some(metadata) = look(place)? else { return Ok(()) };
    if metadata.is_symlink() {
        return Err(occupied(place, "is a link: an engine directory would take its place", ""));
    }
    if !metadata.is_dir() {
        return Err(occupied(place, "is a file, and an engine directory is to go there", ""));
    }
    // What a `verify` that was killed has left.
    sweep(&place.join(REPORT_FILE)).map_err(about(place))?;
    strange_content(place)?.map_or(Ok(()), |strange| Err(occupied(place, &strange, "")))
}

/// What keeps a folder from being replaced or removed as an engine directory, to follow its name: anything in it that
/// watus-build did not put there. `None` if there is no such thing, or nothing at all.
pub fn strange_content(folder: &Path) -> anyhow::Result<Option<String>> {
    let mut found = Vec::new();
    list(folder, folder, &mut found)?;
    if found.is_empty() {
        return Ok(None);
    }
    let manifest = look(&folder.join(FILE))?.is_some_and(|metadata| metadata.is_file());
    let staged = |name: &str| staged_for(OsStr::new(name)) == Some(OsStr::new(REPORT_FILE));
    let strange = match Manifest::load(folder) {
        Ok(_) if !manifest => return Ok(Some("is a folder whose manifest is no file".to_owned())),
        Ok(manifest) => {
            // `strip` puts a plan beside an engine.
            let plan = |name: &str| {
                let stem = name.strip_suffix(".plan");
                stem.is_some_and(|stem| manifest.files.contains_key(&engine_file(stem)))
            };
            let ours = |name: &str| name == FILE || name == REPORT_FILE || manifest.files.contains_key(name);
            found.into_iter().find(|name| !ours(name) && !plan(name) && !staged(name))
        }
        Err(_) if manifest && is_damaged_engine(folder) => {
            found.into_iter().find(|name| !is_our_name(folder, name) && !staged(name))
        }
        Err(_) => return Ok(Some("is a folder that is no engine directory".to_owned())),
    };
    Ok(strange.map(|name| format!("holds `{name}`, which watus-build did not put there")))
}

/// Collects everything below a folder except folders, as paths relative to `top`; an empty folder counts as a file.
fn list(top: &Path, folder: &Path, found: &mut Vec<String>) -> anyhow::Result<()> {
    let names = names(folder)?;
    for name in &names {
        let path = folder.join(name);
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            list(top, &path, found)?;
        } else {
            found.push(path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned());
        }
    }
    if names.is_empty() && folder != top {
        found.push(folder.strip_prefix(top).unwrap_or(folder).to_string_lossy().into_owned());
    }
    Ok(())
}

/// Whether an unreadable manifest was written by this tool, which it still names.
fn is_damaged_engine(folder: &Path) -> bool {
    let mut manifest = Vec::new();
    if let Ok(file) = File::open(folder.join(FILE)) {
        let _ = file.take(1 << 20).read_to_end(&mut manifest); // what could be read tells
    }
    let manifest = String::from_utf8_lossy(&manifest);
    let named = manifest.split_once("\"tool\"").map(|(_, rest)| rest.trim_start_matches([':', ' ']));
    named.is_some_and(|tool| tool.starts_with("\"watus-build "))
}

/// Whether a build writes files of this name.
fn is_our_name(folder: &Path, name: &str) -> bool {
    let engine = folder.file_name().map(|name| engine_file(&name.to_string_lossy())).unwrap_or_default();
    let numbered = |name: &str| {
        let number = name.strip_prefix("weights-").and_then(|name| name.strip_suffix(".data"));
        number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match name.split_once('/') {
        _ if TEXT_FILES.contains(&name) => true,
        None => [FILE, REPORT_FILE, MODEL, SPECULATION, engine.as_str()].contains(&name) || numbered(name),
        Some((ENGINES, file)) => ["layer-", "head-"].iter().any(|begin| file.starts_with(begin)),
        Some((folder, _)) => [WEIGHTS, IMAGES].contains(&folder),
    }
}

/// Reads a model if this tool wrote it: graphs made here name the tool as producer, and those that only got fixed
/// shapes keep their producer.
fn our_model(path: &Path) -> Option<Model> {
    let model = Model::load(path).ok()?;
    model.summary().ok()?.producer.starts_with("watus-build").then_some(model)
}

/// Refuses a place for an ONNX file that holds somebody else's.
pub(super) fn check_onnx_file(place: &Path, force: bool) -> anyhow::Result<()> {
    let Some(metadata) = look(place)? else { return Ok(()) };
    if metadata.is_file() && (force || our_model(place).is_some()) {
        return Ok(());
    }
    let or = if metadata.is_file() { ", or replace it with --force" } else { "" };
    Err(occupied(place, "is there already, and watus-build did not make it", or))
}

/// Refuses a folder for a model and its data that holds anything else.
pub(super) fn check_onnx_folder(place: &Path) -> anyhow::Result<()> {
    let Some(metadata) = look(place)? else { return Ok(()) };
    if metadata.is_dir() {
        let mut others = names(place)?;
        if let Some(model) = our_model(&place.join(MODEL)) {
            let data = model.external_files();
            others.retain(|name| name != MODEL && !data.contains(name));
        }
        if others.is_empty() {
            return Ok(());
        }
    }
    Err(occupied(place, "is there already, and holds more than a model that watus-build made", ""))
}

/// A file to place: its path, and the path it goes to.
pub(super) type Move = (PathBuf, PathBuf);

/// Places files of a source into a directory that is being filled. Files in a store (the hub cache, ours, Ollama's),
/// which never change, are linked, with `point` symbolically if nothing else works; others are copied, if possible by
/// sharing blocks (FICLONE: btrfs, XFS).
pub(super) fn place(moves: &[Move], source: &SourcePlan, point: bool, context: &Context) -> anyhow::Result<()> {
    let mut copies = Vec::new();
    for (from, to) in moves {
        // Hub caches hold links; what is linked is the blob itself.
        let real = fs::canonicalize(from).with_context(|| format!("cannot find {}", from.display()))?;
        let stored = !matches!(source, SourcePlan::Path { .. }) || Hashes::of_store(&real).is_some();
        if stored && fs::hard_link(&real, to).is_ok() {
            continue;
        }
        if stored && point {
            // Another disk, or another user's file.
            std::os::unix::fs::symlink(&real, to).with_context(|| format!("cannot link {}", real.display()))?;
            let text = format!(
                "{} is on another disk or another user's, so it was symlinked: keep it there, or the engine will not load",
                real.display()
            );
            context.progress.event(Event::Warning(&text));
        } else if !reflink(&real, to)? {
            copies.push((real, to.clone()));
        }
    }
    copy(&copies, context)
}

/// Copies by sharing blocks until one of the files is written to; `false` if the file system cannot.
fn reflink(from: &Path, to: &Path) -> anyhow::Result<bool> {
    let source = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
    let target = File::create_new(to).with_context(|| format!("cannot write {}", to.display()))?;
    if ioctl_ficlone(&target, &source).is_ok() {
        target.set_permissions(source.metadata()?.permissions())?;
        return Ok(true);
    }
    fs::remove_file(to)?;
    Ok(false)
}

/// Bytes copied between two checks for cancellation.
const PIECE: u64 = 256 << 20;

fn copy(copies: &[Move], context: &Context) -> anyhow::Result<()> {
    let mut bytes = 0;
    for (from, _) in copies {
        bytes += fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?.len();
    }
    let Some(folder) = copies.first().and_then(|(_, to)| to.parent()) else { return Ok(()) };
    let free = free_space(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    ensure!(
        bytes <= free,
        Diagnostic::new(format!(
            "{} must be copied to {}, where {} are free",
            crate::memory::format_bytes(bytes),
            folder.display(),
            crate::memory::format_bytes(free)
        ))
        .with_help(
            "free some, or choose a folder on a larger disk with --output; a `hub:` source is linked and takes none"
        )
    );
    if bytes > 1_000_000_000 {
        let size = crate::memory::format_bytes(bytes);
        let text = format!("copying {size} of weights from the recipe's `path:`; a `hub:` source would be linked");
        context.progress.event(Event::Stage(&text));
    }
    for (from, to) in copies {
        let mut source = File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mut target = File::create_new(to).with_context(|| format!("cannot write {}", to.display()))?;
        let what = || format!("cannot copy {} to {}", from.display(), to.display());
        while io::copy(&mut Read::by_ref(&mut source).take(PIECE), &mut target).with_context(what)? > 0 {
            if context.cancel.load(Ordering::Relaxed) {
                bail!(BackendError::Cancelled);
            }
        }
        target.set_permissions(source.metadata().with_context(what)?.permissions()).with_context(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn only_engine_directories_make_room_for_one() {
        let tool = "{ \"format\": 7, \"tool\": \"watus-build 9\"";
        let cases: [(&[(&str, &str)], bool); 15] = [
            (&[], true),
            (&[("manifest.json", tool)], true),
            (&[("manifest.json", tool), ("x.engine", "")], true),
            (&[("manifest.json", tool), ("engines/head-r1.engine", ""), ("weights/m.gguf", "")], true),
            (&[("manifest.json", tool), (".git/HEAD", "")], false),
            (&[("manifest.json", tool), ("measurements.data", "")], false),
            (&[("manifest.json", tool), ("mine/deep.txt", "")], false),
            (&[("manifest.json", "[\"tool\", \"built with watus-build\"]")], false),
            // A user's own, as trtexec leaves it.
            (&[("x.engine", ""), ("model.onnx", "")], false),
            (&[("engines/head-r1.engine", ""), ("config.json", ""), ("weights/m.gguf", "")], false),
            (&[("x.engine", ""), ("images/wedding.jpg", "")], false),
            (&[("manifest.json", "{ \"name\": \"a web page\" }")], false),
            (&[("engines/gender/manifest.json", tool)], false),
            (&[("x.engine", ""), ("thesis.tex", "")], false),
            (&[("config.json", "")], false),
        ];
        for (files, free) in cases {
            let scratch = tempfile::tempdir().unwrap();
            let place = scratch.path().join("x");
            fill(&place, files);
            let checked = check_engine(&place);
            assert_eq!(checked.is_ok(), free, "{files:?}: {checked:?}");
            if let Err(error) = checked {
                let text = error.to_string();
                assert!(text.contains(&*place.to_string_lossy()) && text.contains("hint: move it away"), "{text}");
            }
        }
        let scratch = tempfile::tempdir().unwrap();
        fill(scratch.path(), &[("file", "x")]);
        std::os::unix::fs::symlink("nowhere", scratch.path().join("link")).unwrap();
        assert!(check_engine(&scratch.path().join("absent")).is_ok());
        assert!(check_engine(&scratch.path().join("file")).is_err());
        assert!(check_engine(&scratch.path().join("link")).is_err());
    }

    #[test]
    fn only_our_models_are_replaced() {
        use crate::onnx::GraphBuilder;
        use crate::tensor::DType;
        let scratch = tempfile::tempdir().unwrap();
        let mut graph = GraphBuilder::new("g", 17);
        graph.input("x", DType::Float32, &[Some(2)]);
        let y = graph.node("Relu", &["x"], &[]);
        graph.output(&y, DType::Float32, &[Some(2)]);
        let ours = graph.finish(&scratch.path().join("g.onnx")).unwrap().to_bytes().unwrap();
        let folder = scratch.path().join("m-onnx");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("model.onnx"), &ours).unwrap();
        assert!(check_onnx_folder(&folder).is_ok());
        assert!(check_onnx_folder(&scratch.path().join("absent")).is_ok());
        fs::write(folder.join("mine.txt"), "x").unwrap();
        assert!(check_onnx_folder(&folder).is_err());
        let file = scratch.path().join("m.onnx");
        let cases: [(&[u8], bool, bool); 4] =
            [(&ours, false, true), (b"mine", false, false), (b"mine", true, true), (b"", false, false)];
        for (bytes, force, free) in cases {
            fs::write(&file, bytes).unwrap();
            assert_eq!(check_onnx_file(&file, force).is_ok(), free, "{bytes:?}");
        }
        assert!(check_onnx_file(&folder, true).is_err() && check_onnx_folder(&file).is_err());
    }
}
