//! Writes files and directories atomically: they appear whole or not at all.
//!
//! Everything this tool writes is staged in a sibling (`.NAME.staging-…`), hashed while written, and renamed. The
//! writer holds a lock on the staged file or directory, so a later run can tell a crashed writer's leftovers from
//! one at work, and [`sweep`] removes them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use sha2::{Digest, Sha256};

/// Adds the path to an error of the operating system, whose text lacks it.
pub fn about(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of bytes in memory, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256_file(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    // A pipe would be waited for, a device has no end.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    feed(&mut File::open(path)?, |chunk| hasher.update(chunk))?;
    Ok(hex(&hasher.finalize()))
}

/// Reads to the end and passes the bytes to `sink` in pieces.
pub fn feed(reader: &mut impl Read, mut sink: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => sink(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether `text` is a SHA-256 in hexadecimal.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether `path` stays inside the folder it is joined to: relative, no `..`, no prefix, not empty.
pub fn is_contained(path: &str) -> bool {
    use std::path::Component;
    !path.is_empty()
        && !path.contains(['\0', '\\'])
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Whether both paths exist and are one file: equal paths, a link to it, or a hard link.
pub fn is_same_file(a: &Path, b: &Path) -> bool {
    let (Ok(a), Ok(b)) = (fs::metadata(a), fs::metadata(b)) else { return false };
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Free bytes in `folder`, which must exist.
pub fn free_space(folder: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// The cache directory: `WATUS_CACHE_DIR`, else `watus-build` in the user's cache directory.
pub fn cache_dir() -> PathBuf {
    user_dir("WATUS_CACHE_DIR", "XDG_CACHE_HOME", ".cache")
}

fn user_dir(own: &str, xdg: &str, below_home: &str) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set(own).unwrap_or_else(|| {
        let base = set(xdg).or_else(|| Some(set("HOME")?.join(below_home)));
        base.unwrap_or_else(std::env::temp_dir).join("watus-build")
    })
}

const STAGING: &str = ".staging-";

fn staging_path(target: &Path) -> io::Result<PathBuf> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let name = target.file_name().ok_or_else(|| io::Error::other(format!("{} has no file name", target.display())))?;
    let mut staged = OsString::from(".");
    staged.push(name);
    staged.push(format!("{STAGING}{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    Ok(target.with_file_name(staged))
}

/// The name of the target if `name` is a staging name of `staging_path`. A user's file may merely begin like one.
pub fn staged_for(name: &OsStr) -> Option<&OsStr> {
    let name = name.as_bytes().strip_prefix(b".")?;
    let at = name.windows(STAGING.len()).rposition(|part| part == STAGING.as_bytes())?;
    let (target, numbers) = (&name[..at], &name[at + STAGING.len()..]);
    let parts: Vec<&[u8]> = numbers.split(|byte| *byte == b'-').collect();
    let numbered = parts.len() == 2 && parts.iter().all(|part| !part.is_empty() && part.iter().all(u8::is_ascii_digit));
    (numbered && !target.is_empty()).then(|| OsStr::from_bytes(target))
}

/// Opens a file or directory, and no link.
fn open_itself(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(path)
}

/// Whether a process holds a lock on a file or directory, as writers do on what they stage.
pub fn is_held(path: &Path) -> io::Result<bool> {
    match open_itself(path)?.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Whether a writer of `target` is at work.
pub fn has_writer(target: &Path) -> bool {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else { return false };
    let entries = fs::read_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let staged = entries.into_iter().flatten().flatten().filter(|entry| staged_for(&entry.file_name()) == Some(name));
    staged.map(|entry| entry.path()).any(|path| is_held(&path).unwrap_or(false))
}

/// Removes a directory in two steps, so that nobody finds half of it: its name goes first. Links in it are removed, and not
/// followed. If somebody holds a lock on it, the error is [`io::ErrorKind::ResourceBusy`].
pub fn remove_directory(folder: &Path) -> io::Result<()> {
    let lock = open_itself(folder)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::ResourceBusy.into()),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // What took its place meanwhile is somebody's new work.
    let (opened, there) = (lock.metadata()?, fs::symlink_metadata(folder)?);
    if !there.is_dir() || (opened.dev(), opened.ino()) != (there.dev(), there.ino()) {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let gone = staging_path(folder)?;
    fs::rename(folder, &gone)?;
    fs::remove_dir_all(&gone).map_err(about(&gone))
}

/// Removes what crashed writers of `target` left behind; living writers hold a lock, and their work stays.
pub fn sweep(target: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else { return Ok(()) };
    let entries = match fs::read_dir(if parent.as_os_str().is_empty() { Path::new(".") } else { parent }) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        // The entry's own type: no writer stages a link, and what one points to is somebody else's.
        let Ok(kind) = entry.file_type() else { continue };
        if staged_for(&entry.file_name()) != Some(name) || !(kind.is_file() || kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let Ok(file) = open_itself(&path) else { continue };
        if file.try_lock().is_ok() {
            let removed = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        }
    }
    Ok(())
}

/// A file being written beside its target. Dropped without [`StagedFile::publish`], it vanishes.
#[derive(Debug)]
pub struct StagedFile {
    file: File,
    staged: PathBuf,
    target: PathBuf,
    hasher: Sha256,
    length: u64,
    published: bool,
}

impl StagedFile {
    /// Starts a file that will become `target`; creates its folder.
    pub fn create(target: &Path) -> io::Result<Self> {
        Self::with_mode(target, 0o666)
    }

    /// Starts a file that nobody but its owner may read.
    pub fn create_private(target: &Path) -> io::Result<Self> {
        Self::with_mode(target, 0o600)
    }

    fn with_mode(target: &Path, mode: u32) -> io::Result<Self> {
        if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
        sweep(target)?;
        let staged = staging_path(target)?;
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
        file.lock()?;
        Ok(Self { file, staged, target: target.to_owned(), hasher: Sha256::new(), length: 0, published: false })
    }

    /// Flushes to disk, renames to the target, and returns (SHA-256 in hexadecimal, length in bytes).
    pub fn publish(mut self) -> io::Result<(String, u64)> {
        self.file.sync_all()?;
        // A device or a pipe in the place is somebody's, /dev/null of all programs'.
        if let Ok(old) = fs::symlink_metadata(&self.target)
            && !old.is_file()
            && !old.is_symlink()
        {
            return Err(io::Error::other(format!("{} is there already, and no file", self.target.display())));
        }
        fs::rename(&self.staged, &self.target)?;
        self.published = true;
        Ok((hex(&self.hasher.clone().finalize()), self.length))
    }
}

impl Write for StagedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.staged);
        }
    }
}

/// Writes a whole file atomically and returns its SHA-256 in hexadecimal.
pub fn write_file(target: &Path, bytes: &[u8]) -> io::Result<String> {
    let mut file = StagedFile::create(target)?;
    file.write_all(bytes)?;
    Ok(file.publish()?.0)
}

/// A directory being filled beside its target. Dropped without [`StagedDirectory::publish`], it vanishes.
#[derive(Debug)]
pub struct StagedDirectory {
    lock: Option<File>,
    staged: PathBuf,
    target: PathBuf,
}

impl StagedDirectory {
    /// Starts a directory that will become `target`, after removing what crashed writers left.
    pub fn create(target: &Path) -> io::Result<Self> {
        if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
        sweep(target)?;
        let staged = staging_path(target)?;
        fs::create_dir(&staged)?;
        let lock = File::open(&staged)?;
        lock.lock()?;
        Ok(Self { lock: Some(lock), staged, target: target.to_owned() })
    }

    /// The staged directory, to be filled with files.
    pub fn path(&self) -> &Path {
        &self.staged
    }

    /// Puts the directory in the target's place in one step, replacing an older one. The caller must know that the
    /// older one is ours.
    pub fn publish(mut self) -> io::Result<()> {
        sync_directory(&self.staged)?;
        match fs::symlink_metadata(&self.target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::rename(&self.staged, &self.target)?;
                self.lock = None;
            }
            Err(error) => return Err(error),
            // Exchanged, it would be swept away as somebody's leftover.
            Ok(old) if !old.is_dir() => {
                return Err(io::Error::new(
                    io::ErrorKind::NotADirectory,
                    format!("{} is no folder", self.target.display()),
                ));
            }
            // The old directory takes the staged one's name, and `drop` removes it.
            Ok(_) => renameat_with(CWD, &self.staged, CWD, &self.target, RenameFlags::EXCHANGE)?,
        }
        Ok(())
    }
}

impl Drop for StagedDirectory {
    fn drop(&mut self) {
        if self.lock.is_some() {
            let _ = fs::remove_dir_all(&self.staged);
        }
    }
}

/// Flushes every file of a directory, so that after a power cut a manifest never exists without its engine.
fn sync_directory(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_directory(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn errors_name_their_path() {
        let long = PathBuf::from("x".repeat(300));
        let error = fs::read(&long).map_err(about(&long)).unwrap_err();
        assert_eq!(error.kind(), fs::read(&long).unwrap_err().kind());
        assert!(error.to_string().starts_with(&format!("{}: ", long.display())), "{error}");
    }

    #[test]
    fn file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a/b.txt");
        let mut file = StagedFile::create(&target).unwrap();
        file.write_all(b"hel").unwrap();
        assert!(!target.exists());
        drop(file);
        assert_eq!(names(target.parent().unwrap()), Vec::<String>::new());
        assert_eq!(write_file(&target, b"hello").unwrap(), sha256_file(&target).unwrap());
        assert_eq!(names(target.parent().unwrap()), ["b.txt"]);
    }

    #[test]
    fn directory_replaces_its_predecessor_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("engine");
        for content in ["one", "two"] {
            let staged = StagedDirectory::create(&target).unwrap();
            fs::write(staged.path().join("f"), content).unwrap();
            staged.publish().unwrap();
            assert_eq!(fs::read_to_string(target.join("f")).unwrap(), content);
            assert_eq!(names(dir.path()), ["engine"]);
        }
    }

    #[test]
    fn sweep_spares_the_living_and_removes_the_dead() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("engine");
        let living = StagedDirectory::create(&target).unwrap();
        fs::create_dir(dir.path().join(".engine.staging-1-0")).unwrap();
        fs::write(dir.path().join(".engine.staging-2-0"), "x").unwrap();
        fs::write(dir.path().join(".other.staging-2-0"), "x").unwrap();
        sweep(&target).unwrap();
        assert_eq!(names(dir.path()).len(), 2, "{:?}", names(dir.path()));
        assert!(living.path().exists());
    }

    #[test]
    fn sweep_touches_nothing_that_no_writer_made() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "x").unwrap();
        let kept = [
            ".e.staging-",
            ".e.staging-old",
            ".e.staging-1",
            ".e.staging-1-0.bak",
            ".e.staging-1-2-3",
            ".e.staging--1",
        ];
        kept.iter().for_each(|name| fs::write(dir.path().join(name), "x").unwrap());
        std::os::unix::fs::symlink("mine", dir.path().join(".e.staging-7-0")).unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("folder", dir.path().join(".e.staging-7-1")).unwrap();
        let before = names(dir.path());
        fs::write(dir.path().join(".e.staging-7-2"), "x").unwrap();
        sweep(&dir.path().join("e")).unwrap();
        assert_eq!(names(dir.path()), before);
    }

    #[test]
    fn a_directory_is_removed_whole_and_what_it_links_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("engine");
        let mine = dir.path().join("mine");
        fs::create_dir(&mine).unwrap();
        fs::write(mine.join("thesis"), "x").unwrap();
        fs::create_dir_all(folder.join("weights")).unwrap();
        std::os::unix::fs::symlink(&mine, folder.join("weights/mine")).unwrap();
        let reader = open_itself(&folder).unwrap();
        reader.lock_shared().unwrap();
        assert!(is_held(&folder).unwrap());
        assert_eq!(remove_directory(&folder).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(names(&folder), ["weights"]);
        drop(reader);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("engine", &link).unwrap();
        assert!(remove_directory(&link).is_err() && is_held(&link).is_err());
        remove_directory(&folder).unwrap();
        assert_eq!(
            (names(dir.path()), names(&mine)),
            (vec!["link".to_owned(), "mine".to_owned()], vec!["thesis".to_owned()])
        );
    }

    #[test]
    fn writers_at_work_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("engine");
        fs::create_dir(dir.path().join(".engine.staging-1-0")).unwrap();
        assert!(!has_writer(&target));
        let staged = StagedDirectory::create(&target).unwrap();
        assert!(has_writer(&target) && !has_writer(&dir.path().join("other")));
        drop(staged);
        assert!(!has_writer(&target));
    }

    #[test]
    fn a_file_is_no_predecessor_of_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("engine");
        let staged = StagedDirectory::create(&target).unwrap();
        fs::write(&target, "mine").unwrap();
        assert!(staged.publish().is_err());
        assert_eq!((fs::read_to_string(&target).unwrap().as_str(), names(dir.path()).len()), ("mine", 1));
    }

    #[test]
    fn containment() {
        for good in ["a", "a/b.onnx", "./a", "..a/b"] {
            assert!(is_contained(good), "{good}");
        }
        for bad in ["", "..", "a/../b", "/etc/passwd", "a\\b", "a\0"] {
            assert!(!is_contained(bad), "{bad:?}");
        }
    }
}
