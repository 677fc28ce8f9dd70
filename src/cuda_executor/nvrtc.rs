//! NVRTC, CUDA's runtime compiler, opened at run time under the names it has had since CUDA 11.2.
//!
//! cudarc's own loader knows neither `libnvrtc.so.11.2`, the library of CUDA 11.2 to 11.8, nor `libnvrtc.so.13`, and
//! accepts no path; runtime packages have no other name. So the few functions needed are called from here.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs;
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::OnceLock;

use libloading::Library;

/// Library names in the order they are tried: the development package's, which an administrator chose; then those of
/// CUDA 13, 12, and 11.2 to 11.8.
pub(super) const NAMES: [&str; 4] = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"];

/// CUDA's library folders outside the loader's search path: JetPack 5 and 6 have the second, 7 (SBSA) the third.
pub(super) fn folders(architecture: &str) -> Vec<String> {
    let mut folders = vec!["/usr/local/cuda/lib64".to_owned()];
    let targets: &[&str] = if architecture == "aarch64" { &["aarch64-linux", "sbsa-linux"] } else { &["x86_64-linux"] };
    folders.extend(targets.iter().map(|target| format!("/usr/local/cuda/targets/{target}/lib")));
    folders
}

/// `nvrtcProgram`.
type ProgramHandle = *mut c_void;

/// The functions used, as declared in nvrtc.h; all exist since CUDA 7.
struct Functions {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut ProgramHandle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(ProgramHandle, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut ProgramHandle) -> c_int,
    code: ProgramText,
    log: ProgramText,
}

/// Functions for a text of a program: its size with the final zero, and its content.
struct ProgramText {
    size: unsafe extern "C" fn(ProgramHandle, *mut usize) -> c_int,
    get: unsafe extern "C" fn(ProgramHandle, *mut c_char) -> c_int,
}

impl Functions {
    /// # Safety
    /// `library` is NVRTC, and stays open as long as the functions are called.
    unsafe fn of(library: &Library) -> Result<Self, libloading::Error> {
        // SAFETY: types as nvrtc.h has them.
        unsafe {
            Ok(Self {
                version: *library.get("nvrtcVersion")?,
                error: *library.get("nvrtcGetErrorString")?,
                create: *library.get("nvrtcCreateProgram")?,
                compile: *library.get("nvrtcCompileProgram")?,
                destroy: *library.get("nvrtcDestroyProgram")?,
                code: ProgramText { size: *library.get("nvrtcGetPTXSize")?, get: *library.get("nvrtcGetPTX")? },
                log: ProgramText {
                    size: *library.get("nvrtcGetProgramLogSize")?,
                    get: *library.get("nvrtcGetProgramLog")?,
                },
            })
        }
    }

