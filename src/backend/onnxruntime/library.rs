//! Finds ONNX Runtime's library and checks its file, without opening it: opening a library runs its code.

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::backend::BackendError;
use crate::confined;
use crate::regular_file;

/// Environment variable with the library's file or folder; empty to use no library.
pub const VARIABLE: &str = "WATUS_ONNXRUNTIME_LIB";
/// Prefix of the library's file name, before the version.
pub const FILE: &str = "libonnxruntime.so";
/// Name that the dynamic loader is asked for.
pub const SONAME: &str = "libonnxruntime.so.1";
/// Oldest supported version: major, minor.
pub const OLDEST: (u32, u32) = (1, 17);
/// Folder of the library in a package, relative to the parent of the program's folder.
const PACKAGED: &str = "lib/watus-build";
/// Script that installs the library.
pub const SET_UP: &str = "scripts/setup-onnxruntime.sh";

/// A usable library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// Path of its file.
    pub path: String,
    /// Version such as "1.32.0", if the file name contains it.
    pub version: Option<String>,
}

impl Library {
    /// Name and version: "onnxruntime 1.32.0".
    pub fn engine(&self) -> String {
        let version = self.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        format!("onnxruntime{version}")
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        write!(f, "ONNX Runtime{version} ({})", self.path)
    }
}

/// A library that exists but cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    /// Path of its file.
    pub path: String,
    /// Why, as a sentence about "it".
    pub why: String,
    /// Whether the user named it, so that no other is used in its place.
    pub named: bool,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ONNX Runtime ({}) cannot be used: {}", self.path, self.why)
    }
}

impl Broken {
    /// The hint for fixing it.
    pub fn mend(&self) -> String {
        if self.named {
            return format!("name another in {VARIABLE} ({SET_UP} brings one), or `{VARIABLE}=` computes with rten");
        }
        let packaged = Path::new(&self.path).parent().is_some_and(|folder| folder.ends_with(PACKAGED));
        match packaged {
            true => format!("install watus-build's package again; `{VARIABLE}=` computes with rten"),
            false => format!("{SET_UP} brings it again; `{VARIABLE}=` computes with rten"),
        }
    }

    /// The error if it was named, and nothing else may be used.
    pub fn error(&self) -> BackendError {
        BackendError::Unavailable { what: self.to_string(), help: self.mend() }
    }
}

/// Result of the search for a library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// There is no library, or the user wants none.
    Absent,
    /// A usable library.
    Ready(Library),
    /// A library that cannot be used.
    Broken(Broken),
}

/// A library, found without being named, that must not be opened in this process.
static GIVEN_UP: OnceLock<Broken> = OnceLock::new();

/// Uses rten from now on because the library is broken, and logs that once.
pub(in crate::backend) fn give_up(broken: Broken) {
    if GIVEN_UP.get().is_none() {
        tracing::warn!("{broken}; rten computes instead ({})", broken.mend());
        let _ = GIVEN_UP.set(broken);
    }
}

/// The library that was given up in this process.
pub(in crate::backend) fn given_up() -> Option<&'static Broken> {
    GIVEN_UP.get()
}

/// A place to look for the library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::backend) struct Place {
    /// A file, or a name for the dynamic loader.
    pub(in crate::backend) path: PathBuf,
    /// Whether the user named it.
    pub(in crate::backend) named: bool,
}

impl Place {
    /// The first place with a library; `None` if none is to be used.
    pub(in crate::backend) fn find() -> Option<Self> {
        let Some(named) = std::env::var_os(VARIABLE) else {
            let path = installed().or_else(packaged).unwrap_or_else(|| SONAME.into());
            return Some(Self { path, named: false });
        };
        if named.is_empty() {
            return None;
        }
        let named = PathBuf::from(named);
        let path = if named.is_dir() { in_folder(&named).unwrap_or_else(|| named.join(FILE)) } else { named };
        // A bare name that is no file here is the loader's to look up.
        let is_bare = path.components().count() == 1 && !path.exists();
        let path = if is_bare { path } else { std::path::absolute(&path).unwrap_or(path) };
        Some(Self { path, named: true })
    }

    /// Whether the dynamic loader searches for it.
    fn is_loaders(&self) -> bool {
        !self.path.is_absolute()
    }

    /// The fault of its file, if there is one.
    pub(super) fn fault(&self) -> Option<String> {
        if self.is_loaders() { None } else { fault(&self.path, std::env::consts::ARCH) }
    }

