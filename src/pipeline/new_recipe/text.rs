//! The text of a new recipe: every choice with its reason in a comment.

use std::fmt;

use crate::log::{printable, printable_json};
use crate::memory::format_bytes;
use crate::pipeline::llm::{LlmFit, LlmSettings};
use crate::pipeline::room::Room;
use crate::recipe::{Recipe, Source};
use crate::spec::{KvCache, Precision};
use crate::tensor::TensorSpec;

/// Longest comment in characters that quotes a file or an error.
const QUOTED: usize = 200;

/// What is known of a vision or other ONNX model.
pub(super) struct GraphFacts {
    /// Task and classes, in words.
    pub(super) what: String,
    /// Height and width of its pictures.
    pub(super) size: Option<[u32; 2]>,
    /// Whether it is built in half precision.
    pub(super) is_half: bool,
    /// Inputs whose shapes the recipe has to fix before anything is built.
    pub(super) open_inputs: Vec<TensorSpec>,
    /// Estimated memory of the build, in words.
    pub(super) memory: String,
    /// What else should be known.
    pub(super) notes: Vec<String>,
}

/// RecipeLines of YAML.
#[derive(Default)]
struct RecipeLines(String);

impl RecipeLines {
    /// A comment of its own; what strangers named stays in its line.
    fn comment(&mut self, text: &str) {
        let text = printable(text).into_owned();
        let cut: String = text.chars().take(QUOTED).collect();
        let more = if cut.len() < text.len() { "…" } else { "" };
        self.0.push_str(&format!("# {cut}{more}\n"));
    }

    /// A field and why it is so.
    fn field(&mut self, key: &str, value: impl fmt::Display, why: &str) {
        let why = if why.is_empty() { String::new() } else { format!("  # {}", printable(why)) };
        self.0.push_str(&format!("{key}: {value}{why}\n"));
    }

    fn head(&mut self, given: &str, recipe: &Recipe, what: &str) {
        let version = env!("CARGO_PKG_VERSION");
        self.comment(&format!("Written by watus-build {version} for this machine, from {given}"));
        self.0.push_str("# It is yours to change: watus-build reads this file, and writes it but once.\n");
        self.field("version", crate::recipe::VERSION, "");
        self.field("name", scalar(recipe.name()), "of the engine directory");
        self.field("kind", recipe.kind(), what);
        self.source(recipe.source());
    }

    fn source(&mut self, source: &Source) {
        self.0.push_str("source:\n");
        let Source { hub, revision, path, pypi, ollama, package_version, file, sha256, .. } = source;
        let hub_why = if revision.is_none() { "its commit is pinned in watus.lock beside this file" } else { "" };
        for (key, value, why) in [
            ("  hub", hub, hub_why),
            ("  revision", revision, "its commit is pinned in watus.lock beside this file"),
            ("  path", path, "relative to this file, or absolute"),
            ("  ollama", ollama, "in the local store; what the tag names is looked up at each build"),
            ("  pypi", pypi, ""),
            ("  package_version", package_version, ""),
            ("  file", file, ""),
            ("  sha256", sha256, ""),
        ] {
            if let Some(value) = value {
                self.field(key, scalar(value), why);
            }
        }
    }
}

/// A text as a value of YAML: as it is where nothing else can be meant, else quoted as in JSON, which YAML reads.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '/'));
    let is_word = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    match plain && !is_word.contains(&text.to_ascii_lowercase().as_str()) {
        true => text.to_owned(),
        false => printable_json(&serde_json::to_string(text).unwrap_or_default()).into_owned(),
    }
}

/// A number of parameters, in words.
fn count(parameters: usize) -> String {
    match parameters {
        0..1_000_000 => format!("{parameters} parameters"),
        1_000_000..1_000_000_000 => format!("{} million parameters", parameters / 1_000_000),
        _ => format!("{:.1} billion parameters", parameters as f64 / 1e9),
    }
}

