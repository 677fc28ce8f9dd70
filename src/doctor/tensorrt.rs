//! Checks TensorRT: the library, what a build needs beside it, and the shim that opens it.

use std::path::Path;

use super::advice::{install, reinstall};
use super::packages::{WHEEL_FOLDERS, wheels};
use super::platform::numbers;
use super::software::at_least;
use super::{Examination, Finding, Purpose};
use crate::backend::tensorrt::shim::shims;
use crate::backend::tensorrt::{Family, NONE_INSTALLED, TensorRt, library};

/// A TensorRT library in the examined file system.
struct InstalledTensorRt {
    /// "TensorRT 10.3.0".
    name: String,
    /// Its file, and the folder of that.
    path: String,
    folder: String,
    /// Major version.
    major: u32,
    /// Whether it is of a Python wheel, which no program but Python finds by itself.
    wheel: bool,
}

/// Returns the name and version of TensorRT or TensorRT-RTX, if there is one, and the findings.
pub(super) fn check(examination: &Examination) -> (Option<String>, Vec<Finding>) {
    let opened = if examination.root.live { TensorRt::open().ok() } else { None };
    let mut findings = Vec::new();
    let name = if let Some(opened) = &opened {
        let (name, path) = (opened.version.to_string(), &opened.files.core);
        findings.push(judge(examination, &name, &path.display().to_string()));
        // RTX is one library and its parser, found together.
        if opened.version.family != Family::Rtx {
            let folder = path.parent().unwrap_or(Path::new("")).to_string_lossy().into_owned();
            findings.extend(parts(examination, &folder, opened.version.major));
        }
        Some(name)
    } else if let Some(broken) = unopened(examination) {
        findings.push(broken);
        None
    } else if let Some(installed) = installed(examination) {
        findings.push(judge(examination, &installed.name, &installed.path));
        findings.extend(by_wheel(&installed));
        findings.extend(parts(examination, &installed.folder, installed.major));
        Some(installed.name)
    } else {
        findings.push(missing(examination));
        None
    };
    findings.extend(own_binary(examination));
    (name, findings)
}

/// A library of this machine that does not open.
fn unopened(examination: &Examination) -> Option<Finding> {
    if !examination.root.live {
        return None;
    }
    let error = TensorRt::open().err()?.to_string();
    let (_, path) = library::installed_majors().into_iter().next()?;
    let what = format!("{} does not open: {}", path.display(), error.lines().next().unwrap_or_default());
    let mend = match what.contains(super::traps::DLA_COMPILER) {
        true => super::traps::NO_DLA_COMPILER,
        false => "`ldd` on that file tells which libraries are missing",
    };
    Some(Finding::fail("tensorrt", what, &[mend], &Purpose::ALL))
}

fn missing(examination: &Examination) -> Finding {
    let platform = &examination.platform;
    let mend = match platform.is_jetson() {
        true => install(platform, "tensorrt"),
        // An examined image is of another machine, where this package may not be.
        false if examination.root.live => library::remedy(false),
        false => format!("{}   # in watus-build's sources; a package has it in /usr/share/watus-build", library::SETUP),
    };
    Finding::fail("tensorrt", "no TensorRT library", &[&mend], &Purpose::ALL)
}

/// The library folders that are searched.
fn folders(examination: &Examination) -> Vec<String> {
    let folders = library::system_folders(&examination.platform.architecture);
    folders.iter().map(|folder| folder.to_string_lossy().into_owned()).collect()
}

