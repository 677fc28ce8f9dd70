//! Models of a local Ollama store: a manifest per name and tag, blobs by hash.
//!
//! `models/manifests/HOST/NAMESPACE/MODEL/TAG` is a registry manifest, whose layer of type
//! `application/vnd.ollama.image.model` is a GGUF in `models/blobs/sha256-…` (ollama, `server/modelpath.go`). The other
//! layers (`server/images.go`) become a [`Modelfile`], or are refused by name.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::modelfile::Modelfile;
use super::{FetchError, Fetched};
use crate::artifact::{about, is_sha256};
use crate::diagnostic::Diagnostic;
use crate::progress::{Event, Progress};
use crate::regular_file;

/// Prefix of the layers' media types.
const LAYER: &str = "application/vnd.ollama.image.";
/// Largest manifest or text layer in bytes.
const SIZE_LIMIT: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct OllamaManifest {
    layers: Vec<OllamaLayer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object")]
struct OllamaLayer {
    media_type: String,
    digest: String,
}

/// The stores to search: `OLLAMA_MODELS`, the user's, the system service's.
fn stores() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("OLLAMA_MODELS").filter(|value| !value.is_empty()) {
        return vec![named.into()];
    }
    let own = std::env::var_os("HOME").map(|home| Path::new(&home).join(".ollama/models"));
    own.into_iter().chain([PathBuf::from("/usr/share/ollama/.ollama/models")]).collect()
}

/// Path of the manifest of `[HOST/][NAMESPACE/]MODEL[:TAG]`, with Ollama's defaults.
fn manifest_path(model: &str) -> PathBuf {
    let (name, tag) = model.split_once(':').unwrap_or((model, "latest"));
    let full = match name.matches('/').count() {
        0 => format!("registry.ollama.ai/library/{name}"),
        1 => format!("registry.ollama.ai/{name}"),
        _ => name.to_owned(),
    };
    Path::new("manifests").join(full).join(tag)
}

/// A model's layers, and the store they are in.
struct FoundModel<'a> {
    model: &'a str,
    store: PathBuf,
    path: PathBuf,
    layers: Vec<OllamaLayer>,
}

impl FoundModel<'_> {
    fn error(&self, message: impl Into<Diagnostic>) -> FetchError {
        FetchError::Ollama { model: self.model.to_owned(), message: message.into() }
    }

    /// The layers of these kinds.
    fn layers(&self, kinds: &[&str]) -> impl Iterator<Item = &OllamaLayer> {
        self.layers
            .iter()
            .filter(move |layer| layer.media_type.strip_prefix(LAYER).is_some_and(|kind| kinds.contains(&kind)))
    }

    fn blob(&self, layer: &OllamaLayer) -> Result<PathBuf, FetchError> {
        let digest = layer.digest.strip_prefix("sha256:").filter(|digest| is_sha256(digest));
        let digest =
            digest.ok_or_else(|| self.error(format!("{} names a layer without a hash", self.path.display())))?;
        let blob = self.store.join("blobs").join(format!("sha256-{digest}"));
        if !blob.is_file() {
            let message = Diagnostic::new(format!("{} is missing", blob.display()));
            return Err(self.error(message.with_help(format!("`ollama pull {}` mends the store", self.model))));
        }
        Ok(blob)
    }

    fn text(&self, layer: &OllamaLayer) -> Result<String, FetchError> {
        let blob = self.blob(layer)?;
        regular_file::read_text(&blob, SIZE_LIMIT).map_err(|error| self.error(format!("{}: {error}", blob.display())))
    }

    /// Refuses layers that are neither supported nor without effect.
    fn check(&self) -> Result<(), FetchError> {
        for layer in &self.layers {
            let kind = layer.media_type.strip_prefix(LAYER).unwrap_or(&layer.media_type);
            let message = match kind {
                "model" | "template" | "prompt" | "system" | "params" | "projector" | "license" => continue,
                // Ollama itself has long ignored them; and a draft only guesses what the model then says.
                "embed" | "draft" => continue,
                "adapter" => Diagnostic::new("it has a LoRA adapter over its weights, which is not applied").with_help(
                    "merge the adapter into the base model (PEFT: `merge_and_unload`) and build that; or take the \
                     base alone",
                ),
                "messages" => {
                    let what = "it has turns of a conversation before the user's (MESSAGE), which are not applied";
                    Diagnostic::new(what).with_help("put them into its SYSTEM, or send them with each request")
                }
                other => Diagnostic::new(format!(
                    "layer `{}` is of a kind that nobody here reads",
                    crate::log::printable(other)
                )),
            };
            return Err(self.error(message));
        }
        Ok(())
    }
}

fn find_manifest(model: &str) -> Result<FoundModel<'_>, FetchError> {
    let fail = |message: Diagnostic| FetchError::Ollama { model: model.to_owned(), message };
    let stores = stores();
    let relative = manifest_path(model);
    let Some(store) = stores.iter().find(|store| store.join(&relative).is_file()) else {
        let places: Vec<String> = stores.iter().map(|store| store.display().to_string()).collect();
        let what = Diagnostic::new(format!("not in the Ollama store ({})", places.join(", ")));
        return Err(fail(what.with_help(format!(
            "`ollama list` shows what is; `ollama pull {model}` brings it; OLLAMA_MODELS names another store"
        ))));
    };
    let path = store.join(relative);
    if std::fs::metadata(&path).map_err(about(&path))?.len() > SIZE_LIMIT {
        return Err(fail(format!("{} is too long for a manifest", path.display()).into()));
    }
    let manifest: OllamaManifest = serde_json::from_str(&std::fs::read_to_string(&path).map_err(about(&path))?)
        .map_err(|error| fail(format!("{}: {error}", path.display()).into()))?;
    Ok(FoundModel { model, store: store.clone(), path, layers: manifest.layers })
}

/// Finds the model's GGUF file.
pub(super) fn find(model: &str) -> Result<Fetched, FetchError> {
    let found = find_manifest(model)?;
    found.check()?;
    let mut models = found.layers(&["model"]);
    match (models.next(), models.next()) {
        (Some(layer), None) => Ok(Fetched::single(found.blob(layer)?)),
        (None, _) => Err(found.error(format!("{} names no model layer", found.path.display()))),
        (Some(_), Some(_)) => {
            let what = Diagnostic::new("its weights are in several layers, which is not supported");
            Err(found.error(what.with_help("use its hub repository")))
        }
    }
}

/// Reads the model's Modelfile; warnings go to `progress`.
pub(super) fn modelfile(model: &str, progress: &dyn Progress) -> Result<Modelfile, FetchError> {
    let found = find_manifest(model)?;
    found.check()?;
    let warn = |note: &str| progress.event(Event::Warning(&format!("ollama:{model}: {note}")));
    let mut modelfile = Modelfile::default();
    for layer in found.layers(&["system"]) {
        modelfile.system(&found.text(layer)?);
    }
    for layer in found.layers(&["params"]) {
        let about = |error: Diagnostic| found.error(error.at(format!("its parameters ({})", layer.digest)));
        let values = serde_json::from_str(&found.text(layer)?).map_err(|error| about(error.to_string().into()))?;
        modelfile.parameters(&values).map_err(about)?.iter().for_each(|note| warn(note));
    }
    modelfile.has_template = found.layers(&["template", "prompt"]).next().is_some();
    if found.layers(&["projector"]).next().is_some() {
        warn("its projector for pictures is left where it is: the model answers text alone");
    }
    Ok(modelfile)
}
