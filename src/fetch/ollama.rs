//! Models of a local Ollama store: a manifest per name and tag, blobs by their hash.
//!
//! `models/manifests/HOST/NAMESPACE/MODEL/TAG` is a registry manifest whose layer of type
//! `application/vnd.ollama.image.model` is a GGUF in `models/blobs/sha256-…` (ollama, `server/modelpath.go`).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{FetchError, Fetched};
use crate::artifact::{about, is_sha256};

const MODEL: &str = "application/vnd.ollama.image.model";
/// A manifest is a page.
const SIZE_LIMIT: u64 = 1 << 20;

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
}

/// `OLLAMA_MODELS`, the user's store, the service's.
fn stores() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("OLLAMA_MODELS").filter(|value| !value.is_empty()) {
        return vec![named.into()];
    }
    let own = std::env::var_os("HOME").map(|home| Path::new(&home).join(".ollama/models"));
    own.into_iter().chain([PathBuf::from("/usr/share/ollama/.ollama/models")]).collect()
}

/// `[HOST/][NAMESPACE/]MODEL[:TAG]`, with Ollama's defaults.
fn manifest_path(model: &str) -> PathBuf {
    let (name, tag) = model.split_once(':').unwrap_or((model, "latest"));
    let full = match name.matches('/').count() {
        0 => format!("registry.ollama.ai/library/{name}"),
        1 => format!("registry.ollama.ai/{name}"),
        _ => name.to_owned(),
    };
    Path::new("manifests").join(full).join(tag)
}

/// The model's blob.
pub(super) fn find(model: &str) -> Result<Fetched, FetchError> {
    let fail = |message: String| FetchError::Ollama { model: model.to_owned(), message };
    let stores = stores();
    let relative = manifest_path(model);
    let Some(store) = stores.iter().find(|store| store.join(&relative).is_file()) else {
        let places: Vec<String> = stores.iter().map(|store| store.display().to_string()).collect();
        return Err(fail(format!(
            "not in the Ollama store ({})\n  hint: `ollama list` shows what is; `ollama pull {model}` brings it; \
             OLLAMA_MODELS names another store",
            places.join(", ")
        )));
    };
    let path = store.join(relative);
    if std::fs::metadata(&path).map_err(about(&path))?.len() > SIZE_LIMIT {
        return Err(fail(format!("{} is too long for a manifest", path.display())));
    }
    let manifest: Manifest = serde_json::from_str(&std::fs::read_to_string(&path).map_err(about(&path))?)
        .map_err(|error| fail(format!("{}: {error}", path.display())))?;
    let layer = manifest.layers.iter().find(|layer| layer.media_type == MODEL);
    let digest = layer.and_then(|layer| layer.digest.strip_prefix("sha256:")).filter(|digest| is_sha256(digest));
    let digest = digest.ok_or_else(|| fail(format!("{} names no model layer", path.display())))?;
    let blob = store.join("blobs").join(format!("sha256-{digest}"));
    if !blob.is_file() {
        return Err(fail(format!("{} is missing\n  hint: `ollama pull {model}` mends the store", blob.display())));
    }
    Ok(Fetched::single(blob))
}