/// The newest TensorRT in the system's folders, else one of a Python wheel.
fn installed(examination: &Examination) -> Option<InstalledTensorRt> {
    let newest = |folders: &[String]| {
        let libraries = examination.root.find(folders, "libnvinfer.so.");
        // libnvinfer.so.10.3.0 tells the version, the link libnvinfer.so.10 does not.
        let versions = libraries.into_iter().filter_map(|path| {
            let version = numbers(path.rsplit_once(".so.")?.1);
            Some((version, path))
        });
        versions.max_by(|(a, _), (b, _)| a.cmp(b))
    };
    let (system, wheels) = (newest(&folders(examination)), wheel_folders(examination));
    let wheel = system.as_ref().is_none_or(|(version, _)| version.len() < 3);
    let (mut version, path) = if wheel { newest(&wheels)? } else { system? };
    let folder = path.rsplit_once('/')?.0.to_owned();
    if version.len() < 3 {
        version = wheel_version(examination, &folder).unwrap_or(version);
    }
    let text: Vec<String> = version.iter().take(3).map(u32::to_string).collect();
    Some(InstalledTensorRt {
        name: format!("TensorRT {}", text.join(".")),
        major: *version.first()?,
        path,
        folder,
        wheel,
    })
}

/// Folders of Python packages that hold TensorRT's libraries.
fn wheel_folders(examination: &Examination) -> Vec<String> {
    let packages = wheels(examination).into_iter().map(|wheel| wheel.folder);
    let mut folders: Vec<String> =
        packages.flat_map(|folder| WHEEL_FOLDERS.map(|name| format!("{folder}/{name}"))).collect();
    folders.dedup();
    folders
}

/// The version of a wheel whose library has only the major one in its name: by the builder's resources beside it, else
/// by the wheel's metadata.
fn wheel_version(examination: &Examination, folder: &str) -> Option<Vec<u32>> {
    let resources = examination.root.find(&[folder], "libnvinfer_builder_resource");
    let by_file = resources.iter().filter_map(|path| Some(numbers(path.rsplit_once(".so.")?.1)));
    let by_file = by_file.filter(|version| version.len() >= 3).max();
    by_file.or_else(|| {
        let of_it = wheels(examination).into_iter().find(|wheel| folder.starts_with(&wheel.folder))?;
        Some(numbers(&of_it.version)).filter(|version| version.len() >= 3)
    })
}

/// A wheel's libraries lie where neither the loader nor this tool looks.
fn by_wheel(installed: &InstalledTensorRt) -> Option<Finding> {
    let seen =
        format!("{} is in a Python wheel, which is used only if WATUS_TENSORRT_LIB names its folder", installed.name);
    let mend = format!("export WATUS_TENSORRT_LIB={}", installed.folder);
    installed.wheel.then(|| Finding::warn("wheel", seen, &[&mend]).blocking(&Purpose::ALL))
}

/// Checks a TensorRT library: whether it is new enough, and the version that its JetPack ships.
fn judge(examination: &Examination, name: &str, path: &str) -> Finding {
    let seen = format!("{name} ({path})");
    let version = name.rsplit(' ').next().unwrap_or_default();
    if name.contains("RTX") {
        return Finding::ok("tensorrt", seen);
    }
    if !at_least(version, &[8, 5]) {
        let seen = format!("{seen}; 8.5 is the oldest supported");
        return Finding::fail("tensorrt", seen, &["upgrade to JetPack 5.1 or later"], &Purpose::ALL);
    }
    match examination.platform.release() {
        Some(release) if !release.takes(version) => {
            let place = if examination.platform.container { "the host's JetPack" } else { "this JetPack" };
            let (tensorrt, cuda, cudnn) = (release.tensorrt_text(), release.cuda, release.cudnn);
            let seen = format!("{seen}; {place} ships {tensorrt} (CUDA {cuda}, cuDNN {cudnn})");
            Finding::warn(
                "tensorrt",
                seen,
                &["engines only load where the same TensorRT built them: build where you run"],
            )
        }
        _ => Finding::ok("tensorrt", seen),
    }
}

