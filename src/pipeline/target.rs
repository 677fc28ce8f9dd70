//! [`Target`]: what the stages of a build need from each kind of model. Implemented by language models (`llm/`), and by
//! the graph of a vision or other ONNX model (`graph.rs`).

use std::path::{Path, PathBuf};

use super::Context;
use crate::backend::tensorrt::device::Device;
use crate::backend::tensorrt::{BuildOptions, TensorRt};
use crate::diagnostic::Diagnostic;
use crate::hashes::Hashes;
use crate::manifest::{EngineContents, Key, VerifyRecord};
use crate::spec::{DeviceInfo, Version};

/// The machine that builds.
pub(super) struct BuildHost {
    pub(super) tensorrt: Version,
    /// The GPU, if there is one.
    pub(super) device: Option<DeviceInfo>,
    /// Whether GPU and CPU share one memory.
    pub(super) shared: bool,
}

impl BuildHost {
    /// Examines this machine; an error if TensorRT is missing.
    pub(super) fn look() -> anyhow::Result<Self> {
        let tensorrt = TensorRt::open()?.version;
        let device = Device::open().and_then(|device| Ok((device.info()?, device.is_integrated()))).ok();
        let (device, shared) = device.map_or((None, false), |(info, shared)| (Some(info), shared));
        Ok(Self { tensorrt, device, shared })
    }
}

/// The directory of a build in progress, and the known hashes of files.
pub(super) struct StagedBuild<'a> {
    /// Path of the staged directory.
    pub(super) staged: &'a Path,
    pub(super) context: &'a Context,
    pub(super) hashes: &'a mut Hashes,
}

/// What TensorRT is to build.
pub(super) struct BuildJobs {
    /// Pairs of ONNX model and engine file.
    pub(super) engines: Vec<(PathBuf, PathBuf)>,
    pub(super) options: BuildOptions,
    /// Models to delete after the build.
    pub(super) temporary: Vec<PathBuf>,
}

/// The part of the manifest that only the target knows.
pub(super) struct Description {
    pub(super) contents: EngineContents,
    /// Whether the engines were built with TF32, and must be loaded so.
    pub(super) tf32: bool,
    pub(super) verify: VerifyRecord,
}

/// A model of any kind, ready to be built.
pub(super) trait Target {
    /// The machine that builds it.
    fn machine(&self) -> &BuildHost;

    /// The commit that its source was pinned to, if it has one.
    fn commit(&self) -> Option<&str>;

    /// Adds everything its engines depend on besides tool and machine: files, builder options, and the recipe's
    /// settings for build and verification.
    fn add_key_parts(&self, key: &mut Key, hashes: &mut Hashes) -> anyhow::Result<()>;

    /// The memory in bytes that it needs, and the available memory, if known.
    fn memory(&self) -> (u64, Option<u64>);

    /// The memory that it needs, in words.
    fn memory_text(&self) -> String;

    /// The error if `available` bytes are too few, and what would help.
    fn too_large(&self, available: u64) -> Diagnostic;

    /// How it will be verified, in words.
    fn proof_text(&self) -> String;

    /// Warnings to report before it is built.
    fn notes(&self) -> anyhow::Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Stages the files that TensorRT and the verification read.
    fn place(&self, _work: &mut StagedBuild<'_>) -> anyhow::Result<()> {
        Ok(())
    }

    /// Names of its matrix products that half precision applies to; `None` if it has no choice.
    fn half_products(&self) -> anyhow::Result<Option<Vec<String>>> {
        Ok(None)
    }

    /// Writes the ONNX models, with the products `full` in float32.
    fn write_models(&self, staged: &Path, full: &[String]) -> anyhow::Result<BuildJobs>;

    /// Rewrites an error of building or verifying in `staged` for the user.
    fn explain(&self, _staged: &Path, error: anyhow::Error) -> anyhow::Error {
        error
    }

    /// Adds the files that are used beside the engines, and describes the result.
    fn finish(&self, work: &mut StagedBuild<'_>, full: &[String]) -> anyhow::Result<Description>;
}

/// A model written as ONNX.
pub struct Emitted {
    /// Path of the file.
    pub path: PathBuf,
    /// Duration of the conversion in seconds; `None` if there was little to convert.
    pub seconds: Option<f64>,
}
