//! Whether an engine directory was built for this machine and this program, and the command that builds it again.

use std::path::{Path, PathBuf};

use super::{BackendChoice, EngineDir};
use crate::backend::BackendError;
use crate::backend::tensorrt::{TensorRt, device::Device};
use crate::diagnostic::Diagnostic;
use crate::l4t;
use crate::spec::{DeviceInfo, Version};

/// This program as manifests name it.
pub const TOOL: &str = concat!("watus-build ", env!("CARGO_PKG_VERSION"));

/// What an engine has to fit: the TensorRT and the GPU of this machine, as far as it has them.
#[derive(Debug, Clone, Default)]
pub struct Here {
    /// The installed TensorRT.
    pub tensorrt: Option<Version>,
    /// The GPU.
    pub device: Option<DeviceInfo>,
}

impl Here {
    /// Looks for both, which loads CUDA's driver.
    pub fn look() -> Self {
        let device = Device::open().and_then(|device| device.info()).ok();
        Self { tensorrt: TensorRt::open().ok().map(|tensorrt| tensorrt.version), device }
    }
}

impl EngineDir {
    /// The error for an engine that was built for another machine or by another version of this tool, with the command
    /// that builds it again.
    pub fn foreign(&self, why: &str) -> BackendError {
        let what = Diagnostic::new(format!("{} {why}", self.manifest.name));
        BackendError::Foreign(what.with_help(format!("build it again here: {}", self.rebuild_command())))
    }

    /// The recipe that it was built from, if it is still there.
    pub fn recipe(&self) -> Option<&Path> {
        self.manifest.recipe.as_deref().map(Path::new).filter(|path| path.is_file())
    }

    /// The command that builds it again where it is.
    pub fn rebuild_command(&self) -> String {
        let recipe = self.recipe().map_or("RECIPE".to_owned(), |path| quoted(&path.to_string_lossy()));
        let output = match output(&self.folder) {
            Some(folder) if folder != Path::new("engines") => format!(" -o {}", quoted(&folder.to_string_lossy())),
            _ => String::new(),
        };
        format!("`watus-build build {recipe}{output}`")
    }

    /// Why it has to be built again before it is served as `preference` says. What cannot be told here, since there is no
    /// TensorRT or no GPU, is left to [`EngineDir::choose`].
    pub fn misfit(&self, preference: BackendChoice) -> Option<String> {
        if preference == BackendChoice::Cpu || self.manifest.tool != TOOL {
            return self.misfit_with(&Here::default());
        }
        let here = Here::look();
        if preference == BackendChoice::Auto && here.device.is_none() && l4t::release().is_none() {
            return None; // the CPU reference will compute
        }
        self.misfit_with(&here)
    }

    /// Why it has to be built again for this tool, or for the TensorRT and GPU of `here`.
    pub fn misfit_with(&self, here: &Here) -> Option<String> {
        let tool = &self.manifest.tool;
        let other_tool = (tool != TOOL).then(|| format!("was built by {tool}, this is {TOOL}"));
        let other_tensorrt = || here.tensorrt.and_then(|tensorrt| self.other_tensorrt(tensorrt));
        other_tool.or_else(other_tensorrt).or_else(|| self.other_gpu(here.device.as_ref()))
    }

    /// Whether another TensorRT built it.
    pub(super) fn other_tensorrt(&self, here: Version) -> Option<String> {
        let built_by = self.manifest.tensorrt;
        (built_by != here).then(|| format!("was built by {built_by}, this machine has {here}"))
    }

    /// Whether it was built on a GPU of another architecture. Unknown GPUs differ from none.
    pub(super) fn other_gpu(&self, here: Option<&DeviceInfo>) -> Option<String> {
        let (built, here) = (self.manifest.device.as_ref()?, here?);
        (built.compute_capability != here.compute_capability).then(|| {
            format!(
                "was built on {} ({}), this GPU is {} ({})",
                built.name, built.compute_capability, here.name, here.compute_capability
            )
        })
    }
}

