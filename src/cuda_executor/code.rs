//! Provides the PTX of our kernels: from the package, cached since an earlier start, or compiled by NVRTC.
//!
//! All of it is for compute capability 8.0, the oldest supported, and the driver translates it for the GPU: NVRTC 11.7
//! to 13.0 compile our sources for 8.7 and 9.0 to the same text except for `.target`; what 13.0 compiles for 11.0
//! differs, and was not measured (`scripts/nvrtc-matrix.sh`). So the package's PTX, which needs no compiler and no
//! time, is preferred. A file's name is the SHA-256 of source and options, so that an outdated one is never used.

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
use crate::confined;
use crate::diagnostic::Diagnostic;

/// Folder of precompiled kernels in packages.
pub const PACKAGED_KERNELS: &str = "/usr/lib/watus-build/kernels";
/// Environment variable with a folder of precompiled kernels, instead of the package's.
const FOLDER: &str = "WATUS_KERNELS";
/// Largest file in bytes that is read; the largest that exists has 1.1 MB.
const LONGEST: u64 = 16 << 20;

/// Options for every source. CUDA 11's compiler defaults to C++03.
const OPTIONS: [&str; 2] = ["--std=c++17", "--gpu-architecture=compute_80"];

/// PTX version that our sources need: their newest instruction is cp.async's `L2::128B` of PTX 7.4 (PTX ISA,
/// "cp.async"), which is CUDA 11.4's.
const NEEDED_PTX: &str = "7.4";

const MEND: &str = "`sudo apt install cuda-nvrtc-XX-Y` for your CUDA (JetPack's nvidia-jetpack has it), or install \
                    watus-build's package, which has them compiled; `watus-build doctor` looks for both";

/// All options, in the order that determines a file's name.
fn complete(options: &[String]) -> Vec<String> {
    OPTIONS.iter().map(|option| (*option).to_owned()).chain(options.iter().cloned()).collect()
}

/// Name of the file with a source's PTX.
pub(super) fn name(source: &str, options: &[String]) -> String {
    format!("{}.ptx", sha256(format!("{} {source}", complete(options).join(" ")).as_bytes()))
}

/// Folders to search for precompiled kernels: the one that `WATUS_KERNELS` names, or those of the package that this
/// program belongs to, wherever that is unpacked.
fn packaged() -> Vec<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER).filter(|folder| !folder.is_empty()) {
        return vec![folder.into()];
    }
    let beside = confined::file().and_then(|program| of_package(&program));
    beside.into_iter().chain([PathBuf::from(PACKAGED_KERNELS)]).collect()
}

/// The kernels' folder of the package that contains `program`.
fn of_package(program: &Path) -> Option<PathBuf> {
    Some(program.parent()?.parent()?.join("lib/watus-build/kernels"))
}

/// The folder of precompiled kernels that contains `file`, if there is one.
pub(super) fn packaged_with(file: &str) -> Option<PathBuf> {
    packaged().into_iter().find(|folder| folder.join(file).is_file())
}

/// Names of NVRTC's library, and CUDA's folders to search.
pub fn compiler_files(architecture: &str) -> (&'static [&'static str], Vec<String>) {
    (&nvrtc::NAMES, nvrtc::folders(architecture))
}

/// Tests NVRTC: opens it, compiles a kernel of one line and, if there is a GPU, loads that. Returns its name and
/// version, or what is wrong.
pub fn try_compiler() -> Result<String, String> {
    let nvrtc = Nvrtc::open()?;
    let compiled = nvrtc.compile("extern \"C\" __global__ void nothing() {}", &complete(&[]))?;
    if let Ok(device) = Device::open() {
        module(&device, &compiled.code)
            .map_err(|error| format!("the driver refuses what {nvrtc} compiles: {}", text(error)))?;
    }
    Ok(nvrtc.to_string())
}

/// Loads a source's kernels on the device.
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

/// Reads a file of PTX, if it exists and is text that the driver accepts.
fn read(path: &Path) -> Option<String> {
    let text = crate::regular_file::read_text(path, LONGEST).ok()?;
    (!text.contains('\0')).then_some(text)
}

fn keep(path: &Path, code: &str) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    write_file(path, code.as_bytes()).map(drop)
}

/// Loads PTX. A driver older than the compiler refuses the PTX version in the header, which is the compiler's and not
/// what the code needs.
fn module(device: &Device, code: &str) -> Result<Arc<CudaModule>, DriverError> {
    match device.context.load_module(Ptx::from_src(code)) {
        Err(DriverError(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION)) => {
            device.context.load_module(Ptx::from_src(as_needed(code)))
        }
        loaded => loaded,
    }
}

/// PTX with the version in its header that the code needs, instead of its compiler's.
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

    /// The compilers that `WATUS_TEST_NVRTC` names (paths separated by `:`), or the installed one.
    fn compilers() -> Vec<Nvrtc> {
        match std::env::var("WATUS_TEST_NVRTC") {
            Ok(paths) => paths.split(':').map(|path| Nvrtc::open_at(path).unwrap()).collect(),
            Err(_) => nvrtc::NAMES.iter().filter_map(|name| Nvrtc::open_at(name).ok()).take(1).collect(),
        }
    }

    /// Compiles every kernel with every compiler, without a warning. For other architectures the result is the same
    /// text, so that not every variant is compiled for each.
    #[test]
    fn kernels_compile_with_every_compiler() {
        let compilers = compilers();
        if compilers.is_empty() {
            eprintln!("SKIPPED kernels_compile_with_every_compiler: libnvrtc was not found");
        }
        assert!(std::env::var("CI").as_deref() != Ok("true") || compilers.len() > 2, "CI tries CUDA 11.8, 12 and 13");
        let names = "RING_DEPTH SLOT_BYTES WORK_BYTES TILE_KINDS KV_BITS ELEMENT ROW_BLOCKS SHARED_SLOTS QUERY_BLOCKS";
        let names: Vec<&str> = names.split(' ').collect();
        let step = ["dequantize_int4", "dequantize_int8", "top_logits"];
        // Plain weights on a large GPU, one kind of packed ones on it, also for 64 rows, in bfloat16 on a small one.
        let variants: [(&str, &str, &[&str]); 4] = [
            ("6 4096 32768 0 16 1", "decode_f16", &["compute_80"]),
            ("4 4352 81920 1 8 1", "decode_f16", &["compute_80"]),
            ("4 4352 81920 1 16 1 8 1 4", "decode_f16", &["compute_80"]),
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
                    let mut options = vec![OPTIONS[0].to_owned(), format!("--gpu-architecture={architecture}")];
                    options.extend(
                        names.iter().zip(numbers.split(' ')).map(|(name, number)| format!("-D{name}={number}")),
                    );
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
