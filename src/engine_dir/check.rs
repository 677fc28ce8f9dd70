//! Checks that the files of an engine directory are those that its manifest lists, at every start, so that a flipped
//! bit is an error and not a wrong answer. `verify` hashes everything; a start hashes small files and relies on
//! remembered hashes for large ones.

use std::fs;
use std::path::PathBuf;

use super::EngineDir;
use crate::artifact::{cache_dir, sha256_file};
use crate::diagnostic::{Diagnose, Diagnostic};
use crate::hashes::Hashes;
use crate::manifest::Hasher;
use crate::manifest::layout::{ENGINES, FILE, IMAGES, INPUTS, SPECULATION};
use crate::progress::{Event, Progress};
use crate::text::TEXT_FILES;

/// Size in bytes from which hashes are remembered while the file is unchanged; smaller files are hashed at every start.
const SMALL: u64 = 64 << 20;

/// An engine directory whose files have changed since it was published.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.diagnostic())]
pub struct Damage {
    /// The engine directory.
    pub folder: PathBuf,
    /// The file, and what is wrong with it.
    pub what: String,
}

impl Diagnose for Damage {
    fn diagnostic(&self) -> Diagnostic {
        let folder = self.folder.display();
        Diagnostic::new(&self.what).at(&folder).with_help(format!(
            "build it again: `watus-build build --rebuild RECIPE`; `watus-build verify {folder}` looks at every file"
        ))
    }
}

impl EngineDir {
    /// The first file that is missing, differs from its hash, or would be read although the manifest does not list it.
    pub fn damage(&self, hash: Hasher<'_>) -> Option<String> {
        self.stranger().or_else(|| self.manifest.damaged_file(&self.folder, hash, &mut |_| false))
    }

    /// Checks the files before they are used; `full` hashes all of them.
    pub fn check(&self, full: bool, progress: &dyn Progress) -> Result<(), Damage> {
        self.check_with(full, progress, &mut Hashes::open(&cache_dir()))
    }

    fn check_with(&self, full: bool, progress: &dyn Progress, hashes: &mut Hashes) -> Result<(), Damage> {
        let folder = &self.folder;
        if let Some(what) = self.stranger() {
            return Err(Damage { folder: folder.clone(), what });
        }
        self.hear_of_long_reading(full, progress, hashes);
        let damage = self.manifest.damaged_file(
            folder,
            &mut |path| {
                let small = fs::metadata(path)?.len() <= SMALL;
                if full || small { sha256_file(path) } else { hashes.read(path) }
            },
            &mut |name| {
                if !is_spare(name) {
                    return false;
                }
                let text = format!("{} is missing: `verify` needs it", folder.join(name).display());
                progress.event(Event::Warning(&text));
                true
            },
        );
        // A robot's disk may be read only, and losing this costs time alone.
        let _ = hashes.save();
        match damage {
            Some(what) => Err(Damage { folder: folder.clone(), what }),
            None => Ok(()),
        }
    }

    /// Announces the hashing of gigabytes, which takes seconds.
    fn hear_of_long_reading(&self, full: bool, progress: &dyn Progress, hashes: &Hashes) {
        let large = self.manifest.files.iter().filter(|(_, file)| file.bytes > SMALL);
        let unread = large.filter(|(name, _)| full || !hashes.knows(&self.path(name)));
        let bytes: u64 = unread.map(|(_, file)| file.bytes).sum();
        if bytes > 1_000_000_000 {
            let once = if full { "" } else { ", once: it is remembered" };
            let text = format!("{}: hashing {}{once}", self.manifest.name, crate::memory::format_bytes(bytes));
            progress.event(Event::Stage(&text));
        }
    }

