//! Checks CUDA, cuDNN and TensorRT: what is installed, and whether the versions fit together.

use std::path::Path;

use super::platform::numbers;
use super::{Examination, Finding, Level};
use crate::backend::tensorrt::device::Device;
use crate::backend::tensorrt::shim::shims;
use crate::backend::tensorrt::{Family, NONE_INSTALLED, TensorRt, library};
use crate::cuda_executor;

/// Properties that later checks need.
pub(super) struct Software {
    pub findings: Vec<Finding>,
    /// Version of TensorRT or TensorRT-RTX, if a library is installed.
    pub tensorrt: Option<String>,
    /// Whether it can parse ONNX and build engines.
    pub can_build: bool,
    /// Whether kernels for language models are available; also true without a GPU to run them on.
    pub kernels: bool,
}

pub(super) fn check(examination: &Examination) -> Software {
    let mut findings = vec![cuda(examination)];
    // RTX and TensorRT 10 run without cuDNN; it matters where JetPack ships it.
    findings.extend(cudnn(examination));
    let (kernels, found) = kernels(examination);
    findings.extend(found);
    let (tensorrt, found) = core(examination);
    findings.push(found);
    let mut can_build = tensorrt.is_some();
    if tensorrt.is_some() {
        for finding in parts(examination) {
            can_build &= finding.level != Level::Fail;
            findings.push(finding);
        }
    }
    findings.extend(own_binary(examination));
    Software { findings, tensorrt, can_build, kernels }
}

fn at_least(version: &str, minimum: &[u32]) -> bool {
    numbers(version).as_slice() >= minimum
}

/// CUDA's version by its version file, its runtime library or dpkg.
fn cuda_version(examination: &Examination) -> Option<String> {
    let root = examination.root;
    if let Some(text) = root.read("/usr/local/cuda/version.json")
        && let Ok(document) = serde_json::from_str::<serde_json::Value>(&text)
    {
        let version = ["cuda", "cuda_cudart", "cuda_nvcc"].iter().find_map(|part| document[part]["version"].as_str());
        if let Some(version) = version {
            return Some(version.to_owned());
        }
    }
    let libraries = root.find(&cuda_folders(examination), "libcudart.so.");
    let by_file = libraries.iter().filter_map(|path| path.rsplit_once(".so.")).map(|(_, version)| version.to_owned());
    let by_file = by_file.filter(|version| numbers(version).len() >= 2).max_by_key(|version| numbers(version));
    by_file.or_else(|| {
        let packages = examination.packages.iter().filter(|(name, _)| name.starts_with("cuda-cudart-"));
        packages.filter(|(name, _)| !name.contains("dev")).map(|(_, package)| package.upstream().to_owned()).next()
    })
}

fn cuda_folders(examination: &Examination) -> Vec<String> {
    let arch = &examination.platform.architecture;
    let (_, mut folders) = cuda_executor::compiler_files(arch);
    folders.push(format!("/usr/lib/{arch}-linux-gnu"));
    folders
}

/// Checks for the kernels of language models, compiled by NVRTC or shipped compiled in our package; returns whether
/// there are any.
fn kernels(examination: &Examination) -> (bool, Vec<Finding>) {
    let (root, jetson) = (examination.root, examination.platform.is_jetson());
    let gpu = if root.live { Device::open().is_ok() } else { root.exists("/proc/driver/nvidia/version") };
    if !jetson && !gpu {
        return (true, Vec::new());
    }
    let (compiler, packaged) = if root.live {
        let compiler = cuda_executor::try_compiler().map(|found| format!("{found} compiles"));
        (compiler, cuda_executor::packaged_kernels().map(|folder| folder.display().to_string()))
    } else {
        let folder = cuda_executor::PACKAGED_KERNELS;
        let there = root.exists(&format!("{folder}/{}", cuda_executor::packaged_kernel()));
        (compiler_of_image(examination), there.then(|| folder.to_owned()))
    };
    let able = compiler.is_ok() || packaged.is_some();
    let mut findings = vec![match compiler {
        Ok(seen) => Finding::ok("nvrtc", seen),
        Err(why) if able => Finding::ok("nvrtc", format!("{why}; none is needed")),
        Err(why) => {
            let seen = format!("{why}: language models cannot run on the GPU");
            Finding::warn("nvrtc", seen, &[&install_compiler(examination)])
        }
    }];
    findings.extend(packaged.map(|folder| Finding::ok("kernels", format!("precompiled in {folder}"))));
    (able, findings)
}