    /// Whether the loader's error says that there is no such library, and the user did not name it.
    pub(super) fn is_missing(&self, words: &str) -> bool {
        !self.named && self.is_loaders() && words.contains(SONAME) && words.contains("No such file")
    }

    /// This library as broken, for the reason `why`.
    pub(in crate::backend) fn broken(&self, why: String) -> Broken {
        Broken { path: self.path.display().to_string(), why, named: self.named }
    }

    /// This library, once it is open.
    pub(super) fn library(&self) -> Library {
        let real = if self.is_loaders() { mapped() } else { std::fs::canonicalize(&self.path).ok() };
        let version = real.as_ref().and_then(|real| version(&real.file_name()?.to_string_lossy()));
        let shown = if self.is_loaders() { real.as_ref().unwrap_or(&self.path) } else { &self.path };
        Library { path: shown.display().to_string(), version }
    }
}

/// The newest library that the set-up script installed in the user's data directory.
fn installed() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    let data = std::env::var_os("XDG_DATA_HOME").filter(|data| !data.is_empty()).map(PathBuf::from).or_else(home)?;
    in_data(&data.join("watus-build"))
}

/// The library of the package that this program belongs to, wherever that is unpacked.
fn packaged() -> Option<PathBuf> {
    of_package(&confined::file()?)
}

/// The library of the package that contains `program`.
fn of_package(program: &Path) -> Option<PathBuf> {
    in_folder(&program.parent()?.parent()?.join(PACKAGED))
}

/// The newest library in a data directory of this tool.
pub fn in_data(data: &Path) -> Option<PathBuf> {
    let folders = std::fs::read_dir(data).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let ours = |folder: &PathBuf| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("onnxruntime-") && folder.join(".complete").exists()
    };
    let mut folders: Vec<PathBuf> = folders.filter(ours).collect();
    folders.sort();
    // What the script put there may be gone.
    folders.iter().rev().find_map(|folder| in_folder(&folder.join("lib")))
}

/// The library in a folder.
pub fn in_folder(folder: &Path) -> Option<PathBuf> {
    let files = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.filter(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FILE))).max()
}

/// The file that this process has mapped under the library's name.
fn mapped() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    let is_it = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(FILE));
    paths.find(|path| is_it(path)).map(Path::to_path_buf)
}

/// The version in a file name: "1.32.0" of libonnxruntime.so.1.32.0; symbolic links have less.
pub fn version(file_name: &str) -> Option<String> {
    let version = file_name.strip_prefix(FILE)?.strip_prefix('.')?;
    version.contains('.').then(|| version.to_owned())
}

/// Whether a version is too old to be used.
pub fn is_too_old(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) < OLDEST)
}

/// The message for a library that is too old.
pub fn too_old(version: &str) -> String {
    format!("it is version {version}, {}.{} is the oldest that is taken", OLDEST.0, OLDEST.1)
}

/// Architectures by number (System V ABI, `e_machine`) and by Rust's name.
const MACHINES: &[(u16, &str)] = &[(3, "x86"), (40, "arm"), (62, "x86_64"), (183, "aarch64"), (243, "riscv64")];

/// Why a file is no library that this architecture could open, by its headers (System V ABI, ELF-64 object file
/// format). A truncated file can be mapped, and then ends the process that reads it.
pub fn fault(path: &Path, architecture: &str) -> Option<String> {
    let mut file = match regular_file::open(path) {
        Ok(file) => file,
        Err(error) => return Some(format!("it cannot be read: {error}")),
    };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    headers(&mut file, length, architecture).unwrap_or_else(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Some(format!("it is cut off after {length} bytes")),
        _ => Some(format!("it cannot be read: {error}")),
    })
}

