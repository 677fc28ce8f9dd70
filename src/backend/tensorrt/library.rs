//! Finds TensorRT's shared libraries, without opening them. `doctor` searches images by the same rules.

use std::path::{Path, PathBuf};

use super::{Family, Version};
use crate::confined;

/// The libraries that a build needs. Running engines needs the core only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `libnvinfer.so.N` or `libtensorrt_rtx.so.N`.
    pub core: PathBuf,
    /// `libnvonnxparser.so.N` or `libtensorrt_onnxparser_rtx.so.N`.
    pub parser: PathBuf,
    /// `libnvinfer_plugin.so.N`, if installed; RTX has none.
    pub plugin: Option<PathBuf>,
}

/// Folder below the user's data directory that scripts/setup-tensorrt.sh installs to.
fn provisioned(version: Version) -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")))?.join("watus-build");
    // The build number is part of the folder's name and not of the header's version.
    let prefix = format!("tensorrt-rtx-{}.{}.{}", version.major, version.minor, version.patch);
    let entries = std::fs::read_dir(data).ok()?.flatten();
    let mut matching: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
        .collect();
    matching.sort();
    Some(matching.pop()?.join("lib"))
}

/// File names of core and parser of a version.
pub fn names(version: Version) -> (String, String) {
    match version.family {
        Family::Rtx => (
            format!("libtensorrt_rtx.so.{}", version.major),
            format!("libtensorrt_onnxparser_rtx.so.{}", version.major),
        ),
        Family::Enterprise => {
            (format!("libnvinfer.so.{}", version.major), format!("libnvonnxparser.so.{}", version.major))
        }
    }
}

/// Library folders of a system with this architecture, in order of preference.
pub fn system_folders(arch: &str) -> Vec<PathBuf> {
    [
        &format!("/usr/lib/{arch}-linux-gnu"),
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/tensorrt/lib",
        "/usr/local/tensorrt/targets/x86_64-linux-gnu/lib",
        "/opt/tensorrt/lib",
        "/usr/local/cuda/lib64",
    ]
    .map(PathBuf::from)
    .to_vec()
}

/// Folders to search, in order of preference: the one that the user names, or the loader's and the system's.
fn folders() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("WATUS_TENSORRT_LIB") {
        return vec![named.into()];
    }
    let beside = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let beside: Vec<PathBuf> = std::env::split_paths(&beside).filter(|path| path.is_absolute()).collect();
    beside.into_iter().chain(system_folders(std::env::consts::ARCH)).collect()
}

/// Major versions of TensorRT that this tool knows, and the core library of each that is installed.
pub fn installed_majors() -> Vec<(u32, PathBuf)> {
    let folders = folders();
    let core = |major: u32| {
        let name = format!("libnvinfer.so.{major}");
        folders.iter().map(|folder| folder.join(&name)).find(|path| path.exists())
    };
    [11, 10, 8].into_iter().filter_map(|major| Some((major, core(major)?))).collect()
}

/// The value of `WATUS_TENSORRT_LIB`, if it is not a folder.
pub fn misnamed() -> Option<String> {
    let named = PathBuf::from(std::env::var_os("WATUS_TENSORRT_LIB")?);
    let what = match std::fs::metadata(&named) {
        Ok(metadata) if metadata.is_dir() => return None,
        Ok(_) => "is a file: name the folder that has it",
        Err(_) => "is not there",
    };
    Some(format!("WATUS_TENSORRT_LIB={} {what}", named.display()))
}

/// Script in the sources that installs TensorRT-RTX.
pub const SETUP: &str = "scripts/setup-tensorrt.sh";

/// The hint for installing TensorRT on this kind of machine; TensorRT-RTX by the script of the sources or of the
/// package.
pub fn remedy(jetson: bool) -> String {
    if jetson {
        return "sudo apt install tensorrt".to_owned();
    }
    let packaged = confined::file().and_then(|program| {
        let script = program.parent()?.parent()?.join("share/watus-build/setup-tensorrt.sh");
        script.exists().then(|| format!("{} --libraries", script.display()))
    });
    packaged.unwrap_or_else(|| SETUP.to_owned())
}

/// Finds the libraries that match a shim's headers; the error is both file names, and the folders searched.
pub fn find(headers: Version) -> Result<Files, (String, Vec<PathBuf>)> {
    let (core, parser) = names(headers);
    let mut folders = folders();
    if headers.family == Family::Rtx && std::env::var_os("WATUS_TENSORRT_LIB").is_none() {
        folders.extend(provisioned(headers));
    }
    let both = |folder: &Path| {
        let plugin = folder.join(format!("libnvinfer_plugin.so.{}", headers.major));
        let plugin = (headers.family == Family::Enterprise && plugin.exists()).then_some(plugin);
        let files = Files { core: folder.join(&core), parser: folder.join(&parser), plugin };
        (files.core.exists() && files.parser.exists()).then_some(files)
    };
    let found = folders.iter().find_map(|folder| both(folder));
    found.ok_or_else(|| (format!("{core} with {parser}"), folders))
}
