//! What a language model's directory is filled with: graphs, links to the weights, text files; and the model as one ONNX
//! file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;

use super::{Prepared, is_text, open};
use crate::artifact::{StagedDirectory, sweep, write_file};
use crate::checkpoint::Checkpoint;
use crate::convert;
use crate::fetch::Lock;
use crate::llm::model::{ENGINES, WEIGHTS};
use crate::llm::text::text_files;
use crate::llm::{head_name, layer_name};
use crate::pipeline::Context;
use crate::progress::Event;
use crate::recipe::Plan;

/// Writes every graph; returns graphs and engines.
pub(super) fn emit(prepared: &Prepared, staged: &Path) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let folder = staged.join(ENGINES);
    fs::create_dir_all(&folder)?;
    let (model, dtype) = (&prepared.source.model, prepared.dtype);
    let mut engines = Vec::new();
    let mut write = |name: String, graph: crate::onnx::Model| -> anyhow::Result<()> {
        let onnx = folder.join(format!("{name}.onnx"));
        fs::write(&onnx, graph.to_bytes()?)?;
        engines.push((onnx, folder.join(format!("{name}.engine"))));
        Ok(())
    };
    for rows in prepared.shapes.heads() {
        write(head_name(rows), convert::head_graph(model, rows, dtype)?)?;
    }
    for shape in prepared.shapes.layers() {
        write(layer_name(shape), convert::layer_graph(model, shape, dtype)?)?;
    }
    Ok(engines)
}

/// Puts the checkpoint's files into `staged`, without a second copy wherever that is possible.
pub(super) fn link_weights(checkpoint: &Checkpoint, staged: &Path, context: &Context) -> anyhow::Result<Vec<String>> {
    let folder = staged.join(WEIGHTS);
    fs::create_dir_all(&folder)?;
    let mut names = Vec::new();
    for file in checkpoint.files() {
        let mut name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        if checkpoint.gguf.is_some() && !name.ends_with(".gguf") {
            name = "model.gguf".to_owned(); // a blob of an Ollama store
        }
        link(file.path(), &folder.join(&name), context)?;
        names.push(name);
    }
    Ok(names)
}

/// A hard link, or where that cannot be a symbolic one.
fn link(from: &Path, to: &Path, context: &Context) -> anyhow::Result<()> {
    // Hub caches hold links; what is linked is the blob itself.
    let real = fs::canonicalize(from).with_context(|| format!("cannot find {}", from.display()))?;
    if fs::hard_link(&real, to).is_err() {
        // Another disk, or another user's file.
        std::os::unix::fs::symlink(&real, to).with_context(|| format!("cannot link {}", real.display()))?;
        let text = format!("{} is only pointed to: the engine directory needs it where it is", real.display());
        context.progress.event(Event::Warning(&text));
    }
    Ok(())
}

/// Copies or makes the text files.
pub(super) fn place_text(prepared: &Prepared, staged: &Path) -> anyhow::Result<()> {
    let checkpoint = &prepared.source.checkpoint;
    match &checkpoint.gguf {
        Some(gguf) => {
            for (name, text) in text_files(&checkpoint.config_path, gguf, &checkpoint.config)? {
                fs::write(staged.join(name), text)?;
            }
        }
        None => {
            for path in prepared.source.paths.iter().filter(|path| is_text(path)) {
                let name = path.file_name().unwrap_or_default();
                fs::copy(path, staged.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
            }
        }
    }
    if let Some(template) = &prepared.limits.chat_template {
        let to = staged.join("chat_template.jinja");
        fs::copy(template, to).with_context(|| format!("chat template {}", template.display()))?;
    }
    Ok(())
}

/// Writes the whole model as ONNX; returns the file and the seconds of the conversion alone.
///
/// External data must lie beside the model. Where the output folder is the checkpoint's own, it does, and NAME.onnx is
/// written there; elsewhere NAME-onnx/ gets model.onnx and links to the checkpoint's files. (onnxruntime follows hard
/// links; onnx.checker, given a path, takes them for an attack.)
pub fn emit_onnx(plan: &Plan, context: &Context, lock: &mut Lock) -> anyhow::Result<(PathBuf, f64)> {
    let folder = context.output.join(format!("{}-onnx", plan.name));
    sweep(&folder)?;
    let source = open(plan, &context.fetcher, lock)?;
    let start = Instant::now();
    let files = source.checkpoint.files();
    let name = |index: usize| files[index].path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let whole = convert::whole_model(&source.model, &source.checkpoint, name)?;
    let output = fs::canonicalize(&context.output).ok();
    let beside = |file: &crate::checkpoint::Mapped| {
        fs::canonicalize(file.path()).is_ok_and(|real| real.parent() == output.as_deref())
    };
    if files.iter().all(beside) {
        let path = context.output.join(format!("{}.onnx", plan.name));
        write_file(&path, &whole.model.to_bytes()?)?;
        return Ok((path, start.elapsed().as_secs_f64()));
    }
    let staged = StagedDirectory::create(&folder)?;
    fs::write(staged.path().join("model.onnx"), whole.model.to_bytes()?)?;
    for (name, index) in &whole.files {
        link(files[*index].path(), &staged.path().join(name), context)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    staged.publish().with_context(|| format!("cannot publish {}", folder.display()))?;
    Ok((folder.join("model.onnx"), seconds))
}
