//! Code of our kernels (PTX): from the package, kept since an earlier start, or compiled here by NVRTC.
//!
//! All of it is for compute capability 8.0, the oldest we serve, and the driver translates it for the GPU there is: what NVRTC
//! 11.7 to 13.0 make of our sources for 8.7 and 9.0 is the same text but for its `.target`, and what 13.0 makes for 11.0 is
//! another's work, which nobody has measured (`scripts/nvrtc-matrix.sh`). So the package's code, which costs no compiler and no
//! time, comes first. A file is called by the SHA-256 of source and options, so that nothing old is ever taken.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaModule, DriverError};
use cudarc::nvrtc::Ptx;

use super::driver::device_error;
use super::nvrtc::{self, Nvrtc};
use crate::artifact::{cache_dir, sha256, write_file};
use crate::backend::BackendError;
use crate::backend::tensorrt::device::Device;
use crate::diagnostic::Diagnostic;

/// Where packages keep compiled kernels.
pub const PACKAGED_KERNELS: &str = "/usr/lib/watus-build/kernels";
/// Names a folder of compiled kernels instead of the package's.
const FOLDER: &str = "WATUS_KERNELS";
/// Longest file that is read; the longest there is has 1.1 MB.
const LONGEST: u64 = 16 << 20;

/// What every source is compiled with. CUDA 11's compiler speaks C++03 unless told.
const OPTIONS: [&str; 2] = ["--std=c++17", "--gpu-architecture=compute_80"];

/// The newest instruction in our sources, cp.async's `L2::128B`, came with PTX 7.4 (PTX ISA, "cp.async"), which is CUDA 11.4's.
const NEEDED_PTX: &str = "7.4";

const MEND: &str = "`sudo apt install cuda-nvrtc-XX-Y` for your CUDA (JetPack's nvidia-jetpack has it), or install \
                    watus-build's package, which has them compiled; `watus-build doctor` looks for both";

/// All options, in the order in which they name a file.
fn complete(options: &[String]) -> Vec<String> {
    OPTIONS.iter().map(|option| (*option).to_owned()).chain(options.iter().cloned()).collect()
}

/// Name of the file with a source's code.
pub(super) fn name(source: &str, options: &[String]) -> String {
    format!("{}.ptx", sha256(format!("{} {source}", complete(options).join(" ")).as_bytes()))
}

/// Folders that may have precompiled kernels: the one that `WATUS_KERNELS` names, or those of the package this program
/// belongs to, wherever it lies.
fn packaged() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER).filter(|folder| !folder.is_empty()) {
        return vec![folder.into()];
    }
    let program = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let beside = program.and_then(|program| of_package(&program));
    beside.into_iter().chain([PathBuf::from(PACKAGED_KERNELS)]).collect()
}

/// The folder of kernels of a package whose program this is.
fn of_package(program: &Path) -> Option<PathBuf> {
    Some(program.parent()?.parent()?.join("lib/watus-build/kernels"))
}

/// The folder of precompiled kernels that has a file, if there is one.
pub(super) fn packaged_with(file: &str) -> Option<PathBuf> {
    packaged().into_iter().find(|folder| folder.join(file).is_file())
}

/// Names of NVRTC's library, and CUDA's folders that may have it.
pub fn compiler_files(architecture: &str) -> (&'static [&'static str], Vec<String>) {
    (&nvrtc::NAMES, nvrtc::folders(architecture))
}

/// Tries NVRTC: opens it, lets it compile a kernel of one line and, where there is a GPU, its driver read that. Returns what
/// it is called, or what is wrong.
pub fn try_compiler() -> Result<String, String> {
    let nvrtc = Nvrtc::open()?;
    let compiled = nvrtc.compile("extern \"C\" __global__ void nothing() {}", &complete(&[]))?;
    if let Ok(device) = Device::open() {
        module(&device, &compiled.code)
            .map_err(|error| format!("the driver refuses what {nvrtc} compiles: {}", text(error)))?;
    }
    Ok(nvrtc.to_string())
}

