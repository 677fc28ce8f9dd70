//! GGUF models in several files, as llama.cpp's `gguf-split` writes them: `NAME-00001-of-00003.gguf` and so on. The
//! first file contains the metadata, each contains some of the tensors; `split.no`, `split.count` and
//! `split.tensors.count` identify the parts.

use std::path::{Path, PathBuf};

use super::gguf::{self, Gguf};
use super::mapped::Mapped;
use super::{CheckpointError, Entry};
use crate::diagnostic::Diagnostic;

/// The file name of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    prefix: String,
    number: usize,
    /// Total number of parts.
    pub count: usize,
}

impl PartName {
    /// Parses a file's name, with folders; `None` if it is no part's.
    pub fn of(name: &str) -> Option<Self> {
        let five = |digits: &str| -> Option<usize> {
            (digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
        };
        let (head, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, number) = head.rsplit_once('-')?;
        let (number, count) = (five(number)?, five(count)?);
        (1..=count).contains(&number).then(|| Self { prefix: prefix.to_owned(), number, count })
    }

    /// The names of all parts, in order.
    pub fn all(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.count).map(move |index| self.numbered(index))
    }

    /// Whether this is the part with the metadata.
    pub fn is_first(&self) -> bool {
        self.number == 1
    }

    /// Whether two files are parts of the same model.
    pub fn is_beside(&self, other: &Self) -> bool {
        (&self.prefix, self.count) == (&other.prefix, other.count)
    }

    fn numbered(&self, index: usize) -> String {
        format!("{}-{:05}-of-{:05}.gguf", self.prefix, index + 1, self.count)
    }

    fn of_path(path: &Path) -> Option<Self> {
        Self::of(&path.file_name()?.to_string_lossy())
    }
}

/// Whether all these files are parts of one model, by their names.
pub(super) fn is_one_set(paths: &[&PathBuf]) -> bool {
    let mut parts = paths.iter().map(|path| PartName::of_path(path));
    let Some(Some(first)) = parts.next() else { return false };
    parts.all(|part| part.is_some_and(|part| part.is_beside(&first)))
}

/// The opened parts: files in order, the first one's metadata, and all tensors.
pub(super) struct Parts {
    pub(super) files: Vec<Mapped>,
    pub(super) gguf: Gguf,
    pub(super) entries: Vec<(String, Entry)>,
}

struct SplitPart {
    file: Mapped,
    gguf: Gguf,
    entries: Vec<(String, Entry)>,
}

impl SplitPart {
    fn size(&self, key: &str) -> Option<usize> {
        self.gguf.integer(key).and_then(|value| usize::try_from(value).ok())
    }

    fn error(&self, message: impl Into<Diagnostic>) -> CheckpointError {
        CheckpointError::new(self.file.path(), message)
    }
}

/// Maps one file, or all parts of one model.
pub(super) fn open(paths: &[&PathBuf]) -> Result<Parts, CheckpointError> {
    let mut parts = Vec::new();
    for path in paths {
        let file = Mapped::open(path)?;
        let (gguf, entries) = gguf::parse(&file)?;
        parts.push(SplitPart { file, gguf, entries });
    }
    let count = parts.iter().find_map(|part| part.size("split.count")).unwrap_or(1);
    if count > 1 || parts.len() > 1 {
        check(&parts, count)?;
        parts.sort_by_key(|part| part.size("split.no"));
    }
    let (mut files, mut entries, mut first) = (Vec::new(), Vec::new(), None);
    for (index, part) in parts.into_iter().enumerate() {
        entries.extend(part.entries.into_iter().map(|(name, entry)| (name, Entry { file: index, ..entry })));
        files.push(part.file);
        first.get_or_insert(part.gguf);
    }
    Ok(Parts { files, gguf: first.unwrap_or_default(), entries })
}

/// Checks that every part is present, once, and of this model.
fn check(parts: &[SplitPart], count: usize) -> Result<(), CheckpointError> {
    let mut places: Vec<Option<&SplitPart>> = Vec::new();
    // No more places than files: the count is whatever a file says.
    places.resize(count.min(parts.len()), None);
    for part in parts {
        let number = match (part.size("split.no"), part.size("split.count")) {
            (Some(number), Some(have)) if have == count && number < count => number,
            (number, have) => {
                let said = |value: Option<usize>| value.map_or_else(|| "nothing".to_owned(), |value| value.to_string());
                return Err(part
                    .error(format!(
                        "it is no part of this model of {count} files: `split.no` says {}, `split.count` {}",
                        said(number),
                        said(have)
                    ))
                    .with_help("take it out of the folder, or fetch it again"));
            }
        };
        // A number beyond those that can all be there leaves a gap, which is told below.
        if let Some(place) = places.get_mut(number)
            && let Some(other) = place.replace(part)
        {
            let name = other.file.path().display();
            return Err(part.error(format!("it is part {} of {count}, and so is {name}", number + 1)));
        }
    }
    missing(parts, &places, count)?;
    let tensors: usize = parts.iter().map(|part| part.entries.len()).sum();
    let said =
        |part: &SplitPart| part.size("split.tensors.count").filter(|said| *said != tensors).map(|said| (said, tensors));
    match parts.iter().find_map(|part| Some((part, said(part)?))) {
        Some((part, (said, have))) => Err(part
            .error(format!("`split.tensors.count` is {said}, and the {count} parts have {have} tensors"))
            .with_help("a part is another model's, or of another version: fetch them again")),
        None => Ok(()),
    }
}

fn missing(parts: &[SplitPart], places: &[Option<&SplitPart>], count: usize) -> Result<(), CheckpointError> {
    if parts.len() >= count && places.iter().all(Option::is_some) {
        return Ok(());
    }
    let has = |number: usize| parts.iter().any(|part| part.size("split.no") == Some(number));
    let Some(first) = parts.first() else { return Ok(()) };
    let name = PartName::of_path(first.file.path()).filter(|name| name.count == count);
    let shown =
        |number: usize| name.as_ref().map_or_else(|| format!("part {}", number + 1), |name| name.numbered(number));
    let mut missing: Vec<String> = (0..count).filter(|number| !has(*number)).take(8).map(shown).collect();
    let more = count.saturating_sub(parts.len()).saturating_sub(missing.len());
    if more > 0 {
        missing.push(format!("{more} more"));
    }
    Err(first
        .error(format!("it is one of {count} parts of a model, and these are missing: {}", missing.join(", ")))
        .with_help("put all parts into one folder, and name it or any of them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_parts() {
        let part = PartName::of("Q4/model-q4-00002-of-00003.gguf").unwrap();
        assert_eq!((part.number, part.count), (2, 3));
        let all: Vec<String> = part.all().collect();
        assert_eq!(all[0], "Q4/model-q4-00001-of-00003.gguf");
        assert!(part.is_beside(&PartName::of(&all[2]).unwrap()));
        assert!(!part.is_beside(&PartName::of("Q4/model-q5-00001-of-00003.gguf").unwrap()));
        for name in [
            "model.gguf",
            "m-00004-of-00003.gguf",
            "m-00000-of-00003.gguf",
            "m-1-of-3.gguf",
            "m-0000a-of-00003.gguf",
            "m-+0001-of-00003.gguf",
            "m-00001-of-00003.safetensors",
        ] {
            assert_eq!(PartName::of(name), None, "{name}");
        }
    }
}
