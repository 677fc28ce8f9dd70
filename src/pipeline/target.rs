//! What the stages of a build ask of what is built: a language model (`llm/`), or the one graph of a vision or other ONNX
//! model (`graph.rs`).

use std::path::{Path, PathBuf};

use super::Context;
use crate::backend::tensorrt::device::Device;
use crate::backend::tensorrt::{BuildOptions, TensorRt};
use crate::diagnostic::Diagnostic;
use crate::fetch::Hashes;
use crate::manifest::{EngineContents, Key, VerifyRecord};
use crate::spec::{DeviceInfo, Version};

/// Who builds, and for whom.
pub(super) struct BuildHost {
    pub(super) tensorrt: Version,
    /// The GPU, if there is one.
    pub(super) device: Option<DeviceInfo>,
    /// Its memory is the machine's.
    pub(super) shared: bool,
}

impl BuildHost {
    /// This one, which has TensorRT, or it is said what is missing.
    pub(super) fn look() -> anyhow::Result<Self> {
        let tensorrt = TensorRt::open()?.version;
        let device = Device::open().and_then(|device| Ok((device.info()?, device.is_integrated()))).ok();
        let (device, shared) = device.map_or((None, false), |(info, shared)| (Some(info), shared));
        Ok(Self { tensorrt, device, shared })
    }
}

/// Where a build puts what, and what it knows of files.
pub(super) struct StagedBuild<'a> {
    /// The directory that is filled.
    pub(super) staged: &'a Path,
    pub(super) context: &'a Context,
    pub(super) hashes: &'a mut Hashes,
}

/// What TensorRT is to build.
pub(super) struct BuildJobs {
    /// Models, and where their engines go.
    pub(super) engines: Vec<(PathBuf, PathBuf)>,
    pub(super) options: BuildOptions,
    /// Models that are not kept.
    pub(super) temporary: Vec<PathBuf>,
}

/// What the manifest says of what was built.
pub(super) struct Description {
    pub(super) contents: EngineContents,
    /// As the engines were built, and are to be loaded.
    pub(super) tf32: bool,
    pub(super) verify: VerifyRecord,
}

/// Something to be built, of any kind, with everything known before TensorRT starts.
pub(super) trait Target {
    /// Who builds it.
    fn machine(&self) -> &BuildHost;

    /// The commit that its source was pinned to.
    fn commit(&self) -> Option<&str>;

    /// Adds what its engines depend on beside tool and machine: files, builder options, and of the recipe what is built and
    /// proved.
    fn add_key_parts(&self, key: &mut Key, hashes: &mut Hashes) -> anyhow::Result<()>;

    /// Bytes of memory that it takes, and how many there are, where that is known.
    fn memory(&self) -> (u64, Option<u64>);

    /// The same, for people.
    fn memory_text(&self) -> String;

    /// Why so many bytes are too few, and what would help.
    fn too_large(&self, available: u64) -> Diagnostic;

    /// How it will be proved, for people.
    fn proof_text(&self) -> String;

    /// What is worth a line before it is built again.
    fn notes(&self) -> anyhow::Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Fills the directory with what TensorRT and the proof read.
    fn place(&self, _work: &mut StagedBuild<'_>) -> anyhow::Result<()> {
        Ok(())
    }

    /// Its products that were to be computed in half precision, where there is a choice.
    fn half_products(&self) -> anyhow::Result<Option<Vec<String>>> {
        Ok(None)
    }

    /// Writes the models; of their products `full` stay in float32.
    fn write_models(&self, staged: &Path, full: &[String]) -> anyhow::Result<BuildJobs>;

    /// An error of a build or proof in `staged` as the user can follow it.
    fn explain(&self, _staged: &Path, error: anyhow::Error) -> anyhow::Error {
        error
    }

    /// Adds what runs beside the engines, and says what there is.
    fn finish(&self, work: &mut StagedBuild<'_>, full: &[String]) -> anyhow::Result<Description>;
}

/// A model that was written as ONNX.
pub struct Emitted {
    /// The file.
    pub path: PathBuf,
    /// How long the conversion took, where there was much to convert.
    pub seconds: Option<f64>,
}
