//! Where results go, and what of the user's is there already: only what this tool made is replaced, and what a user owns
//! is copied, never linked. A hard link would change a published engine with the user's next write to his own file, and
//! `onnx.load` refuses files of more than one name.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, bail, ensure};
use rustix::fs::ioctl_ficlone;

use super::Context;
use crate::artifact::free_space;
use crate::backend::BackendError;
use crate::fetch::Hashes;
use crate::llm::model::{ENGINES, WEIGHTS};
use crate::llm::text::TEXT_FILES;
use crate::manifest::{FILE, Manifest, REPORT_FILE};
use crate::onnx::Model;
use crate::progress::Event;
use crate::recipe::SourcePlan;

/// What stands where a result should go, if not one of ours.
fn occupied(place: &Path, what: &str, or: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{} {what}; it was left as it is\n  hint: move it away, or choose another folder with --output{or}",
        place.display()
    )
}

/// What is at `place`; `None` where nothing is.
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

/// Refuses a place for an engine directory that holds anything but one: before work begins, and before it is published.
pub(super) fn check_engine(place: &Path) -> anyhow::Result<()> {
    let Some(metadata) = look(place)? else { return Ok(()) };
    if metadata.is_symlink() {
        return Err(occupied(place, "is a link: an engine directory would take its place", ""));
    }
    if !metadata.is_dir() {
        return Err(occupied(place, "is a file, and an engine directory is to go there", ""));
    }
    let names = names(place)?;
    if names.is_empty() || Manifest::load(place).is_ok() || is_damaged_engine(place, &names) {
        return Ok(());
    }
    Err(occupied(place, "is a folder that is no engine directory", ""))
}

/// Whether a folder without a readable manifest was one of ours: the manifest names the tool, or all there is has our
/// names and an engine is among it. A folder that merely holds one called `engines` is a user's: that is our default
/// output.
fn is_damaged_engine(folder: &Path, names: &[String]) -> bool {
    let mut manifest = Vec::new();
    if let Ok(file) = File::open(folder.join(FILE)) {
        let _ = file.take(1 << 20).read_to_end(&mut manifest); // what could be read tells
    }
    let manifest = String::from_utf8_lossy(&manifest);
    if manifest.contains("\"tool\"") && manifest.contains("watus-build") {
        return true;
    }
    let engine = folder.file_name().map(|name| format!("{}.engine", name.to_string_lossy())).unwrap_or_default();
    let ours = |name: &String| {
        [FILE, REPORT_FILE, super::MODEL, ENGINES, WEIGHTS, "images", engine.as_str()].contains(&name.as_str())
            || TEXT_FILES.contains(&name.as_str())
            || name.ends_with(".data")
    };
    let mut layers = fs::read_dir(folder.join(ENGINES)).into_iter().flatten().flatten();
    let built = folder.join(&engine).is_file()
        || layers.any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("head-r") && name.ends_with(".engine") && entry.path().is_file()
        });
    built && names.iter().all(ours)
}

/// A model that we wrote: graphs made here name the tool, those that were only given shapes keep their maker's name.
fn our_model(path: &Path) -> Option<Model> {
    let model = Model::load(path).ok()?;
    model.summary().ok()?.producer.starts_with("watus-build").then_some(model)
}

/// Refuses a place for an ONNX file that holds one of somebody else's.
pub(super) fn check_onnx_file(place: &Path, force: bool) -> anyhow::Result<()> {
    let Some(metadata) = look(place)? else { return Ok(()) };
    if metadata.is_file() && (force || our_model(place).is_some()) {
        return Ok(());
    }
    let or = if metadata.is_file() { ", or replace it with --force" } else { "" };
    Err(occupied(place, "is there already, and watus-build did not make it", or))
}

/// Refuses a place for a model and its data that holds anything else.
pub(super) fn check_onnx_folder(place: &Path) -> anyhow::Result<()> {
    let Some(metadata) = look(place)? else { return Ok(()) };
    if metadata.is_dir() {
        let mut others = names(place)?;
        if let Some(model) = our_model(&place.join(super::MODEL)) {
            let data = model.external_files();
            others.retain(|name| name != super::MODEL && !data.contains(name));
        }
        if others.is_empty() {
            return Ok(());
        }
    }
    Err(occupied(place, "is there already, and holds more than a model that watus-build made", ""))
}

/// A file to put somewhere: where it is, where it goes.
pub(super) type Move = (PathBuf, PathBuf);

/// Puts files of a source into a folder that is being filled. What lies in a store (the hub cache, ours, Ollama's),
/// where files never change, is linked, with `point` symbolically if nothing else works; the rest is copied, at best by
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
            let text = format!("{} is only pointed to: the engine directory needs it where it is", real.display());
            context.progress.event(Event::Warning(&text));
        } else if !reflink(&real, to)? {
            copies.push((real, to.clone()));
        }
    }
    copy(&copies, context)
}

/// A copy that shares its blocks until one of the two is written to; `false` where the disk cannot.
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

/// Bytes between two looks at whether to stop.
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
        "{} are to be copied to {}, {} are free\n  hint: free some, or choose a folder on a larger disk with --output; a \
         `hub:` source is linked and takes none",
        crate::memory::text(bytes),
        folder.display(),
        crate::memory::text(free)
    );
    if bytes > 1_000_000_000 {
        let size = crate::memory::text(bytes);
        let text = format!("copying {size} of weights: they are the user's own; a `hub:` source is linked");
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
        let cases: [(&[(&str, &str)], bool); 9] = [
            (&[], true),
            (&[("manifest.json", tool)], true),
            (&[("manifest.json", tool), ("x.engine", "")], true),
            (&[("x.engine", ""), ("model.onnx", "")], true),
            (&[("engines/head-r1.engine", ""), ("config.json", ""), ("weights/m.gguf", "")], true),
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