/// The fault of the headers, if there is one; an error if they are truncated.
fn headers(file: &mut (impl Read + Seek), length: u64, architecture: &str) -> io::Result<Option<String>> {
    let mut header = [0_u8; 64];
    let begin = usize::try_from(length).map_or(header.len(), |length| length.min(header.len()));
    file.read_exact(&mut header[..begin])?;
    if !header.starts_with(b"\x7fELF") {
        return Ok(Some("it is no ELF file".to_owned()));
    }
    if begin < header.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let short = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    // 64 bits, the lowest byte first, a shared object.
    if (header[4], header[5], short(16)) != (2, 1, 3) {
        return Ok(Some("it is no shared library of 64 bits".to_owned()));
    }
    let machine = MACHINES.iter().find(|(number, _)| *number == short(18));
    let machine = machine.map_or_else(|| format!("processor {}", short(18)), |(_, name)| (*name).to_owned());
    if machine != architecture {
        return Ok(Some(format!("it is for {machine}, this machine is {architecture}")));
    }
    let table = long(&header, 32);
    let (size, count) = (u64::from(short(54)), u64::from(short(56)));
    for entry in 0..count {
        let mut segment = [0_u8; 56];
        file.seek(SeekFrom::Start(table.saturating_add(entry * size)))?;
        file.read_exact(&mut segment)?;
        // PT_LOAD: mapped from here, so many bytes.
        let end = long(&segment, 8).saturating_add(long(&segment, 32));
        if segment.starts_with(&[1, 0, 0, 0]) && end > length {
            return Ok(Some(format!("it is cut off: it has {length} bytes of {end}")));
        }
    }
    Ok(None)
}

/// The little-endian 64-bit number at an offset.
fn long(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0_u8; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// The headers of a shared library of `length` bytes with one segment.
    fn elf(machine: u16, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length.max(120)];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16] = 3;
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        (bytes[32], bytes[54], bytes[56]) = (64, 56, 1);
        bytes[64] = 1;
        bytes[96..104].copy_from_slice(&(length as u64).to_le_bytes());
        bytes
    }

    #[test]
    fn files_that_are_no_library_are_told_by_their_headers() {
        let fault = |bytes: &[u8], architecture: &str| {
            headers(&mut Cursor::new(bytes), bytes.len() as u64, architecture).unwrap_or_else(|e| Some(e.to_string()))
        };
        let whole = elf(62, 4096);
        assert_eq!(fault(&whole, "x86_64"), None);
        assert_eq!(fault(&elf(183, 4096), "aarch64"), None);
        let mut program = whole.clone();
        program[16] = 2;
        let mut far = whole.clone();
        far[32..40].copy_from_slice(&[0xff; 8]);
        let cases: [(&[u8], &str, &str); 8] = [
            (&whole, "aarch64", "it is for x86_64, this machine is aarch64"),
            (&elf(7, 4096), "x86_64", "it is for processor 7"),
            (&whole[..2000], "x86_64", "it is cut off: it has 2000 bytes of 4096"),
            (&whole[..100], "x86_64", "fill whole buffer"),
            (&whole[..20], "x86_64", "unexpected end of file"),
            (b"", "x86_64", "it is no ELF file"),
            (&program, "x86_64", "no shared library"),
            (&far, "x86_64", "fill whole buffer"),
        ];
        for (bytes, architecture, said) in cases {
            let told = fault(bytes, architecture).unwrap();
            assert!(told.contains(said), "{said}: {told}");
        }
    }

    #[test]
    fn a_package_has_its_library_beside_its_program() {
        let root = tempfile::tempdir().unwrap();
        let (bin, lib) = (root.path().join("usr/bin"), root.path().join("usr/lib/watus-build"));
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir_all(&lib).unwrap();
        let program = bin.join("watus-build");
        assert_eq!(of_package(&program), None);
        std::fs::write(lib.join("libwatus_shim-trt10.so"), "").unwrap();
        assert_eq!(of_package(&program), None);
        let real = lib.join("libonnxruntime.so.1.32.0");
        std::fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink("libonnxruntime.so.1.32.0", lib.join(SONAME)).unwrap();
        assert_eq!(of_package(&program).as_ref(), Some(&real));
        assert_eq!(of_package(Path::new("/")), None);
        // Who has a package has no scripts.
        for (path, named, mended_by) in [
            (real.display().to_string(), false, "install watus-build's package again"),
            (real.display().to_string(), true, "name another in WATUS_ONNXRUNTIME_LIB"),
            ("/usr/lib/libonnxruntime.so.1".to_owned(), false, SET_UP),
        ] {
            let mend = Broken { path, why: String::new(), named }.mend();
            assert!(mend.starts_with(mended_by), "{mend}");
        }
    }

    #[test]
    fn versions_are_of_file_names() {
        assert_eq!(version("libonnxruntime.so.1.32.0").as_deref(), Some("1.32.0"));
        assert_eq!(
            (version("libonnxruntime.so.1"), version("libonnxruntime.so"), version("libm.so.6")),
            (None, None, None)
        );
        let old = ["1.16.3", "1.9.0", "0.5", "1.17.0", "1.32.0", "2.0.0", "1", "x"].map(is_too_old);
        assert_eq!(old, [true, true, true, false, false, false, false, false]);
    }
}
