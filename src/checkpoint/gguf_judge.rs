//! Checks whether a GGUF is supported by its first bytes, before gigabytes of it are downloaded.

use super::gguf::{Gguf, SHORT, big_endian, is_big_endian, parse_bytes};
use super::gguf_names;
use crate::diagnostic::Diagnostic;

/// Result of the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// The header continues after these bytes.
    Undecided,
    /// The file is supported.
    Readable,
    /// The file is not supported, for this reason.
    Refused(Diagnostic),
}

impl Gguf {
    /// Checks the first bytes of a file whose length is `total`.
    pub fn judge(start: &[u8], total: u64) -> Judgement {
        let total = usize::try_from(total).unwrap_or(usize::MAX);
        if is_big_endian(start) {
            return Judgement::Refused(big_endian());
        }
        match parse_bytes(start, total) {
            Err(message) if message.contains(SHORT) && start.len() < total => Judgement::Undecided,
            Err(message) => Judgement::Refused(format!("not a whole GGUF file: {message}").into()),
            Ok((gguf, tensors)) => {
                let architecture = gguf.text("general.architecture").unwrap_or_default();
                let mut read = tensors.iter().filter(|(name, _)| !gguf_names::is_of_pictures(architecture, name));
                let unread = read.find_map(|(name, entry)| Some((name, entry.encoding.as_ref().err()?)));
                let unread = unread.map(|(name, encoding)| {
                    Diagnostic::new(format!("tensor `{name}`: elements of type {encoding} are not supported"))
                });
                // Of a model in parts the first one holds the metadata.
                let is_later_part = gguf.integer("split.no").is_some_and(|number| number > 0);
                let names = tensors.iter().map(|(name, _)| name.as_str());
                let refused = if is_later_part { None } else { gguf_names::refusal(&gguf, names) };
                refused.or(unread).map_or(Judgement::Readable, Judgement::Refused)
            }
        }
    }
}
