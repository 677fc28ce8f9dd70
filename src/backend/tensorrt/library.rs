//! Where TensorRT's shared libraries are. Nothing is opened here; `doctor` reads image folders with the same rules.

use std::path::{Path, PathBuf};

use super::{Family, Version};

/// The two libraries a build needs. A runtime alone needs the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `libnvinfer.so.N` or `libtensorrt_rtx.so.N`.
    pub core: PathBuf,
    /// `libnvonnxparser.so.N` or `libtensorrt_onnxparser_rtx.so.N`.
    pub parser: PathBuf,
    /// `libnvinfer_plugin.so.N`, where there is one; RTX has none.
    pub plugin: Option<PathBuf>,
}

/// Folder below the user's data directory that scripts/setup-tensorrt.sh fills.
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

/// File names for a version.
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

/// Library folders of a system with this architecture, best first.
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

/// Folders to look in, best first: the one that is named, or the loader's and the system's.
fn folders() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("WATUS_TENSORRT_LIB") {
        return vec![named.into()];
    }
    let beside = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let beside: Vec<PathBuf> = std::env::split_paths(&beside).filter(|path| path.is_absolute()).collect();
    beside.into_iter().chain(system_folders(std::env::consts::ARCH)).collect()
}

/// TensorRT's majors that this tool knows, and the core library of each that is installed.
pub fn installed_majors() -> Vec<(u32, PathBuf)> {
    let folders = folders();
    let core = |major: u32| {
        let name = format!("libnvinfer.so.{major}");
        folders.iter().map(|folder| folder.join(&name)).find(|path| path.exists())
    };
    [11, 10, 8].into_iter().filter_map(|major| Some((major, core(major)?))).collect()
}

/// What `WATUS_TENSORRT_LIB` names, if that is no folder.
pub fn misnamed() -> Option<String> {
    let named = PathBuf::from(std::env::var_os("WATUS_TENSORRT_LIB")?);
    let what = match std::fs::metadata(&named) {
        Ok(metadata) if metadata.is_dir() => return None,
        Ok(_) => "is a file: name the folder that has it",
        Err(_) => "is not there",
    };
    Some(format!("WATUS_TENSORRT_LIB={} {what}", named.display()))
}

/// What brings TensorRT-RTX, in the sources.
pub const SETUP: &str = "scripts/setup-tensorrt.sh";

/// How TensorRT is installed on this kind of machine; TensorRT-RTX by the script of the sources or of the package.
pub fn remedy(jetson: bool) -> String {
    if jetson {
        return "sudo apt install tensorrt".to_owned();
    }
    let packaged = std::env::current_exe().ok().and_then(|program| {
        let script = program.parent()?.parent()?.join("share/watus-build/setup-tensorrt.sh");
        script.exists().then(|| format!("{} --libraries", script.display()))
    });
    packaged.unwrap_or_else(|| SETUP.to_owned())
}

/// The libraries for the headers of a shim; or the names of both, and the folders that have not both.
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