    /// A file that the runtime would read although the manifest does not list it, so that it was never verified.
    fn stranger(&self) -> Option<String> {
        self.manifest.contents.llm()?;
        let texts = TEXT_FILES.iter().chain([&SPECULATION]).map(|name| (*name).to_owned());
        let engines = fs::read_dir(self.path(ENGINES)).into_iter().flatten().flatten();
        let engines = engines.map(|entry| format!("{ENGINES}/{}", entry.file_name().to_string_lossy()));
        let mut read = texts.chain(engines.filter(|name| name.ends_with(".engine")));
        let stranger =
            read.find(|name| !self.manifest.files.contains_key(name) && self.path(name).symlink_metadata().is_ok())?;
        Some(format!("{stranger} is not in the manifest ({FILE}): it came later, and was not part of the verification"))
    }
}

/// Whether the engine runs without the file, because only `verify` or users read it.
fn is_spare(name: &str) -> bool {
    name.split_once('/').is_some_and(|(folder, file)| match folder {
        IMAGES | INPUTS => true,
        ENGINES => file.ends_with(".onnx"),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::manifest::Manifest;
    use crate::progress::Silent;

    /// An engine directory of a vision model in format 1, with `files` in `folder`.
    fn engine_dir(folder: &Path, files: &[(&str, &str)]) -> EngineDir {
        let mut manifest: Manifest = serde_json::from_value(serde_json::json!({
            "format": 1, "name": "m", "kind": "onnx", "tool": "watus-build 0", "key": {},
            "tensorrt": { "family": "rtx", "major": 1, "minor": 6, "patch": 1 }, "device": null, "l4t": null,
            "precision": "fp32", "tf32": false, "source": "path:m", "engine": "m.engine", "model": "model.onnx",
            "verify": { "seeds": 1, "images": [], "tolerance": 1e-3 },
            "build": { "seconds": 0.0, "peak_memory_bytes": 0, "skipped_tactics": 0, "warnings": [] }, "files": {},
        }))
        .unwrap();
        for (name, content) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        manifest.record_files(folder, &mut sha256_file).unwrap();
        EngineDir { folder: folder.to_owned(), manifest }
    }

    #[test]
    fn every_kind_of_damage_is_found_and_named() {
        type Change = fn(&Path);
        let cases: [(&str, Change, &str); 4] = [
            ("a flipped bit", |folder| fs::write(folder.join("m.engine"), b"plaO").unwrap(), "m.engine does not match"),
            ("a cut", |folder| fs::write(folder.join("m.engine"), b"pl").unwrap(), "m.engine has 2 bytes"),
            ("a loss", |folder| fs::remove_file(folder.join("m.engine")).unwrap(), "m.engine"),
            ("a lost picture", |folder| fs::remove_file(folder.join("images/a.png")).unwrap(), ""),
        ];
        for (case, change, said) in cases {
            let scratch = tempfile::tempdir().unwrap();
            let folder = scratch.path().join("engine");
            let engine = engine_dir(&folder, &[("m.engine", "plan"), ("images/a.png", "x")]);
            let check = |full| {
                let mut hashes = Hashes::open(scratch.path());
                engine.check_with(full, &Silent, &mut hashes).err().map(|error| error.to_string())
            };
            assert_eq!(check(false), None, "{case}");
            change(&folder);
            for full in [false, true] {
                let found = check(full);
                assert_eq!(found.is_some(), !said.is_empty(), "{case}: {found:?}");
                assert!(found.unwrap_or_default().contains(said), "{case}");
            }
        }
    }

    #[test]
    fn large_files_are_remembered_and_read_again_when_they_change() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("engine");
        let mut engine = engine_dir(&folder, &[("m.engine", "plan")]);
        let path = folder.join("m.data");
        let large = usize::try_from(SMALL).unwrap() + 1;
        fs::write(&path, vec![7_u8; large]).unwrap();
        engine.manifest.record_files(&folder, &mut sha256_file).unwrap();
        let mut hashes = Hashes::open(scratch.path());
        let mut check = |full| engine.check_with(full, &Silent, &mut hashes).is_ok();
        assert!(check(false) && check(false));
        let mut changed = vec![7_u8; large];
        changed[large / 2] = 6;
        fs::write(&path, changed).unwrap();
        assert!(!check(false) && !check(true));
        assert_eq!(hashes.hashed_bytes, 2 * large as u64, "once each, and `full` goes by no memory");
    }
}
