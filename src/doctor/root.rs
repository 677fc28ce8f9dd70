//! The file system looked at: this machine's, or an image or fixture below a folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// System files are short; anything longer is cut.
const READ_LIMIT: u64 = 32 << 20;

/// Where `/` is.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    /// This very machine: programs may be asked and libraries opened.
    pub live: bool,
}

/// A package of dpkg's status file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// E.g. "10.3.0.30-1+cuda12.5".
    pub version: String,
    /// Held back from upgrades by apt-mark.
    pub held: bool,
}

impl Package {
    /// The upstream version: what stands before Debian's revision and build suffix.
    pub fn upstream(&self) -> &str {
        self.version.split(['-', '+']).next().unwrap_or(&self.version)
    }
}

impl Root {
    /// This machine.
    pub fn live() -> Self {
        Self { path: "/".into(), live: true }
    }

    /// A mounted image.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), live: path == Path::new("/") }
    }

    /// `path`, which is absolute, below this root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.path.join(path.trim_start_matches('/'))
    }

    /// Whether a file, folder or link is there.
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// A text file without NULs (device-tree strings end in one) and surrounding white space.
    pub fn read(&self, path: &str) -> Option<String> {
        use std::io::Read;
        let mut bytes = Vec::new();
        fs::File::open(self.path(path)).ok()?.take(READ_LIMIT).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes).replace('\0', "\n");
        Some(text.trim().to_owned())
    }

    /// Names in a folder, sorted.
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Paths of files in any of `folders` whose name begins with `prefix`.
    pub fn find(&self, folders: &[impl AsRef<str>], prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        for folder in folders.iter().map(AsRef::as_ref) {
            let names = self.list(folder).into_iter().filter(|name| name.starts_with(prefix));
            found.extend(names.map(|name| format!("{folder}/{name}")));
        }
        found
    }

    /// Installed packages by name.
    pub fn packages(&self) -> BTreeMap<String, Package> {
        parse_packages(&self.read("/var/lib/dpkg/status").unwrap_or_default())
    }
}

/// Paragraphs of `Package:`, `Status:`, `Version:` (deb-control(5), dpkg(1) on states).
fn parse_packages(status: &str) -> BTreeMap<String, Package> {
    let mut packages = BTreeMap::new();
    for paragraph in status.split("\n\n") {
        let field =
            |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let (Some(name), Some(state), Some(version)) = (field("Package"), field("Status"), field("Version")) else {
            continue;
        };
        let mut words = state.split_whitespace();
        let held = words.next() == Some("hold");
        if words.nth(1) == Some("installed") {
            packages.insert(name.to_owned(), Package { version: version.to_owned(), held });
        }
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_states() {
        let packages = parse_packages(
            "Package: a\nStatus: install ok installed\nVersion: 8.5.2-1+cuda11.4\n\n\
             Package: b\nStatus: hold ok installed\nVersion: 1\n\n\
             Package: c\nStatus: deinstall ok config-files\nVersion: 2\n\nnonsense",
        );
        assert_eq!(packages.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!((packages["a"].upstream(), packages["a"].held, packages["b"].held), ("8.5.2", false, true));
    }
}