/// The recipe of a language model.
pub(super) fn llm(given: &str, recipe: &Recipe, fit: &LlmFit, room: &Room) -> String {
    let LlmSettings { precision, kv_cache, slots, lengths: (input, output) } = fit.settings;
    let mut lines = RecipeLines::default();
    lines.head(given, recipe, &format!("a language model: {}, {}", fit.family, count(fit.parameters)));
    lines.comment(&format!("Running it takes about {}.", fit.memory));
    lines.comment(&format!("That was fitted to {}, a tenth of which is left to others.", room.text()));
    lines.field("max_batch_size", slots, "sequences answered at once; each takes keys and values of its own");
    let positions = format!("longest prompt in tokens; with the answer at most {}", fit.positions);
    lines.field("max_input_len", input, &positions);
    let thousand = format_bytes((1000 * fit.position_bytes) as u64);
    let answer = format!("longest answer in tokens; 1000 tokens more take {thousand} per sequence");
    lines.field("max_output_len", output, &answer);
    let wanted = format_bytes(fit.wanted);
    let why = match precision {
        Precision::Bf16 => "the model was trained in bfloat16, and some of its activations exceed fp16".to_owned(),
        Precision::Int8 | Precision::Int4 => {
            format!("the build quantises the weights, and measures what that costs: in fp16 it would take {wanted}")
        }
        _ if fit.is_packed => "of the arithmetic; the weights' integers stay packed as they come".to_owned(),
        _ => "the weights fit as floats; int8 and int4 take less memory and are faster".to_owned(),
    };
    lines.0.push_str("build:\n");
    lines.field("  precision", precision, &why);
    if kv_cache == KvCache::Int8 {
        lines.field("  kv_cache", "int8", "half the memory of keys and values");
    }
    lines.0
}