/// A source's kernels on the device.
pub(super) fn load(device: &Device, source: &str, options: &[String]) -> Result<Arc<CudaModule>, BackendError> {
    let name = name(source, options);
    let kept = cache_dir().join("kernels").join(&name);
    let mut refused = String::new();
    for path in packaged().iter().map(|folder| folder.join(&name)).chain([kept.clone()]) {
        let Some(code) = read(&path) else { continue };
        match module(device, &code) {
            Ok(module) => return Ok(module),
            Err(error) => refused = format!("; the driver refuses {}: {}", path.display(), text(error)),
        }
    }
    let lacking = |why: String| BackendError::Kernels {
        what: format!("kernels for language models are neither precompiled here nor to be compiled: {why}{refused}"),
        help: MEND.to_owned(),
    };
    let begun = Instant::now();
    let nvrtc = Nvrtc::open().map_err(lacking)?;
    let code = nvrtc.compile(source, &complete(options)).map_err(lacking)?.code;
    let seconds = begun.elapsed().as_secs_f64();
    let module = module(device, &code)
        .map_err(|error| lacking(format!("the driver refuses what {nvrtc} compiles: {}", text(error))))?;
    match keep(&kept, &code) {
        Ok(()) => tracing::info!("compiled kernels in {seconds:.1} s with {nvrtc}, kept as {}", kept.display()),
        Err(error) => {
            let what = format!(
                "compiled kernels in {seconds:.1} s with {nvrtc}, at every start: {} cannot be written ({error})",
                kept.display()
            );
            let told = Diagnostic::new(what).with_help("set WATUS_CACHE_DIR to a folder that can");
            tracing::warn!("{told}");
        }
    }
    Ok(module)
}

fn text(error: DriverError) -> String {
    device_error(error).to_string()
}

/// A file of code, if it is there and is text as the driver takes it.
fn read(path: &Path) -> Option<String> {
    let text = crate::regular_file::read_text(path, LONGEST).ok()?;
    (!text.contains('\0')).then_some(text)
}

fn keep(path: &Path, code: &str) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    write_file(path, code.as_bytes()).map(drop)
}

/// The device's own code. A driver older than the compiler refuses code for the version in its head, which is the compiler's
/// and not what the code needs.
fn module(device: &Device, code: &str) -> Result<Arc<CudaModule>, DriverError> {
    match device.context.load_module(Ptx::from_src(code)) {
        Err(DriverError(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION)) => {
            device.context.load_module(Ptx::from_src(as_needed(code)))
        }
        loaded => loaded,
    }
}

