//! Checks CUDA, cuDNN, and the kernels of language models: what is installed, and whether it is new enough.

use super::advice::install;
use super::platform::numbers;
use super::{Examination, Finding, Purpose};
use crate::backend::tensorrt::device::Device;
use crate::cuda_executor;

pub(super) fn check(examination: &Examination) -> Vec<Finding> {
    let mut findings = vec![cuda(examination)];
    // RTX and TensorRT 10 run without cuDNN; it matters where JetPack ships it.
    findings.extend(cudnn(examination));
    findings.extend(kernels(examination));
    findings
}

pub(super) fn at_least(version: &str, minimum: &[u32]) -> bool {
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

/// Checks for the kernels of language models, compiled by NVRTC or shipped compiled in our package. Where there is no GPU
/// to run them on, none are asked for.
fn kernels(examination: &Examination) -> Vec<Finding> {
    let (root, jetson) = (examination.root, examination.platform.is_jetson());
    let gpu = if root.live { Device::open().is_ok() } else { root.exists("/proc/driver/nvidia/version") };
    if !jetson && !gpu {
        return Vec::new();
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
            Finding::warn("nvrtc", seen, &[&install_compiler(examination)]).blocking(&[Purpose::Llm])
        }
    }];
    findings.extend(packaged.map(|folder| Finding::ok("kernels", format!("precompiled in {folder}"))));
    findings
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
    install(&examination.platform, &name)
}

fn cuda(examination: &Examination) -> Finding {
    let jetson = examination.platform.is_jetson();
    match cuda_version(examination) {
        Some(version) if at_least(&version, &[11, 4]) => Finding::ok("cuda", format!("CUDA {version}")),
        Some(version) => {
            let seen = format!("CUDA {version}; 11.4 is the oldest supported");
            Finding::fail("cuda", seen, &[upgrade(jetson)], &Purpose::ALL)
        }
        // The driver is enough for RTX; JetPack's TensorRT wants the runtime libraries.
        None if !jetson => Finding::ok("cuda", "no CUDA toolkit (none is needed)"),
        None => {
            let mend = install(&examination.platform, "nvidia-jetpack-runtime");
            Finding::fail("cuda", "no CUDA runtime", &[&mend], &Purpose::ALL)
        }
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
        Some((_, package)) => {
            let seen = format!("cuDNN {}; 8.6 is the oldest supported", package.upstream());
            Some(Finding::fail("cudnn", seen, &[upgrade(jetson)], &Purpose::ALL))
        }
        None if jetson => {
            let mend = install(&examination.platform, "nvidia-cudnn");
            Some(Finding::warn("cudnn", "no cuDNN package (TensorRT 8 uses it for some layers)", &[&mend]))
        }
        None => None,
    }
}