/// The recipe of a vision or other ONNX model.
pub(super) fn graph(given: &str, recipe: &Recipe, facts: &GraphFacts) -> String {
    let mut lines = RecipeLines::default();
    lines.head(given, recipe, &facts.what);
    for note in &facts.notes {
        lines.comment(note);
    }
    if let Some([height, width]) = facts.size {
        lines.comment(&format!(
            "Pictures are brought to {height} x {width} pixels, which the model says or is usual for it."
        ));
    }
    lines.comment(&facts.memory);
    if facts.is_half {
        lines.0.push_str("build:\n");
        lines.field("  precision", "fp16", "layers that fail the proof in half precision stay in float32");
    } else if facts.open_inputs.is_empty() {
        lines.comment("`build: { precision: fp16 }` is faster, and takes half the memory.");
    }
    for input in &facts.open_inputs {
        lines.comment(&format!(
            "Before it is built, say the shape of the input {input}: write numbers for what is open."
        ));
    }
    if !facts.open_inputs.is_empty() {
        lines.0.push_str("# build:\n#   shapes:\n");
        for input in &facts.open_inputs {
            let dims: Vec<String> =
                input.shape.iter().map(|dim| dim.map_or_else(|| "1".to_owned(), |dim| dim.to_string())).collect();
            lines.comment(&format!("    {}: [{}]", scalar(&input.name), dims.join(", ")));
        }
    }
    if facts.size.is_some() {
        lines.comment("Pictures like those it will see make a better proof than random ones:");
        lines.0.push_str("# verify:\n#   images: [street.jpg]\n");
    }
    lines.0
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe;
    use crate::spec::Kind;
    use crate::tensor::DType;

    #[test]
    fn texts_of_any_kind_are_read_as_they_were() {
        for name in ["yes", "NO", "1e5", "-x", "m", "Qwen3-0.6B", "null", "3.10", "a.b"] {
            for path in [
                "/modele/żółw 1.gguf",
                "a: b # c",
                "'x'",
                "\"x\\y\"",
                "C:\\x",
                "~/x",
                "&a",
                "*a",
                "# a",
                "x\u{85}y",
                "💡",
            ] {
                let source = Source { path: Some(path.to_owned()), ..Source::default() };
                let bare = Recipe::bare(Kind::Onnx, name.to_owned(), source);
                let facts = GraphFacts {
                    what: "any".to_owned(),
                    size: None,
                    is_half: false,
                    open_inputs: Vec::new(),
                    memory: "a\nname: b".to_owned(),
                    notes: vec!["x".repeat(1000)],
                };
                let text = graph("path:a\nversion: 2", &bare, &facts);
                let read = recipe::parse(Path::new("m.yaml"), &text);
                // What holds a control character is no recipe, in whatever way it is written.
                match (path.chars().any(char::is_control), read) {
                    (false, Ok(read)) => assert_eq!(read, bare, "{text}"),
                    (true, Err(_)) => {}
                    (_, read) => panic!("{name}, {path}: {read:?}"),
                }
                assert!(text.lines().all(|line| line.chars().count() < QUOTED + 10), "{text}");
            }
        }
    }

    #[test]
    fn what_is_open_is_a_comment_to_fill_in() {
        let source = Source { path: Some("m.onnx".to_owned()), ..Source::default() };
        let bare = Recipe::bare(Kind::Onnx, "m".to_owned(), source);
        let input = TensorSpec { name: "x y".to_owned(), dtype: DType::Float32, shape: vec![None, Some(3), None] };
        let facts = GraphFacts {
            what: "any".to_owned(),
            size: Some([640, 480]),
            is_half: false,
            open_inputs: vec![input],
            memory: String::new(),
            notes: Vec::new(),
        };
        let text = graph("m.onnx", &bare, &facts);
        assert_eq!(recipe::parse(Path::new("m.yaml"), &text).unwrap(), bare);
        assert!(text.contains("# build:\n#   shapes:\n#     \"x y\": [1, 3, 1]\n"), "{text}");
        // Without the marks it is a recipe with a shape.
        let filled: Vec<&str> = text
            .lines()
            .map(|line| match line {
                "# build:" => "build:",
                "#   shapes:" => "  shapes:",
                "#     \"x y\": [1, 3, 1]" => "    \"x y\": [1, 3, 1]",
                line => line,
            })
            .collect();
        let read = recipe::parse(Path::new("m.yaml"), &(filled.join("\n") + "\n")).unwrap();
        assert!(read.build().unwrap().shapes.as_ref().unwrap().contains_key("x y"));
    }

    #[test]
    fn a_language_model_says_why() {
        let settings =
            LlmSettings { precision: Precision::Int4, kv_cache: KvCache::Int8, slots: 1, lengths: (512, 128) };
        let fit = LlmFit {
            settings,
            family: "llama",
            parameters: 8_030_261_248,
            positions: 131_072,
            is_packed: false,
            position_bytes: 67_584,
            memory: "5.4 GB: weights 4.3 GB, keys and values 45 MB, scratch 1.2 GB".to_owned(),
            wanted: 17_200_000_000,
        };
        let room = Room { free: 6_500_000_000, place: "Orin".to_owned(), shared: true, tensorrt: None };
        let source = Source { hub: Some("a/b".to_owned()), ..Source::default() };
        let text = llm("a/b", &Recipe::bare(Kind::Llm, "b".to_owned(), source), &fit, &room);
        for said in [
            "from a/b\n",
            "kind: llm  # a language model: llama, 8.0 billion parameters\n",
            "  hub: a/b  # its commit is pinned",
            "# Running it takes about 5.4 GB: weights 4.3 GB, keys and values 45 MB",
            "6.5 GB free on Orin",
            "max_batch_size: 1  # ",
            "max_input_len: 512  # longest prompt in tokens; with the answer at most 131072\n",
            "1000 tokens more take 68 MB per sequence\n",
            "  precision: int4  # the build quantises the weights, and measures what that costs: in fp16 it would take 17.2 GB\n",
            "  kv_cache: int8  # ",
        ] {
            assert!(text.contains(said), "no `{said}` in\n{text}");
        }
        let Recipe::Llm(read) = recipe::parse(Path::new("b.yaml"), &text).unwrap() else { panic!("no llm") };
        assert_eq!((read.max_batch_size, read.max_input_len, read.max_output_len), (Some(1), Some(512), Some(128)));
        assert_eq!(read.build.unwrap().precision, Some(Precision::Int4));
    }
}