/// The folder that `build --output` names to publish in this place; `None` for the current one's engine directories.
fn output(folder: &Path) -> Option<PathBuf> {
    let parent = folder.parent()?;
    Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
}

/// A word of a shell command: a manifest may hold any path.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/-_.+@".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    /// An engine directory at `folder` that was built on an Orin.
    fn built(folder: &str, recipe: Option<&str>) -> EngineDir {
        let manifest: Manifest = serde_json::from_value(serde_json::json!({
            "format": 2, "name": "m", "kind": "onnx", "tool": TOOL, "key": {}, "recipe": recipe,
            "tensorrt": { "family": "enterprise", "major": 10, "minor": 3, "patch": 0 },
            "device": { "name": "Orin", "compute_capability": "8.7", "memory": 1 }, "l4t": null,
            "precision": "fp32", "tf32": false, "source": "path:m", "engine": "m.engine", "model": "model.onnx",
            "inputs": [], "outputs": [], "profile": [],
            "verify": { "seeds": 1, "images": [], "tolerance": 1e-3 },
            "build": { "seconds": 0.0, "peak_memory_bytes": 0, "skipped_tactics": 0, "warnings": [] }, "files": {},
        }))
        .unwrap();
        EngineDir { folder: folder.into(), manifest }
    }

    #[test]
    fn the_command_builds_it_where_it_is() {
        let scratch = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = scratch.path().join(name);
            std::fs::write(&path, "").unwrap();
            path.to_string_lossy().into_owned()
        };
        let (plain, odd) = (place("m.yaml"), place("it's $m.yaml"));
        for (folder, recipe, command) in [
            ("engines/m", Some(plain.as_str()), format!("`watus-build build {plain}`")),
            ("/srv/engines/m", Some(plain.as_str()), format!("`watus-build build {plain} -o /srv/engines`")),
            ("m", None, "`watus-build build RECIPE -o .`".to_owned()),
            ("/my engines/m", Some("/gone.yaml"), "`watus-build build RECIPE -o '/my engines'`".to_owned()),
            ("engines/m", Some(odd.as_str()), format!("`watus-build build '{}'`", odd.replace('\'', "'\\''"))),
        ] {
            assert_eq!(built(folder, recipe).rebuild_command(), command, "{folder} {recipe:?}");
        }
    }

    #[test]
    fn another_machine_or_tool_is_told() {
        let engine = built("engines/m", None);
        let gpu = |name: &str, capability: &str| {
            let here = DeviceInfo { name: name.to_owned(), compute_capability: capability.to_owned(), memory: 2 };
            engine.other_gpu(Some(&here))
        };
        assert_eq!(gpu("Thor", "11.0").unwrap(), "was built on Orin (8.7), this GPU is Thor (11.0)");
        assert_eq!((gpu("Orin", "8.7"), engine.other_gpu(None)), (None, None));
        let version = |patch| Version { patch, ..engine.manifest.tensorrt };
        assert_eq!(engine.other_tensorrt(version(0)), None);
        let said = engine.other_tensorrt(version(1)).unwrap();
        assert_eq!(said, "was built by TensorRT 10.3.0, this machine has TensorRT 10.3.1");
        let mut older = built("engines/m", None);
        assert_eq!(older.misfit(BackendChoice::Cpu), None);
        older.manifest.tool = "watus-build 0.0.9".to_owned();
        for preference in [BackendChoice::Cpu, BackendChoice::Auto, BackendChoice::TensorRt] {
            let said = older.misfit(preference).unwrap();
            assert_eq!(said, format!("was built by watus-build 0.0.9, this is {TOOL}"));
        }
        let BackendError::Foreign(told) = older.foreign("was built elsewhere") else { panic!("foreign") };
        assert_eq!(told.help.unwrap(), "build it again here: `watus-build build RECIPE`");
    }
}
