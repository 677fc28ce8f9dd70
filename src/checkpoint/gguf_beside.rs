//! GGUF files that accompany a model but are none: vision projectors, draft models, importance matrices.
//!
//! llama.cpp recognises them by the same names (`common/download.cpp`, `gguf_filename_is_model`); the metadata is
//! gguf-py's (`constants.py`, `GGUFType`).

use std::path::{Path, PathBuf};

use super::gguf::{self, Gguf};
use super::mapped::Mapped;

/// Parts of such files' names.
const MARKS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];

/// Values of `general.type` in files that are no model.
const TYPES: [&str; 4] = ["adapter", "mmproj", "imatrix", "vocab"];

/// Whether a file's name, without its folders, is that of such a file.
fn is_beside(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    // In the middle or at the end: "Model-Q4_K_M-mtp.gguf".
    MARKS.iter().any(|mark| last.contains(mark)) || last.ends_with("-mtp.gguf")
}

/// The models among GGUF files, by name; all of them, if no name is that of a model.
pub fn gguf_models<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let models: Vec<&str> = names.iter().copied().filter(|name| !is_beside(name)).collect();
    if models.is_empty() { names.to_vec() } else { models }
}

/// Whether a file's metadata says that it is no model; a file that cannot be read is left to whoever opens it.
fn says_so(path: &Path) -> bool {
    let Ok(file) = Mapped::open(path) else { return false };
    let Ok((gguf, _)) = gguf::parse(&file) else { return false };
    is_none(&gguf)
}

fn is_none(gguf: &Gguf) -> bool {
    let kind = gguf.text("general.type").is_some_and(|kind| TYPES.contains(&kind));
    // Projectors of before the type have the architecture of llama.cpp's `clip.cpp`.
    kind || gguf.text("general.architecture") == Some("clip")
}

/// Splits the GGUF files of a folder into models and accompanying files: by name, and if that leaves several models, by
/// their metadata. `settled` tells whether what is left is one model.
pub(super) fn part<'a>(
    paths: &[&'a PathBuf],
    settled: impl Fn(&[&PathBuf]) -> bool,
) -> (Vec<&'a PathBuf>, Vec<&'a PathBuf>) {
    let without = |paths: &[&'a PathBuf], is_beside: &dyn Fn(&Path) -> bool| -> Vec<&'a PathBuf> {
        let models: Vec<&PathBuf> = paths.iter().copied().filter(|path| !is_beside(path)).collect();
        if models.is_empty() { paths.to_vec() } else { models }
    };
    let mut models = paths.to_vec();
    let named = |path: &Path| path.file_name().is_some_and(|name| is_beside(&name.to_string_lossy()));
    let steps: [&dyn Fn(&Path) -> bool; 2] = [&named, &says_so];
    for is_beside in steps {
        if !settled(&models) {
            models = without(&models, is_beside);
        }
    }
    let aside = paths.iter().copied().filter(|path| !models.contains(path)).collect();
    (models, aside)
}

/// The message about accompanying files that were left out.
pub fn gguf_set_aside<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let names: Vec<&str> = names.into_iter().collect();
    (!names.is_empty()).then(|| {
        let names = names.join(", ");
        format!("set aside, since they go beside a model (projectors, drafts, adapters, importance matrices): {names}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_told_by_their_names() {
        let one = ["a/m-Q4_K_M-00001-of-00002.gguf", "a/m-Q4_K_M-00002-of-00002.gguf"];
        let cases: [(&[&str], &[&str]); 6] = [
            (&["mmproj-F16.gguf", one[0], one[1]], &one),
            (&["m-Q8_0.gguf", "m-mmproj-model-f16.gguf", "mmproj-m-00001-of-00002.gguf"], &["m-Q8_0.gguf"]),
            (&["m.gguf", "mtp-m.gguf", "m-mtp-Q8_0.gguf", "m-MTP.gguf", "eagle3-m.gguf"], &["m.gguf"]),
            (&["m.gguf", "imatrix.gguf", "m.imatrix.gguf"], &["m.gguf"]),
            // Nothing else is there, or it is a folder's name.
            (&["mmproj-F16.gguf"], &["mmproj-F16.gguf"]),
            (&["mmproj/m.gguf", "n.gguf"], &["mmproj/m.gguf", "n.gguf"]),
        ];
        for (names, expected) in cases {
            assert_eq!(gguf_models(names), expected, "{names:?}");
        }
    }
}