/// Checks what a build needs besides TensorRT's core in `folder`: parser, builder resources, headers (to compile this
/// tool).
fn parts(examination: &Examination, folder: &str, major: u32) -> Vec<Finding> {
    let (root, platform) = (examination.root, &examination.platform);
    let mut findings = Vec::new();
    // The parser is opened from where the core is.
    let parsers = root.find(&[folder], &format!("libnvonnxparser.so.{major}"));
    findings.push(match parsers.is_empty() {
        false => Finding::ok("onnx-parser", "libnvonnxparser is there"),
        true => {
            let mend = install(platform, &format!("libnvonnxparsers{major}"));
            let seen = format!("no libnvonnxparser.so.{major} in {folder}: ONNX models cannot be built");
            Finding::fail("onnx-parser", seen, &[&mend], &[Purpose::Build])
        }
    });
    // The core asks the loader for them, which looks in the system's folders.
    let mut loaded = folders(examination);
    loaded.push(folder.to_owned());
    // Wheels have those of Windows too.
    let mut resources = root.find(&loaded, "libnvinfer_builder_resource").into_iter();
    findings.push(match resources.all(|path| path.contains("_resource_win_")) {
        false => Finding::ok("builder-resource", "libnvinfer_builder_resource is there"),
        true => {
            let mend = reinstall(platform, &format!("libnvinfer{major}"));
            let seen = "no libnvinfer_builder_resource: engines run, but none can be built";
            let images = "in a container, use the -devel image or JetPack's";
            Finding::fail("builder-resource", seen, &[&mend, images], &[Purpose::Build])
        }
    });
    findings.extend(headers(examination));
    findings
}

/// Checks for the headers that this tool is compiled with, where it did not come as a package.
fn headers(examination: &Examination) -> Option<Finding> {
    let (root, platform) = (examination.root, &examination.platform);
    // A package's shims are files that were compiled elsewhere.
    let packaged = match root.live {
        true => !shims().found.is_empty() && shims().found.iter().all(|shim| shim.path.is_some()),
        false => !root.find(&["/usr/lib/watus-build"], "libwatus_shim-").is_empty(),
    };
    if packaged {
        return None;
    }
    let includes = [format!("/usr/include/{}-linux-gnu", platform.architecture), "/usr/include".to_owned()];
    if includes.iter().any(|folder| root.exists(&format!("{folder}/NvInfer.h"))) {
        return Some(Finding::ok("tensorrt-headers", "NvInfer.h is there"));
    }
    let mend = install(platform, "libnvinfer-dev libnvonnxparsers-dev");
    let seen = "no NvInfer.h: watus-build itself cannot be compiled with TensorRT here";
    Some(Finding::warn("tensorrt-headers", seen, &[&mend]))
}

/// Hint for a package built without the headers of this TensorRT, such as 8.5's, which may not be redistributed.
const ANOTHER_SHIM: &str = "in this version's sources: scripts/build-shims.sh OUT here=FOLDER-OF-NvInfer.h, then sudo cp \
                            OUT/*.so /usr/lib/watus-build/";

/// Checks for the shim that opens this machine's TensorRT.
fn own_binary(examination: &Examination) -> Option<Finding> {
    if !examination.root.live {
        return None;
    }
    Some(match TensorRt::open() {
        Ok(opened) => {
            let place = opened.shim.path.as_ref().map(|path| format!(" ({})", path.display())).unwrap_or_default();
            Finding::ok("shim", format!("compiled for {}{place}, opens {}", opened.shim.headers, opened.version))
        }
        Err(_) if shims().found.is_empty() => Finding::fail(
            "shim",
            "this watus-build was compiled without TensorRT",
            &[if examination.platform.is_jetson() {
                "sudo apt install libnvinfer-dev libnvonnxparsers-dev && cargo install --path ."
            } else {
                "scripts/setup-tensorrt.sh && cargo install --path ."
            }],
            &Purpose::ALL,
        ),
        Err(error) => {
            let what = error.to_string().lines().next().unwrap_or_default().to_owned();
            if what.starts_with("WATUS_TENSORRT_LIB=") {
                let mend = "set it to the folder that has libnvinfer.so, or not at all";
                return Some(Finding::fail("shim", what, &[mend], &Purpose::ALL));
            }
            // A package's shims are files; another's can be laid beside them.
            let packaged = shims().found.iter().all(|shim| shim.path.is_some());
            if what.starts_with(NONE_INSTALLED) {
                return None; // as the finding before this says
            }
            let mend = if packaged { ANOTHER_SHIM } else { "cargo install --path . --force" };
            Finding::fail("shim", what, &[mend], &Purpose::ALL)
        }
    })
}
