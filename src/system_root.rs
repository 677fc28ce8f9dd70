//! The file system that `doctor` and the sensors read: this machine's, or an image or fixture below a folder.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::regular_file;

/// Most bytes read of a system file; longer ones are cut.
const READ_LIMIT: u64 = 32 << 20;
/// Most symbolic links on the way to a file, as on Linux (path_resolution(7)).
const LINKS: usize = 40;

/// The examined file system.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    /// Whether it is this machine's, so that programs may be run and libraries opened.
    pub live: bool,
}

/// A package of dpkg's status file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Version, e.g. "10.3.0.30-1+cuda12.5".
    pub version: String,
    /// Whether apt-mark holds it back from upgrades.
    pub held: bool,
}

impl Package {
    /// The upstream version, without Debian's revision and build suffix.
    pub fn upstream(&self) -> &str {
        self.version.split(['-', '+']).next().unwrap_or(&self.version)
    }
}

impl Root {
    /// The file system of this machine.
    pub fn live() -> Self {
        Self { path: "/".into(), live: true }
    }

    /// A mounted image.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned(), live: path == Path::new("/") }
    }

    /// Resolves the absolute `path` below this root. Links are followed as on the machine itself: an image's
    /// /usr/local/cuda links to the image's /etc/alternatives/cuda. `None` if a link leads nowhere.
    pub(crate) fn path(&self, path: &str) -> Option<PathBuf> {
        if self.live {
            return Some(PathBuf::from(path));
        }
        // Names that are still to be gone through, the next one last; where that has led so far, below the root.
        let (mut names, mut way, mut links) = (names(Path::new(path)), Vec::<OsString>::new(), 0);
        while let Some(name) = names.pop() {
            if name == ".." {
                way.pop();
                continue;
            }
            let here = self.path.join(way.iter().collect::<PathBuf>()).join(&name);
            let Ok(target) = fs::read_link(&here) else {
                way.push(name);
                continue;
            };
            links += 1;
            if links > LINKS {
                return None;
            }
            if target.is_absolute() {
                way.clear();
            }
            names.extend(self::names(&target));
        }
        Some(self.path.join(way.iter().collect::<PathBuf>()))
    }

    /// Whether a file, folder or link exists at `path`.
    pub fn exists(&self, path: &str) -> bool {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.path(&format!("{folder}/")).is_some_and(|folder| folder.join(name).symlink_metadata().is_ok())
    }

    /// Reads a text file, without NULs (device-tree strings end in one) and surrounding white space. A pipe or device of
    /// an image is not waited for.
    pub fn read(&self, path: &str) -> Option<String> {
        use std::io::Read;
        let mut bytes = Vec::new();
        regular_file::open(&self.path(path)?).ok()?.take(READ_LIMIT).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes).replace('\0', "\n");
        Some(text.trim().to_owned())
    }

    /// The names in a folder, sorted.
    pub fn list(&self, path: &str) -> Vec<String> {
        let entries = self.path(path).and_then(|path| fs::read_dir(path).ok()).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The files in any of `folders` whose name begins with `prefix`.
    pub fn find(&self, folders: &[impl AsRef<str>], prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        for folder in folders.iter().map(AsRef::as_ref) {
            let names = self.list(folder).into_iter().filter(|name| name.starts_with(prefix));
            found.extend(names.map(|name| format!("{folder}/{name}")));
        }
        found
    }

    /// The installed packages by name.
    pub fn packages(&self) -> BTreeMap<String, Package> {
        parse_packages(&self.read("/var/lib/dpkg/status").unwrap_or_default())
    }
}

/// The components of a path, the last first.
fn names(path: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect();
    names.reverse();
    names
}

/// Parses the paragraphs of dpkg's status file: `Package:`, `Status:`, `Version:` (deb-control(5); dpkg(1) on states).
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

    /// Links as JetPack's packages have them, and hostile ones, with files of the same names outside the image.
    #[test]
    fn links_of_an_image_stay_in_it() {
        use std::os::unix::fs::symlink;
        let scratch = tempfile::tempdir().unwrap();
        let image = scratch.path().join("image");
        let write = |path: &str, text: &str| {
            let path = scratch.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("image/usr/local/cuda-13.0/targets/sbsa-linux/lib/libcudart.so.13.0.88", "");
        write("image/usr/local/cuda-13.0/version.json", "image");
        write("image/etc/nvpmodel/p3701.conf", "modes");
        write("secret", "host");
        let link = |at: &str, target: &Path| {
            let at = image.join(at);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            symlink(target, at).unwrap();
        };
        link("usr/local/cuda", Path::new("/etc/alternatives/cuda"));
        link("etc/alternatives/cuda", Path::new("/usr/local/cuda-13.0"));
        link("etc/nvpmodel.conf", Path::new("/etc/nvpmodel/p3701.conf"));
        link("etc/relative", Path::new("../etc/./nvpmodel/p3701.conf"));
        link("etc/out", Path::new("../../../secret"));
        link("etc/absolute", &scratch.path().join("secret"));
        link("etc/circle", Path::new("circle"));
        link("etc/nowhere", Path::new("/gone"));
        let pipe = image.join("etc/pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        let root = Root::at(&image);
        for (path, text) in [
            ("/etc/nvpmodel.conf", Some("modes")),
            ("/etc/relative", Some("modes")),
            ("/usr/local/cuda/version.json", Some("image")),
            ("/etc/nvpmodel/../nvpmodel.conf", Some("modes")),
            ("/etc/out", None),
            ("/etc/absolute", None),
            ("/etc/circle", None),
            ("/etc/nowhere", None),
            ("/etc/pipe", None),
            ("/../secret", None),
        ] {
            assert_eq!(root.read(path).as_deref(), text, "{path}");
        }
        let found = root.find(&["/usr/local/cuda/targets/sbsa-linux/lib"], "libcudart.so.");
        assert_eq!(found, ["/usr/local/cuda/targets/sbsa-linux/lib/libcudart.so.13.0.88"]);
        for (path, there) in [
            ("/usr/local/cuda/targets", true),
            ("/etc/nowhere", true),
            ("/etc/circle", true),
            ("/etc/circle/x", false),
            ("/usr/local/cuda/no", false),
        ] {
            assert_eq!(root.exists(path), there, "{path}");
        }
    }

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