/// NVRTC in an image, by its files and packages.
fn compiler_of_image(examination: &Examination) -> Result<String, String> {
    let mut packages = examination.packages.iter();
    let package = packages.find(|(name, _)| name.starts_with("cuda-nvrtc-") && !name.contains("dev"));
    if let Some((_, package)) = package {
        return Ok(format!("NVRTC {}", package.upstream()));
    }
    let (names, _) = cuda_executor::compiler_files(&examination.platform.architecture);
    let folders = cuda_folders(examination);
    let mut paths = folders.iter().flat_map(|folder| names.iter().map(move |name| format!("{folder}/{name}")));
    let found = paths.find(|path| examination.root.exists(path));
    found.map(|path| format!("NVRTC: {path}")).ok_or_else(|| "no NVRTC".to_owned())
}

fn install_compiler(examination: &Examination) -> String {
    if !examination.platform.is_jetson() {
        return "install CUDA's NVRTC, or watus-build's package, which has the kernels compiled".to_owned();
    }
    let version = cuda_version(examination).map(|version| numbers(&version)).unwrap_or_default();
    let name = match version[..] {
        [major, minor, ..] => format!("cuda-nvrtc-{major}-{minor}"),
        _ => "nvidia-cuda".to_owned(),
    };
    format!("sudo apt install {name}")
}

fn cuda(examination: &Examination) -> Finding {
    let jetson = examination.platform.is_jetson();
    match cuda_version(examination) {
        Some(version) if at_least(&version, &[11, 4]) => Finding::ok("cuda", format!("CUDA {version}")),
        Some(version) => {
            Finding::fail("cuda", format!("CUDA {version}; 11.4 is the oldest supported"), &[upgrade(jetson)])
        }
        // The driver is enough for RTX; JetPack's TensorRT wants the runtime libraries.
        None if !jetson => Finding::ok("cuda", "no CUDA toolkit (none is needed)"),
        None => Finding::fail("cuda", "no CUDA runtime", &["sudo apt install nvidia-jetpack-runtime"]),
    }
}

fn upgrade(jetson: bool) -> &'static str {
    if jetson { "upgrade to JetPack 5.1 or later with SDK Manager" } else { "install CUDA 11.4 or later" }
}

fn cudnn(examination: &Examination) -> Option<Finding> {
    let package = examination.packages.iter().find(|(name, _)| {
        name.starts_with("libcudnn") && !name.contains("dev") && !name.contains("samples") && !name.contains("header")
    });
    let jetson = examination.platform.is_jetson();
    match package {
        Some((_, package)) if at_least(package.upstream(), &[8, 6]) => {
            Some(Finding::ok("cudnn", format!("cuDNN {}", package.upstream())))
        }
        Some((_, package)) => Some(Finding::fail(
            "cudnn",
            format!("cuDNN {}; 8.6 is the oldest supported", package.upstream()),
            &[upgrade(jetson)],
        )),
        None if jetson => Some(Finding::warn(
            "cudnn",
            "no cuDNN package (TensorRT 8 uses it for some layers)",
            &["sudo apt install nvidia-cudnn"],
        )),
        None => None,
    }
}

/// The library folders that are searched.
fn folders(examination: &Examination) -> Vec<String> {
    let folders = library::system_folders(&examination.platform.architecture);
    folders.iter().map(|folder| folder.to_string_lossy().into_owned()).collect()
}

fn core(examination: &Examination) -> (Option<String>, Finding) {
    let jetson = examination.platform.is_jetson();
    if examination.root.live {
        match (TensorRt::open(), library::installed_majors().first()) {
            (Ok(opened), _) => return judge(examination, opened.version.to_string(), &opened.files.core),
            (Err(error), Some((_, path))) => {
                let why = error.to_string();
                let what = format!("{} does not open: {}", path.display(), why.lines().next().unwrap_or_default());
                return (
                    None,
                    Finding::fail("tensorrt", what, &["`ldd` on that file tells which libraries are missing"]),
                );
            }
            (Err(_), None) => {}
        }
    }
    let libraries = examination.root.find(&folders(examination), "libnvinfer.so.");
    // libnvinfer.so.10.3.0 tells the version, the link libnvinfer.so.10 does not.
    let newest = libraries.iter().filter_map(|path| Some((path, numbers(path.rsplit_once(".so.")?.1))));
    if let Some((path, version)) =
        newest.filter(|(_, version)| version.len() >= 3).max_by_key(|(_, version)| version.clone())
    {
        let version: Vec<String> = version.iter().take(3).map(u32::to_string).collect();
        return judge(examination, format!("TensorRT {}", version.join(".")), Path::new(path));
    }
    // An examined image is of another machine, where this package may not be.
    let mend = if examination.root.live || jetson { library::remedy(jetson) } else { library::SETUP.to_owned() };
    (None, Finding::fail("tensorrt", "no TensorRT library", &[mend.as_str()]))
}

