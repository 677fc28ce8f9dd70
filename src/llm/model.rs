//! Opens the language model in an engine directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cpu::CpuExecutor;
use super::executor::{Executor, LlmError};
use super::generate::Generator;
use super::gpu::{GpuExecutor, GpuOptions};
use super::text::Text;
use crate::checkpoint::{Checkpoint, read_json};
use crate::convert::{self, Transformer};
use crate::manifest::layout::{ENGINES, WEIGHTS};
use crate::spec::LlmRecord;

/// The backend that runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// TensorRT's engines, on the GPU.
    TensorRt {
        /// Whether the engines were built with TF32.
        tf32: bool,
    },
    /// The CPU reference, in float32.
    Cpu,
}

/// Called while a model is loaded, with the bytes of weights loaded so far, and in total.
pub type LoadProgress<'a> = &'a mut dyn FnMut(u64, u64);

/// Opens the model and its checkpoint in an engine directory.
pub fn checkpoint(folder: &Path, record: &LlmRecord) -> Result<(Transformer, Arc<Checkpoint>), LlmError> {
    let weights = record.weights.iter().map(|name| folder.join(WEIGHTS).join(name));
    let paths: Vec<PathBuf> = weights.collect();
    // These and no others: which of a folder's files count was decided when it was built.
    let checkpoint = match paths.iter().all(|path| path.extension().is_some_and(|extension| extension == "gguf")) {
        true => Checkpoint::open(&paths)?,
        false => Checkpoint::open_files(&folder.join("config.json"), &paths)?,
    };
    let checkpoint = Arc::new(checkpoint);
    let length = record.shapes.max_len;
    // For a GGUF, the directory's config.json is what its metadata said when it was built.
    let path = folder.join("config.json");
    let mut model = convert::describe(&path, &read_json(&path)?, length)?;
    model.locate(&checkpoint)?;
    model.kv_type = record.kv_type;
    Ok((model, checkpoint))
}

/// Loads a model as an executor.
pub fn open_executor(
    folder: &Path,
    record: &LlmRecord,
    runner: Runner,
    loading: LoadProgress<'_>,
) -> Result<Box<dyn Executor>, LlmError> {
    let (model, checkpoint) = checkpoint(folder, record)?;
    Ok(match runner {
        Runner::Cpu => Box::new(CpuExecutor::new(model, checkpoint, record.shapes.slots, record.shapes.max_len)?),
        Runner::TensorRt { tf32 } => {
            let options = GpuOptions { shapes: record.shapes.clone(), dtype: record.dtype, tf32 };
            Box::new(GpuExecutor::new(&folder.join(ENGINES), model, checkpoint, options, loading)?)
        }
    })
}

/// Loads a model as a generator.
pub fn open(
    folder: &Path,
    record: &LlmRecord,
    runner: Runner,
    loading: LoadProgress<'_>,
) -> Result<Generator, LlmError> {
    let text = Arc::new(Text::open(folder)?); // first: it is quick to say what is missing
    let executor = open_executor(folder, record, runner, loading)?;
    Ok(Generator::new(executor, text, record.max_input_len))
}