    fn check(&self, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: takes any number; what it returns is a constant, or null.
        let text = unsafe { (self.error)(code) };
        if text.is_null() {
            return Err(format!("error {code}"));
        }
        // SAFETY: a constant that ends in zero.
        Err(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    fn text(&self, program: ProgramHandle, text: &ProgramText) -> Result<String, String> {
        let mut size = 0;
        // SAFETY: the program is NVRTC's and was not destroyed.
        self.check(unsafe { (text.size)(program, &raw mut size) })?;
        let mut bytes = vec![0_u8; size];
        if size > 0 {
            // SAFETY: as above; the buffer is as large as it said.
            self.check(unsafe { (text.get)(program, bytes.as_mut_ptr().cast()) })?;
        }
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(size);
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

/// An open NVRTC library.
pub(super) struct Nvrtc {
    functions: Functions,
    /// Version, major and minor.
    version: (c_int, c_int),
    /// Name or path that it was opened by.
    path: String,
    /// The libraries that the functions belong to.
    _libraries: Vec<Library>,
}

impl std::fmt::Display for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NVRTC {}.{} ({})", self.version.0, self.version.1, self.path)
    }
}

/// Result of a compilation.
#[derive(Debug)]
pub(super) struct CompiledSource {
    /// PTX.
    pub(super) code: String,
    /// Warnings; empty if there are none.
    #[cfg_attr(not(test), allow(dead_code))]
    pub(super) log: String,
}

impl Nvrtc {
    /// Opens the first library that can be opened, once.
    pub(super) fn open() -> Result<&'static Self, String> {
        static FOUND: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
        FOUND.get_or_init(Self::find).as_ref().map_err(Clone::clone)
    }

    fn find() -> Result<Self, String> {
        // The loader first: LD_LIBRARY_PATH, then what the system knows.
        let mut paths: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
        for folder in folders(std::env::consts::ARCH) {
            paths.extend(NAMES.iter().map(|name| format!("{folder}/{name}")));
            paths.extend(others(Path::new(&folder)));
        }
        let mut why = Vec::new();
        for path in paths {
            match Self::open_at(&path) {
                Ok(nvrtc) => return Ok(nvrtc),
                // Of what is not there nothing need be said.
                Err(error) if Path::new(&path).exists() => why.push(error),
                Err(_) => {}
            }
        }
        if why.is_empty() {
            return Err(format!(
                "libnvrtc was not found ({} on the loader's path and in {})",
                NAMES.join(", "),
                folders(std::env::consts::ARCH).join(", ")
            ));
        }
        Err(why.join("; "))
    }

    /// Opens the library with this name or path.
    pub(super) fn open_at(path: &str) -> Result<Self, String> {
        let fail = |error: &dyn std::fmt::Display| format!("{path}: {error}");
        // SAFETY: the compiler's initialisers may run here as anywhere.
        let library = unsafe { Library::new(path) }.map_err(|error| fail(&error))?;
        // SAFETY: it is kept open beside them.
        let functions = unsafe { Functions::of(&library) }.map_err(|error| fail(&error))?;
        let mut version = (0, 0);
        // SAFETY: writes two numbers.
        functions
            .check(unsafe { (functions.version)(&raw mut version.0, &raw mut version.1) })
            .map_err(|error| fail(&error))?;
        if version < (11, 2) {
            return Err(fail(&format!("NVRTC {}.{} is older than 11.2", version.0, version.1)));
        }
        let mut libraries = vec![library];
        // NVRTC opens its built-in functions by name alone, and CUDA 13's does not look beside itself: once open, they are
        // found wherever they lie.
        if let Some(folder) = Path::new(path).parent().filter(|folder| folder.is_absolute()) {
            let builtins = folder.join(format!("libnvrtc-builtins.so.{}.{}", version.0, version.1));
            // SAFETY: a part of NVRTC.
            libraries.extend(unsafe { Library::new(builtins) });
        }
        Ok(Self { functions, version, path: path.to_owned(), _libraries: libraries })
    }

    #[cfg(test)]
    pub(super) fn knows(&self, architecture: &str) -> bool {
        architecture != "compute_110" || self.version >= (13, 0)
    }

    /// Compiles a source to PTX; the error has the compiler's log.
    pub(super) fn compile(&self, source: &str, options: &[String]) -> Result<CompiledSource, String> {
        let zero = |_: std::ffi::NulError| format!("{self}: a zero in what is compiled");
        let source = CString::new(source).map_err(zero)?;
        let options = options.iter().map(|option| CString::new(option.as_str())).collect::<Result<Vec<_>, _>>();
        let options = options.map_err(zero)?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).map_err(|error| error.to_string())?;
        let functions = &self.functions;
        let mut program = null_mut();
        // SAFETY: source, name and options live until the program is destroyed; there are no headers.
        let created =
            unsafe { (functions.create)(&raw mut program, source.as_ptr(), c"kernels.cu".as_ptr(), 0, null(), null()) };
        functions.check(created).map_err(|error| format!("{self}: {error}"))?;
        // SAFETY: as many options as it says.
        let compiled = functions.check(unsafe { (functions.compile)(program, count, pointers.as_ptr()) });
        let log = functions.text(program, &functions.log).unwrap_or_default();
        let code = compiled.and_then(|()| functions.text(program, &functions.code));
        // SAFETY: created above, and not used again.
        let _ = unsafe { (functions.destroy)(&raw mut program) };
        match code {
            Ok(code) => Ok(CompiledSource { code, log: log.trim().to_owned() }),
            // The first errors say what is the matter; a hundred follow from them.
            Err(error) => {
                let first: Vec<&str> =
                    log.lines().filter(|line| line.contains("error")).take(2).map(str::trim).collect();
                Err(format!("{self}: {error}: {}", first.join(" ")).trim_end_matches([':', ' ']).to_owned())
            }
        }
    }
}

/// Libraries of later CUDA versions in a folder, whose names are not known yet.
fn others(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| name.starts_with("libnvrtc.so.") && !NAMES.contains(&name.as_str())).collect();
    names.sort();
    names.iter().map(|name| folder.join(name).to_string_lossy().into_owned()).collect()
}
