//! Which of several schemes packs a matrix, by compressed-tensors' `targets`.
//!
//! A target is a module's name, a pattern after `re:`, or a class of modules, of which `Linear` is every matrix. The first that
//! fits counts: names, then patterns in alphabetical order, then classes (compressed-tensors, `utils/match.py`, `match_targets`,
//! and `quantization/lifecycle/apply.py`). Of Python's patterns those of literals, `.`, `.*`, `^` and `$` are read.

/// Longest pattern in characters.
const LONGEST: usize = 256;

/// What a scheme is for. In the order in which they count.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ModuleTarget {
    /// The module of this name.
    Name(String),
    /// Modules whose names begin as a pattern says.
    Pattern(NamePattern),
    /// Every matrix.
    Linear,
}

/// A pattern that a name's beginning must fit, or the whole name if the pattern ends in `$`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NamePattern {
    /// As it is written; patterns are sorted by it.
    text: String,
    pieces: Vec<PatternPiece>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PatternPiece {
    /// Any characters, or none.
    Any,
    /// One character.
    One,
    /// This character.
    Exactly(char),
}

impl ModuleTarget {
    /// Reads a target; the error names one that is not supported.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        match text.strip_prefix("re:") {
            Some(pattern) => NamePattern::read(pattern).map(ModuleTarget::Pattern),
            None if text == "Linear" => Ok(ModuleTarget::Linear),
            None => Ok(ModuleTarget::Name(text.to_owned())),
        }
    }

    /// Whether it fits a module, by its name.
    pub(super) fn fits(&self, module: &str) -> bool {
        match self {
            ModuleTarget::Name(name) => name == module,
            ModuleTarget::Pattern(pattern) => pattern.fits(module),
            ModuleTarget::Linear => true,
        }
    }
}

impl NamePattern {
    fn read(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().take(60).collect();
        let unsupported = || format!("compressed-tensors' target `re:{shown}`");
        if text.chars().count() > LONGEST {
            return Err(unsupported());
        }
        let within = text.strip_prefix('^').unwrap_or(text);
        let (within, is_whole) = within.strip_suffix('$').map_or((within, false), |within| (within, true));
        let mut pieces = Vec::new();
        let mut characters = within.chars().peekable();
        while let Some(character) = characters.next() {
            pieces.push(match character {
                '.' if characters.next_if_eq(&'*').is_some() => PatternPiece::Any,
                '.' => PatternPiece::One,
                '\\' => match characters.next() {
                    Some(escaped) if !escaped.is_alphanumeric() => PatternPiece::Exactly(escaped),
                    _ => return Err(unsupported()),
                },
                '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '^' | '$' => return Err(unsupported()),
                other => PatternPiece::Exactly(other),
            });
        }
        if !is_whole {
            pieces.push(PatternPiece::Any);
        }
        Ok(Self { text: text.to_owned(), pieces })
    }

    /// Whether a name fits. After a mismatch the last `.*` takes a character more: no more steps than name times pattern.
    fn fits(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut piece) = (0, 0);
        // The last `.*`, and how far it reaches.
        let mut any: Option<(usize, usize)> = None;
        while let Some(character) = name.get(at) {
            match self.pieces.get(piece) {
                Some(PatternPiece::Any) => {
                    any = Some((piece, at));
                    piece += 1;
                    continue;
                }
                Some(PatternPiece::One) => {}
                Some(PatternPiece::Exactly(wanted)) if wanted == character => {}
                _ => {
                    let Some((last, reached)) = any else { return false };
                    any = Some((last, reached + 1));
                    (piece, at) = (last + 1, reached + 1);
                    continue;
                }
            }
            (piece, at) = (piece + 1, at + 1);
        }
        self.pieces.iter().skip(piece).all(|piece| *piece == PatternPiece::Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Right values are those of Python's `re.match`.
    #[test]
    fn targets_fit_as_pythons_patterns_do() {
        let cases = [
            ("Linear", "model.layers.0.mlp.down_proj", true),
            ("lm_head", "lm_head", true),
            ("lm_head", "model.lm_head", false),
            ("re:.*lm_head", "lm_head", true),
            ("re:.*lm_head", "language_model.lm_head.x", true),
            ("re:.*lm_head$", "language_model.lm_head", true),
            ("re:.*lm_head$", "lm_head.x", false),
            ("re:lm_head", "model.lm_head", false),
            ("re:^lm.head$", "lm_head", true),
            (r"re:.*layers\.1\..*_proj$", "model.layers.1.self_attn.q_proj", true),
            (r"re:.*layers\.1\..*_proj$", "model.layers.11.self_attn.q_proj", false),
            ("re:.*down_proj.*", "model.layers.0.mlp.down_proj", true),
            ("re:.*a.*b.*c$", "xaybzbc", true),
            ("re:.*a.*b.*c$", "xaybzb", false),
            ("re:", "anything", true),
            ("re:$", "anything", false),
        ];
        for (target, name, expected) in cases {
            assert_eq!(ModuleTarget::read(target).unwrap().fits(name), expected, "{target} of {name}");
        }
        for target in ["re:(q|k)_proj", r"re:layers\.\d", "re:[qk]_proj", "re:a+", "re:a*", "re:x{2}", "re:\\"] {
            assert!(ModuleTarget::read(target).unwrap_err().contains(target), "{target}");
        }
        assert!(ModuleTarget::read(&format!("re:{}", "a".repeat(300))).is_err());
    }
}
