//! Fills a language model's directory with graphs, weights and text files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{LlmTarget, OpenedSource, is_text};
use crate::artifact::about;
use crate::convert;
use crate::executor::{head_name, layer_name};
use crate::manifest::layout::{ENGINES, SPECULATION, SPECULATION_LIMIT, WEIGHTS, engine_file};
use crate::pipeline::place::{self, Move};
use crate::pipeline::target::StagedBuild;
use crate::regular_file;
use crate::text::{TOOL_USE_TEMPLATE, text_files};

/// Writes every graph; returns pairs of graph and engine file.
pub(super) fn emit(target: &LlmTarget, staged: &Path) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let folder = staged.join(ENGINES);
    fs::create_dir_all(&folder).map_err(about(&folder))?;
    let (model, types) = (&target.source.model, target.types);
    let mut engines = Vec::new();
    let mut write = |name: String, graph: crate::onnx::Model| -> anyhow::Result<()> {
        let onnx = folder.join(format!("{name}.onnx"));
        fs::write(&onnx, graph.to_bytes()?).map_err(about(&onnx))?;
        engines.push((onnx, folder.join(engine_file(&name))));
        Ok(())
    };
    for rows in target.shapes.heads() {
        write(head_name(rows), convert::head_graph(model, rows, types.dtype)?)?;
    }
    for shape in target.shapes.layers() {
        write(layer_name(shape), convert::layer_graph(model, shape, types)?)?;
    }
    Ok(engines)
}

/// Places the checkpoint's files in the directory, as links wherever that is safe.
pub(super) fn place_weights(target: &LlmTarget, work: &mut StagedBuild<'_>) -> anyhow::Result<Vec<String>> {
    let (checkpoint, folder) = (&target.source.checkpoint, work.staged.join(WEIGHTS));
    fs::create_dir_all(&folder).map_err(about(&folder))?;
    let (mut names, mut moves) = (Vec::new(), Vec::<Move>::new());
    for file in checkpoint.files() {
        let mut name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        if checkpoint.gguf.is_some() && !name.ends_with(".gguf") {
            name = "model.gguf".to_owned(); // a blob of an Ollama store
        }
        moves.push((file.path().to_owned(), folder.join(&name)));
        names.push(name);
    }
    place::place(&moves, &target.plan.source, true, work.context)?;
    for (from, to) in &moves {
        work.hashes.copied(from, to).map_err(about(from))?;
    }
    Ok(names)
}

/// Copies or generates the text files; `template` is the recipe's chat template.
pub(super) fn place_text(source: &OpenedSource, template: Option<&Path>, staged: &Path) -> anyhow::Result<()> {
    let checkpoint = &source.checkpoint;
    let Some(gguf) = &checkpoint.gguf else { return copy_text(&source.paths, template, staged) };
    for (name, text) in text_files(&checkpoint.config_path, gguf, &checkpoint.config)? {
        let text = match &source.modelfile {
            Some(modelfile) if name == "generation_config.json" => modelfile.apply(&text)?,
            _ => text,
        };
        let path = staged.join(name);
        fs::write(&path, text).map_err(about(&path))?;
    }
    copy_text(&[], template, staged)
}

/// Copies those of `paths` that are text files, and the recipe's chat template.
pub(super) fn copy_text(paths: &[PathBuf], template: Option<&Path>, staged: &Path) -> anyhow::Result<()> {
    for path in paths.iter().filter(|path| is_text(path)) {
        let name = match path.ends_with(TOOL_USE_TEMPLATE) {
            // A recipe's template is for conversations with functions, too.
            true if template.is_some() => continue,
            true => Path::new(TOOL_USE_TEMPLATE),
            false => Path::new(path.file_name().unwrap_or_default()),
        };
        let to = staged.join(name);
        let parent = to.parent().unwrap_or(staged);
        fs::create_dir_all(parent).map_err(about(parent))?;
        fs::copy(path, &to).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    if let Some(template) = template {
        let to = staged.join("chat_template.jinja");
        fs::copy(template, to).with_context(|| format!("chat template {}", template.display()))?;
    }
    Ok(())
}

/// Reads the recipe's text that answers are drafted from.
pub(super) fn speculation_text(path: &Path) -> anyhow::Result<String> {
    let text = regular_file::read_text(path, SPECULATION_LIMIT);
    text.with_context(|| format!("the text of `speculation`, {}", path.display()))
}

/// Places that text in the directory.
pub(super) fn place_speculation_text(path: &Path, staged: &Path) -> anyhow::Result<()> {
    let to = staged.join(SPECULATION);
    fs::write(&to, speculation_text(path)?).map_err(about(&to))?;
    Ok(())
}
