//! Fetches the files that a plan names: the model, and the images to verify with.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::llm;
use crate::fetch::{Fetched, Fetcher, Lock};
use crate::manifest::layout::IMAGES;
use crate::recipe::{Plan, SourcePlan};

/// Where a model came from, in one line.
pub fn source_text(source: &SourcePlan, commit: Option<&str>) -> String {
    match source {
        SourcePlan::Hub { repository, revision, .. } => {
            format!("hub:{repository}@{}", commit.unwrap_or(revision))
        }
        SourcePlan::Path { path, .. } => format!("path:{}", path.display()),
        SourcePlan::Url { url, .. } => format!("url:{}", crate::address::shown(url)),
        SourcePlan::Pypi { package, version, file, .. } => format!("pypi:{package}=={version}/{file}"),
        SourcePlan::Ollama { model } => format!("ollama:{model}"),
    }
}

/// Fetches a plan's source and records what was pinned.
pub fn fetch(plan: &Plan, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<Fetched> {
    if plan.model.llm().is_some() {
        return llm::fetch(plan, fetcher, lock);
    }
    let fetched = fetcher.fetch(&plan.source, lock)?;
    lock.save()?;
    Ok(fetched)
}

/// Fetches the images of a plan; returns each with its name in the engine directory.
pub fn fetch_pictures(plan: &Plan, fetcher: &Fetcher, lock: &mut Lock) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut pictures: Vec<(String, PathBuf)> = Vec::new();
    for source in &plan.verify.images {
        let fetched = fetcher.fetch(source, lock).with_context(|| format!("{}: a picture of `verify`", plan.name))?;
        for file in fetched.files {
            let path = Path::new(&file.name);
            let (Some(stem), Some(extension)) = (path.file_stem(), path.extension()) else { continue };
            if !crate::vision::is_picture(path) {
                continue;
            }
            let (stem, extension) = (stem.to_string_lossy(), extension.to_string_lossy().to_ascii_lowercase());
            let mut name = format!("{IMAGES}/{stem}.{extension}");
            if pictures.iter().any(|(other, _)| *other == name) {
                name = format!("{IMAGES}/{stem}-{}.{extension}", pictures.len());
            }
            pictures.push((name, file.path));
        }
    }
    lock.save()?;
    anyhow::ensure!(
        plan.verify.images.is_empty() || !pictures.is_empty(),
        "{}: no picture among those of `verify`: {} are read",
        plan.name,
        crate::vision::FORMATS
    );
    Ok(pictures)
}