/// Checks a TensorRT library: whether it is new enough, and the version that its JetPack ships.
fn judge(examination: &Examination, name: String, path: &Path) -> (Option<String>, Finding) {
    let seen = format!("{name} ({})", path.display());
    let version = name.rsplit(' ').next().unwrap_or_default();
    let finding = if !name.contains("RTX") && !at_least(version, &[8, 5]) {
        Finding::fail("tensorrt", format!("{seen}; 8.5 is the oldest supported"), &["upgrade to JetPack 5.1 or later"])
    } else {
        match examination.platform.release() {
            Some(release) if !name.contains("RTX") && !version.starts_with(release.tensorrt) => {
                let place = if examination.platform.container { "the host's JetPack" } else { "this JetPack" };
                Finding::warn(
                    "tensorrt",
                    format!(
                        "{seen}; {place} ships {} (CUDA {}, cuDNN {})",
                        release.tensorrt, release.cuda, release.cudnn
                    ),
                    &["engines only load where the same TensorRT built them: build where you run"],
                )
            }
            _ => Finding::ok("tensorrt", seen),
        }
    };
    (Some(name), finding)
}

/// Checks what a build needs besides TensorRT's core: parser, headers (to compile this tool), builder resources.
fn parts(examination: &Examination) -> Vec<Finding> {
    let root = examination.root;
    let mut folders = folders(examination);
    let mut findings = Vec::new();
    let opened = root.live.then(|| TensorRt::open().ok()).flatten();
    if opened.as_ref().is_some_and(|opened| opened.version.family == Family::Rtx) {
        return findings; // one library and its parser, found together
    }
    // They are opened from where the core is.
    let beside = opened.as_ref().and_then(|opened| opened.files.core.parent());
    folders.extend(beside.map(|folder| folder.to_string_lossy().into_owned()));
    if root.find(&folders, "libnvonnxparser.so.").is_empty() {
        let package = examination
            .packages
            .keys()
            .find(|name| name.starts_with("libnvinfer") && name[10..].parse::<u32>().is_ok());
        let major = package.map_or("", |name| &name[10..]);
        findings.push(Finding::fail(
            "onnx-parser",
            "no libnvonnxparser: ONNX models cannot be built",
            &[&format!("sudo apt install libnvonnxparsers{major}")],
        ));
    } else {
        findings.push(Finding::ok("onnx-parser", "libnvonnxparser is there"));
    }
    if root.find(&folders, "libnvinfer_builder_resource").is_empty() {
        findings.push(Finding::fail(
            "builder-resource",
            "no libnvinfer_builder_resource: engines run, but none can be built",
            &["sudo apt install --reinstall tensorrt-libs", "in a container, use the -devel image or JetPack's"],
        ));
    } else {
        findings.push(Finding::ok("builder-resource", "libnvinfer_builder_resource is there"));
    }
    let arch = &examination.platform.architecture;
    let includes = [format!("/usr/include/{arch}-linux-gnu"), "/usr/include".to_owned()];
    // A package's shims are files that were compiled elsewhere.
    let is_packaged = || !shims().found.is_empty() && shims().found.iter().all(|shim| shim.path.is_some());
    if root.live && is_packaged() {
        return findings;
    }
    if includes.iter().any(|folder| root.exists(&format!("{folder}/NvInfer.h"))) {
        findings.push(Finding::ok("tensorrt-headers", "NvInfer.h is there"));
    } else {
        findings.push(Finding::warn(
            "tensorrt-headers",
            "no NvInfer.h: watus-build itself cannot be compiled with TensorRT here",
            &["sudo apt install libnvinfer-dev libnvonnxparsers-dev"],
        ));
    }
    findings
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
        ),
        Err(error) => {
            let what = error.to_string().lines().next().unwrap_or_default().to_owned();
            if what.starts_with("WATUS_TENSORRT_LIB=") {
                return Some(Finding::fail(
                    "shim",
                    what,
                    &["set it to the folder that has libnvinfer.so, or not at all"],
                ));
            }
            // A package's shims are files; another's can be laid beside them.
            let packaged = shims().found.iter().all(|shim| shim.path.is_some());
            if what.starts_with(NONE_INSTALLED) {
                return None; // as the finding before this says
            }
            Finding::fail("shim", what, &[if packaged { ANOTHER_SHIM } else { "cargo install --path . --force" }])
        }
    })
}
