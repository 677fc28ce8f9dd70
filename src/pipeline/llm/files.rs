//! What a language model's directory is filled with: graphs, weights, text files; and the model as one ONNX file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;

use super::{LlmTarget, Source, is_text, judge, open};
use crate::artifact::{StagedDirectory, about, is_same_file, sweep, write_file};
use crate::convert;
use crate::fetch::Lock;
use crate::llm::text::{TOOL_USE_TEMPLATE, text_files};
use crate::llm::{head_name, layer_name};
use crate::manifest::layout::{ENGINES, MODEL, WEIGHTS, engine_file};
use crate::pipeline::Context;
use crate::pipeline::place::{self, Move};
use crate::pipeline::target::{Emitted, StagedBuild};
use crate::recipe::{Plan, SourcePlan};

/// Writes every graph; returns graphs and engines.
pub(super) fn emit(target: &LlmTarget, staged: &Path) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let folder = staged.join(ENGINES);
    fs::create_dir_all(&folder).map_err(about(&folder))?;
    let (model, dtype) = (&target.source.model, target.dtype);
    let mut engines = Vec::new();
    let mut write = |name: String, graph: crate::onnx::Model| -> anyhow::Result<()> {
        let onnx = folder.join(format!("{name}.onnx"));
        fs::write(&onnx, graph.to_bytes()?).map_err(about(&onnx))?;
        engines.push((onnx, folder.join(engine_file(&name))));
        Ok(())
    };
    for rows in target.shapes.heads() {
        write(head_name(rows), convert::head_graph(model, rows, dtype)?)?;
    }
    for shape in target.shapes.layers() {
        write(layer_name(shape), convert::layer_graph(model, shape, dtype)?)?;
    }
    Ok(engines)
}

/// Puts the checkpoint's files into the directory, without a second copy wherever that does no harm.
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

/// Copies or makes the text files; `template` is the recipe's.
pub(super) fn place_text(source: &Source, template: Option<&Path>, staged: &Path) -> anyhow::Result<()> {
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

/// Copies those of `paths` that are text files, and the recipe's template.
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

/// Writes the whole model as ONNX; the seconds are those of the conversion alone.
///
/// External data must lie beside the model. Where the output folder is the checkpoint's own, it does, and NAME.onnx is
/// written there; elsewhere NAME-onnx/ gets model.onnx and the checkpoint's files, links where they lie in a
/// store. (onnxruntime follows hard links; onnx.checker, given a path, takes them for an attack.)
pub(in crate::pipeline) fn emit_onnx(plan: &Plan, context: &Context, lock: &mut Lock) -> anyhow::Result<Emitted> {
    let folder = context.output.join(format!("{}-onnx", plan.name));
    let path = context.output.join(format!("{}.onnx", plan.name));
    let own = match &plan.source {
        SourcePlan::Path { path, .. } if path.is_dir() => Some(path.as_path()),
        SourcePlan::Path { path, .. } => path.parent(),
        _ => None,
    };
    match own.is_some_and(|own| is_same_file(own, &context.output)) {
        true => place::check_onnx_file(&path, context.force)?,
        false => place::check_onnx_folder(&folder)?,
    }
    sweep(&folder).map_err(about(&folder))?;
    let source = open(plan, &context.fetcher, lock)?;
    let words = judge::words(plan, &source)?;
    context.warn(&plan.name, source.checkpoint.notes.iter().chain(&source.model.notes).chain(&words));
    let start = Instant::now();
    let files = source.checkpoint.files();
    let name = |index: usize| files[index].path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let whole = convert::whole_model(&source.model, &source.checkpoint, name)?;
    let output = fs::canonicalize(&context.output).ok();
    let beside = |file: &crate::checkpoint::Mapped| {
        fs::canonicalize(file.path()).is_ok_and(|real| real.parent() == output.as_deref())
    };
    if files.iter().all(beside) {
        place::check_onnx_file(&path, context.force)?;
        write_file(&path, &whole.model.to_bytes()?).map_err(about(&path))?;
        return Ok(Emitted { path, seconds: Some(start.elapsed().as_secs_f64()) });
    }
    let staged = StagedDirectory::create(&folder).map_err(about(&folder))?;
    let model = staged.path().join(MODEL);
    fs::write(&model, whole.model.to_bytes()?).map_err(about(&model))?;
    let seconds = start.elapsed().as_secs_f64();
    let data = whole.files.iter();
    let moves: Vec<Move> =
        data.map(|(name, index)| (files[*index].path().to_owned(), staged.path().join(name))).collect();
    place::place(&moves, &plan.source, true, context)?;
    place::check_onnx_folder(&folder)?;
    staged.publish().with_context(|| format!("cannot publish {}", folder.display()))?;
    Ok(Emitted { path: folder.join(MODEL), seconds: Some(seconds) })
}