/// Code whose head asks for what it needs, not for what its compiler knew.
fn as_needed(code: &str) -> String {
    const DIRECTIVE: &str = ".version ";
    let lines = code.lines().map(|line| match line.strip_prefix(DIRECTIVE) {
        Some(_) => format!("{DIRECTIVE}{NEEDED_PTX}\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

#[cfg(test)]
#[allow(clippy::print_stderr)]
mod tests {
    use super::super::{aux_kernels, decode_kernel};
    use super::*;

    /// The compilers that `WATUS_TEST_NVRTC` names (paths with `:` between them), or the one there is.
    fn compilers() -> Vec<Nvrtc> {
        match std::env::var("WATUS_TEST_NVRTC") {
            Ok(paths) => paths.split(':').map(|path| Nvrtc::open_at(path).unwrap()).collect(),
            Err(_) => nvrtc::NAMES.iter().filter_map(|name| Nvrtc::open_at(name).ok()).take(1).collect(),
        }
    }

    /// Every kernel, by every compiler, without a warning. What is made for other architectures is the same text, so not
    /// every variant is compiled for each.
    #[test]
    fn kernels_compile_with_every_compiler() {
        let compilers = compilers();
        if compilers.is_empty() {
            eprintln!("SKIPPED kernels_compile_with_every_compiler: libnvrtc was not found");
        }
        assert!(std::env::var("CI").as_deref() != Ok("true") || compilers.len() > 2, "CI tries CUDA 11.8, 12 and 13");
        let step = ["dequantize_int4", "dequantize_int8", "top_logits"];
        // Plain weights on a large GPU, one kind of packed ones on it, in bfloat16 on a small one.
        let variants: [(&str, &str, &[&str]); 3] = [
            ("6 4096 32768 0 16 1", "decode_f16", &["compute_80"]),
            ("4 4352 81920 1 8 1", "decode_f16", &["compute_80"]),
            ("2 4096 32768 0 16 2", "decode_bf16", &["compute_87", "compute_90", "compute_110"]),
        ];
        for nvrtc in &compilers {
            let compile = |source: &str, options: &[String], names: &[&str]| {
                let compiled = nvrtc.compile(source, options).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(compiled.log, "", "{nvrtc}");
                for name in names {
                    assert!(compiled.code.contains(&format!(".entry {name}(")), "{name} is not what {nvrtc} made");
                }
            };
            let around = ["transpose", "convert", "mask", "rotary", "append", "append8", "widen8", "spread"];
            compile(aux_kernels::SOURCE, &complete(&[]), &around);
            for (numbers, entry, architectures) in variants {
                for architecture in architectures.iter().filter(|name| nvrtc.knows(name)) {
                    let names =
                        ["RING_DEPTH", "SLOT_BYTES", "WORK_BYTES", "TILE_KINDS", "KV_BITS", "ELEMENT"].into_iter();
                    let mut options = vec![OPTIONS[0].to_owned(), format!("--gpu-architecture={architecture}")];
                    options.extend(names.zip(numbers.split(' ')).map(|(name, number)| format!("-D{name}={number}")));
                    compile(decode_kernel::SOURCE, &options, &[&step[..], &[entry][..]].concat());
                }
            }
        }
    }

    #[test]
    fn code_is_called_by_what_it_is_made_of() {
        let options = ["-DX=1".to_owned()];
        let names = [name("a", &[]), name("b", &[]), name("a", &options), name(aux_kernels::SOURCE, &[])];
        for (at, one) in names.iter().enumerate() {
            assert_eq!((one.len(), names.iter().filter(|name| *name == one).count()), (64 + 4, 1), "{at}");
        }
        // As `printf '%s' '--std=c++17 --gpu-architecture=compute_80 -DX=1 a' | sha256sum` has it: the script names files so.
        assert_eq!(names[2], "a47ed295731bb681db3e2b4c4874d5627f62136c05c1fcee9303cf07d06a25c5.ptx");
    }

    #[test]
    fn a_package_has_its_kernels_beside_its_program() {
        for (program, folder) in [
            ("/usr/bin/watus-build", Some(PACKAGED_KERNELS)),
            ("/opt/watus/bin/watus-build", Some("/opt/watus/lib/watus-build/kernels")),
            ("/watus-build", None),
        ] {
            assert_eq!(of_package(Path::new(program)), folder.map(PathBuf::from));
        }
    }

    #[test]
    fn an_older_driver_is_asked_for_what_is_needed() {
        let code = "//\n// .version 9.0 by NVRTC\n//\n\n.version 9.0\n.target sm_80\n.address_size 64\n\n.visible .entry f()\n";
        assert_eq!(as_needed(code), code.replace("\n.version 9.0\n", "\n.version 7.4\n"));
    }

    #[test]
    fn what_is_no_text_is_no_code() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.ptx");
        assert_eq!(read(&path), None);
        for (bytes, text) in [(&b".version 7.4\n"[..], Some(".version 7.4\n")), (b"a\0b", None), (b"\xff", None)] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read(&path).as_deref(), text);
        }
    }
}
