//! Opens the language model in an engine directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, read_json};
use crate::convert::{self, LayerTypes, Transformer};
use crate::cuda_executor::{GpuExecutor, GpuOptions};
use crate::executor::{CpuExecutor, Executor, LlmError};
use crate::generation::Generator;
use crate::manifest::layout::{ENGINES, SPECULATION, SPECULATION_LIMIT, WEIGHTS};
use crate::regular_file;
use crate::spec::LlmRecord;
use crate::text::{Text, TextError};

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
    let is_head = |name: &&String| record.head.as_ref().is_some_and(|head| head.file == **name);
    let (heads, shards): (Vec<&String>, Vec<&String>) = record.weights.iter().partition(is_head);
    let place = |name: &String| folder.join(WEIGHTS).join(name);
    let paths: Vec<PathBuf> = shards.into_iter().map(place).collect();
    // These and no others: which of a folder's files count was decided when it was built.
    let mut checkpoint = match paths.iter().all(|path| path.extension().is_some_and(|extension| extension == "gguf")) {
        true => Checkpoint::open(&paths)?,
        false => Checkpoint::open_files(&folder.join("config.json"), &paths)?,
    };
    if let Some(head) = &record.head {
        let [name] = heads[..] else {
            return Err(LlmError::internal("the manifest names no file of the output matrix"));
        };
        checkpoint.replace_head(&place(name), head)?;
    }
    let checkpoint = Arc::new(checkpoint);
    let length = record.shapes.max_len;
    // For a GGUF, the directory's config.json is what its metadata said when it was built.
    let path = folder.join("config.json");
    let mut model = convert::describe(&path, &read_json(&path)?, length)?;
    // A packed output matrix is its own, whatever it was made from.
    model.tied &= record.head.is_none();
    model.locate(&checkpoint)?;
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
    let LlmRecord { ref shapes, dtype, kv_cache, .. } = *record;
    Ok(match runner {
        Runner::Cpu => {
            Box::new(CpuExecutor::new(model, checkpoint, shapes.slots, shapes.max_len)?.with_kv_cache(kv_cache))
        }
        Runner::TensorRt { tf32 } => {
            let options = GpuOptions { shapes: shapes.clone(), types: LayerTypes { dtype, kv_cache }, tf32 };
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
    let quoted = speculation_text(folder, &text)?;
    let executor = open_executor(folder, record, runner, loading)?;
    let mut generator = Generator::new(executor, text, record.max_input_len);
    generator.draft_from(&quoted);
    Ok(generator)
}

/// The tokens of the text that answers are drafted from; none without one.
fn speculation_text(folder: &Path, text: &Text) -> Result<Vec<u32>, LlmError> {
    let path = folder.join(SPECULATION);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let quoted = regular_file::read_text(&path, SPECULATION_LIMIT);
    let quoted = quoted.map_err(|error| TextError::File { path, message: error.to_string().into() })?;
    Ok(text.encode_part(&quoted, None)?)
}
