//! Finds TensorRT's headers and compiles the C++ of the shim against them.
//!
//! Without headers the crate still builds: `cfg(watus_tensorrt)` stays off and the tool says at run time what is missing.

use std::env;
use std::path::{Path, PathBuf};

/// The version `scripts/setup-tensorrt.sh` installs, and the folder it installs it to, below the data directory.
const PROVISIONED: &str = "watus-build/tensorrt-rtx-1.6.1.120/include";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(watus_tensorrt)");
    println!("cargo::rerun-if-env-changed=WATUS_TENSORRT_INCLUDE");
    for part in ["include", "src", "stub", "build.rs"] {
        println!("cargo::rerun-if-changed={part}");
    }
    let folders = candidates();
    let complete = |folder: &&PathBuf| ["NvInfer.h", "NvOnnxParser.h"].iter().all(|name| folder.join(name).is_file());
    if let Some(folder) = folders.iter().find(complete) {
        println!("cargo::rerun-if-changed={}", folder.join("NvInfer.h").display());
        return compile(folder);
    }
    // Watching a file that is not there runs this script every time, until there is one.
    for folder in &folders {
        println!("cargo::rerun-if-changed={}", folder.join("NvInfer.h").display());
    }
    if folders.is_empty() {
        return;
    }
    println!(
        "cargo::warning=no TensorRT headers found: building without TensorRT. Run scripts/setup-tensorrt.sh (x86-64), \
         install libnvinfer-dev and libnvonnxparsers-dev (Jetson), or set WATUS_TENSORRT_INCLUDE"
    );
}

/// Where headers may be, best first: named, of the system (JetPack), provisioned per user.
fn candidates() -> Vec<PathBuf> {
    if let Some(named) = env::var_os("WATUS_TENSORRT_INCLUDE") {
        // Set to nothing: none is wanted, as for packages, whose shims are files of their own.
        return if named.is_empty() { Vec::new() } else { vec![named.into()] };
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let mut folders = vec![
        PathBuf::from(format!("/usr/include/{arch}-linux-gnu")),
        "/usr/include".into(),
        "/usr/local/tensorrt/include".into(),
    ];
    let data = env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    folders.extend(data.or(home).map(|folder| folder.join(PROVISIONED)));
    folders
}

fn compile(include: &Path) {
    println!("cargo::rustc-cfg=watus_tensorrt");
    cxx_build::bridge("src/bridge.rs")
        .files(["library.cc", "builder.cc", "session.cc"].map(|file| Path::new("src").join(file)))
        .includes(["include", "stub"])
        // NVIDIA's headers warn of their own deprecations; -isystem keeps our warnings readable.
        .flag(format!("-isystem{}", include.display()))
        .std("c++17")
        .flag_if_supported("-Wno-deprecated-declarations")
        .compile("watus_shim");
}
