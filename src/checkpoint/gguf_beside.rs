//! GGUF files that lie beside a model and are none: projectors of pictures, drafts of coming tokens, importance matrices.
//!
//! Names are those by which llama.cpp tells them (`common/download.cpp`, `gguf_filename_is_model`); the metadata are
//! gguf-py's (`constants.py`, `GGUFType`).

use std::path::{Path, PathBuf};

use super::gguf::{self, Gguf};
use super::mapped::Mapped;

/// What the names of such files have in them.
const MARKS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];

/// `general.type` of what is no model.
const TYPES: [&str; 4] = ["adapter", "mmproj", "imatrix", "vocab"];

/// Whether a file's name, folders before it left aside, tells that it is none.
fn is_beside(name: &str) -> bool {
    let last = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    // In the middle or at the end: "Model-Q4_K_M-mtp.gguf".
    MARKS.iter().any(|mark| last.contains(mark)) || last.ends_with("-mtp.gguf")
}

/// The models among GGUF files, by their names; all of them, where no name tells one.
pub fn gguf_models<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let models: Vec<&str> = names.iter().copied().filter(|name| !is_beside(name)).collect();
    if models.is_empty() { names.to_vec() } else { models }
}

/// Whether a file's own words say that it is none; what cannot be read is left to whoever opens it.
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

/// Parts the GGUF files of a folder into models and what lies beside them: by names, and where those leave several, by what
/// the files say. `settled` tells whether what is left is one model.
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

/// What is said of files that were set aside.
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
