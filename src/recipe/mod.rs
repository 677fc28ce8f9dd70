//! Reads recipes: YAML to a checked [`Recipe`], or to one error with file, line and suggestion.
//!
//! `schema.rs` and `onnx.rs` are the fields, `kinds.rs` the recipe of any kind (`values.rs` reads fields of several
//! types), `controls.rs` and `check.rs` refuse what is invalid, and `plan.rs` fills in the defaults. `named_source.rs` reads a
//! source in one line.

mod check;
mod controls;
mod kinds;
mod named_source;
mod onnx;
mod package;
mod plan;
mod schema;
mod shape;
mod values;
mod yaml;

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::diagnostic::{Diagnose, Diagnostic};
use crate::log::printable;
use crate::regular_file;

pub use kinds::{Recipe, json_schema};
pub use named_source::{name_of, parse_source, repository, scheme_of};
pub use onnx::{InputValue, OnnxRecipe};
pub use package::{is_package_name, is_package_version};
pub use plan::{BuildPlan, ClassifierPlan, LlmPlan, ModelPlan, Plan, SourcePlan, VerifyPlan, YoloPlan};
pub use schema::*;
pub use shape::{InputRange, InputShape};
pub(crate) use yaml::danger as yaml_danger;

/// Largest recipe file, 1 MiB. Recipes are a page of text.
const SIZE_LIMIT: u64 = 1 << 20;

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read recipe {}: {source}", path.display())]
    Read {
        /// Path of the recipe.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is not a valid recipe.
    #[error("{}", self.diagnostic())]
    Invalid {
        /// Path of the recipe.
        path: PathBuf,
        /// Line of the mistake, counted from 1, if known.
        line: Option<usize>,
        /// The mistake.
        message: String,
        /// A hint: what to write instead.
        help: Option<String>,
    },
}

impl Diagnose for RecipeError {
    fn diagnostic(&self) -> Diagnostic {
        match self {
            Self::Read { path, source } => source.diagnostic().at(format!("cannot read recipe {}", path.display())),
            Self::Invalid { path, line, message, help } => {
                let line = line.map(|line| format!(":{line}")).unwrap_or_default();
                let what = Diagnostic::new(message).at(format!("{}{line}", path.display()));
                Diagnostic { help: help.clone(), ..what }
            }
        }
    }
}

/// Reads and checks the recipe at `path`.
pub fn load(path: &Path) -> Result<Recipe, RecipeError> {
    let read = |source| RecipeError::Read { path: path.to_owned(), source };
    parse(path, &regular_file::read_text(path, SIZE_LIMIT).map_err(read)?)
}

/// Checks the text of a recipe; `path` is for messages and for relative paths.
pub fn parse(path: &Path, text: &str) -> Result<Recipe, RecipeError> {
    // Text from elsewhere than `load` may have one too.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let document = Document { path, text };
    if let Some((what, help)) = yaml::danger(text) {
        return Err(document.error(&[], what, Some(help)));
    }
    let header: RecipeHeader = serde_yaml::from_str(text).map_err(|error| document.yaml_error(&error))?;
    let Some(version) = header.version else {
        return Err(document.error(&[], "a recipe starts with its schema version", Some("add the line `version: 1`")));
    };
    if version != VERSION {
        let message = format!("schema version {version} is not supported; this tool reads version {VERSION}");
        return Err(document.error(&["version"], &message, Some("update watus-build, or set `version: 1`")));
    }
    let Some(kind) = header.kind else {
        let help = "add `kind: llm`, `yolo`, `classifier` or `onnx`";
        return Err(document.error(&[], "the recipe does not say what it makes", Some(help)));
    };
    // Each kind is read straight from the text, so that serde's errors carry their line.
    let recipe = match kind.as_str() {
        "llm" => serde_yaml::from_str(text).map(Recipe::Llm),
        "yolo" => serde_yaml::from_str(text).map(Recipe::Yolo),
        "classifier" => serde_yaml::from_str(text).map(Recipe::Classifier),
        "onnx" => serde_yaml::from_str(text).map(Recipe::Onnx),
        other => {
            let help = suggest(other, ["llm", "yolo", "classifier", "onnx"].into_iter());
            return Err(document.error(&["kind"], &format!("unknown kind `{other}`"), help.as_deref()));
        }
    }
    .map_err(|error| document.yaml_error(&error))?;
    controls::check(&document, &recipe)?;
    check::check(&document, &recipe)?;
    Ok(recipe)
}

/// Checks a recipe that a program has made, by the same rules as one that was written.
pub fn validate(recipe: &Recipe) -> Result<Recipe, RecipeError> {
    let path = PathBuf::from(format!("recipe `{}`", printable(recipe.name())));
    let invalid = |message: String, help| RecipeError::Invalid { path: path.clone(), line: None, message, help };
    let text = serde_yaml::to_string(recipe).map_err(|error| invalid(error.to_string(), None))?;
    parse(&path, &text).map_err(|error| match error {
        // Nobody has seen the text that has such lines.
        RecipeError::Invalid { message, help, .. } => invalid(message, help),
        error => error,
    })
}

/// The two fields that every version of the format has.
#[derive(Deserialize)]
#[serde(expecting = "a map of fields")]
struct RecipeHeader {
    version: Option<u32>,
    kind: Option<String>,
}

/// The text of a recipe, for errors that name a line of it.
pub(crate) struct Document<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Document<'_> {
    /// Makes an error at the line of a field, which `field` names by its keys from the top.
    pub(crate) fn error(&self, field: &[&str], message: &str, help: Option<&str>) -> RecipeError {
        RecipeError::Invalid {
            path: self.path.to_owned(),
            line: self.line_of(field),
            // It quotes the recipe, which may have been written to forge lines.
            message: printable(message).into_owned(),
            help: help.map(|help| printable(help).into_owned()),
        }
    }

    fn yaml_error(&self, error: &serde_yaml::Error) -> RecipeError {
        let line = error.location().map(|location| location.line());
        let text = error.to_string();
        let message = text.split(" at line ").next().unwrap_or(&text).to_owned();
        let help = unknown_name(&message).and_then(|(name, known)| {
            suggest(name, known.iter().copied()).or_else(|| Some(format!("known here: {}", known.join(", "))))
        });
        // serde lists every known field; the hint is shorter.
        let message = match (&help, message.split_once(", expected")) {
            (Some(_), Some((short, _))) => short.to_owned(),
            _ => message,
        };
        // An unknown field is reported at the start of its mapping; its own line is better.
        let line = unknown_name(&text).and_then(|(name, _)| self.line_of_key(name)).or(line);
        let help = help.map(|help| printable(&help).into_owned());
        RecipeError::Invalid { path: self.path.to_owned(), line, message: printable(&message).into_owned(), help }
    }

    fn line_of_key(&self, key: &str) -> Option<usize> {
        let mut found = (1..).zip(self.text.lines()).filter(|(_, line)| is_key(line, key));
        match (found.next(), found.next()) {
            (Some((line, _)), None) => Some(line),
            _ => None,
        }
    }

    /// Line of a field in block style: each key is searched for below its parent.
    fn line_of(&self, field: &[&str]) -> Option<usize> {
        let mut lines = (1..).zip(self.text.lines());
        let mut found = None;
        for key in field {
            found = Some(lines.by_ref().find(|(_, line)| is_key(line, key))?.0);
        }
        found
    }
}

fn is_key(line: &str, key: &str) -> bool {
    line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':'))
}

/// Splits serde's message "unknown field `x`, expected one of `a`, `b`" (or variant) into `x` and the known names.
fn unknown_name(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = &message[message.find("unknown field `").or_else(|| message.find("unknown variant `"))?..];
    let mut quoted = rest.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

/// "did you mean …", if a known name is similar to `name`.
pub(crate) fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| format!("did you mean `{candidate}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Kind;

    const GOOD: &str = "version: 1\nname: face\nkind: classifier\nsource:\n  path: face.onnx\npreprocess:\n  mean: [0, 0, 0]\n  std: [255, 255, 255]\n";

    const ONNX: &str = "version: 1\nname: m\nkind: onnx\nsource: { path: m.onnx }\n";

    const LLM: &str = "version: 1\nname: m\nkind: llm\nsource: { path: m }\n";

    const YOLO: &str = "version: 1\nname: y\nkind: yolo\nsource:\n  path: y.pt\n";

    fn error(text: &str) -> String {
        parse(Path::new("r.yaml"), text).unwrap_err().to_string()
    }

    #[test]
    fn a_good_recipe_parses() {
        let recipe = parse(Path::new("r.yaml"), GOOD).unwrap();
        assert_eq!((recipe.name(), recipe.kind()), ("face", Kind::Classifier));
    }

    #[test]
    fn what_a_program_makes_is_checked_as_what_is_written() {
        for text in [GOOD, ONNX, YOLO] {
            let recipe = parse(Path::new("r.yaml"), text).unwrap();
            assert_eq!(validate(&recipe).unwrap(), recipe, "{text}");
        }
        let Recipe::Yolo(mut recipe) = parse(Path::new("r.yaml"), YOLO).unwrap() else { panic!("no yolo") };
        recipe.confidence = Some(7.0);
        let written = error(&format!("{YOLO}confidence: 7\n"));
        let (_, message) = written.split_once(": ").unwrap();
        assert_eq!(validate(&recipe.into()).unwrap_err().to_string(), format!("recipe `y`: {message}"));
    }

    #[test]
    fn files_are_read_as_editors_write_them_and_pipes_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.yaml");
        std::fs::write(&path, format!("\u{feff}{GOOD}")).unwrap();
        assert_eq!(load(&path).unwrap().name(), "face");
        assert!(parse(&path, &format!("\u{feff}{GOOD}verison: 1\n")).unwrap_err().to_string().contains("verison"));
        let utf16: Vec<u8> = GOOD.encode_utf16().flat_map(u16::to_le_bytes).collect();
        std::fs::write(&path, [&[0xFF, 0xFE], &utf16[..]].concat()).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains("r.yaml") && error.contains("UTF-16") && error.contains("hint: "), "{error}");
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        for (path, what) in
            [(path.as_path(), "a pipe"), (folder.path(), "a directory"), (Path::new("/dev/zero"), "a device")]
        {
            let error = load(path).unwrap_err().to_string();
            assert!(error.contains(&format!("it is {what}, not a file")), "{error}");
        }
    }

    #[test]
    fn prompts_may_have_several_lines() {
        let text = YOLO.replace("yolo", "llm") + "verify:\n  prompts: [\"a\\n\\tb\"]\n";
        assert!(parse(Path::new("r.yaml"), &text).is_ok(), "{:?}", parse(Path::new("r.yaml"), &text));
    }

    #[test]
    fn mistakes_name_line_and_remedy() {
        let with = |from: &str, to: &str| GOOD.replace(from, to);
        let cases = [
            (with("version: 1\n", ""), &["schema version", "version: 1"][..]),
            (with("version: 1", "version: 2"), &["r.yaml:1", "version 2 is not supported"]),
            (with("kind: classifier\n", ""), &["does not say what it makes"]),
            (with("classifier", "clasifier"), &["r.yaml:3", "clasifier", "did you mean `classifier`?"]),
            (with("preprocess", "preproces"), &["r.yaml:6", "unknown field `preproces`", "did you mean `preprocess`?"]),
            (with("  std:", "  stdev:"), &["r.yaml:8", "unknown field `stdev`", "did you mean `std`?"]),
            (with("[255, 255, 255]", "[255, 255]"), &["r.yaml:", "invalid length 2"]),
            (with("[255, 255, 255]", "[255, 0, 255]"), &["r.yaml:8", "std"]),
            (with("name: face", "name: ../face"), &["r.yaml:2", "name"]),
            (with("  path: face.onnx", "  {}"), &["source"]),
            (with("  path: face.onnx", "  path: a\n  hub: o/n"), &["hub", "path", "one"]),
            (with("  path: face.onnx", "  path: a\n  revision: x"), &["r.yaml:6", "revision", "hub"]),
            (with("  path: face.onnx", "  url: https://x/y.onnx"), &["r.yaml:5", "sha256"]),
            (with("  path: face.onnx", "  url: ftp://x/y\n  sha256: aa"), &["r.yaml:", "http"]),
            (with("  path: face.onnx", "  pypi: p\n  package_version: '1'\n  file: ../x"), &["r.yaml:7", "file"]),
            (with("  path: face.onnx", "  pypi: p\n  file: x"), &["package_version"]),
            (with("  path: face.onnx", "  hub: name"), &["r.yaml:5", "owner/name"]),
            (format!("{GOOD}build:\n  precision: fp17\n"), &["r.yaml:10", "fp17", "did you mean `fp16`?"]),
            (format!("{GOOD}build:\n  batch: 4\n  max_batch: 2\n"), &["r.yaml:11", "max_batch"]),
            (format!("{GOOD}build:\n  head: int8\n"), &["r.yaml:10", "head is for language models"]),
            (format!("{LLM}build:\n  head: int9\n"), &["r.yaml:6", "int9", "did you mean `int"]),
            (
                format!("{LLM}build:\n  precision: bf16\n  head: int8\n"),
                &["r.yaml:7", "`head: int8` computes in fp16, `precision: bf16` does not"],
            ),
            (
                format!("{LLM}build:\n  head: bf16\n"),
                &["r.yaml:6", "`head: bf16` is not the type that `precision: fp16` computes in", "use int8 or int4"],
            ),
            (format!("{LLM}build:\n  head: fp16\n  group_size: 64\n"), &["r.yaml:7", "group_size belongs to"]),
            (format!("{GOOD}build:\n  optimization_level: 9\n"), &["r.yaml:10", "0 to 5"]),
            (format!("{GOOD}output: expectation\n"), &["r.yaml:9", "class_values"]),
            (format!("{GOOD}class_values: [1, 2]\n"), &["r.yaml:9", "expectation"]),
            (format!("{GOOD}verify:\n  tolerance: 0\n"), &["r.yaml:10", "tolerance"]),
            ("version: [".to_owned(), &["r.yaml"]),
            ("[]".to_owned(), &["r.yaml", "invalid type: sequence, expected a map of fields"]),
            ("5".to_owned(), &["r.yaml", "invalid type: integer `5`, expected a map of fields"]),
            (format!("{ONNX}build: 5\n"), &["r.yaml:5", "invalid type: integer `5`, expected a map of fields"]),
            (
                with("  path: face.onnx", "  pypi: --requirement\n  package_version: '1.0'\n  file: x"),
                &["r.yaml:5", "pack"],
            ),
            (
                with("  path: face.onnx", "  pypi: p\n  package_version: '1.*'\n  file: x"),
                &["r.yaml:6", "exact version"],
            ),
            (with("  path: face.onnx", "  pypi: ''\n  package_version: '1'\n  file: x"), &["r.yaml:5", "package name"]),
            (
                format!("{GOOD}verify:\n  images: [{{pypi: \"-r\", package_version: \"1.0\", file: a.png}}]\n"),
                &["`-r` is not a package name"],
            ),
            (with("  path: face.onnx", "  url: ftp://me:secret@x/y\n  sha256: aa"), &["`ftp://x/y` is not an http"]),
            (format!("a: {}", "[".repeat(40_000)), &["too many brackets"]),
            (format!("version: {}1{}", "[".repeat(200), "]".repeat(200)), &["r.yaml"]),
            (with("mean: [0, 0, 0]", "mean: [0, .nan, 0]"), &["r.yaml:7", "mean must be finite"]),
            (with("[255, 255, 255]", "[.inf, 1, 1]"), &["r.yaml:8", "std"]),
            (format!("{GOOD}  size: [20000, 1]\n"), &["r.yaml:9", "size is 20000", "from 1 to 16384"]),
            (format!("{GOOD}  size: [0, 1]\n"), &["r.yaml:9", "size is 0"]),
            (format!("{GOOD}output: expectation\nclass_values: [1, -.inf]\n"), &["r.yaml:10", "finite"]),
            (format!("{GOOD}build:\n  batch: 0\n"), &["r.yaml:10", "batch is 0", "from 1 to 65536"]),
            (format!("{GOOD}build:\n  max_batch: 4000000000\n"), &["r.yaml:10", "from 1 to 65536"]),
            (format!("{GOOD}build:\n  workspace_mib: 4000000000\n"), &["r.yaml:10", "from 1 to 4194304"]),
            (format!("{GOOD}build:\n  shapes: {{x: [4000000000, 4000000000]}}\n"), &["r.yaml:10", "elements"]),
            (
                format!("{GOOD}build:\n  shapes: {{x: {{min: [1], opt: [2], max: [3]}}}}\n"),
                &["r.yaml:10", "a range of shapes for `x` is for the kind onnx"],
            ),
            (format!("{ONNX}build:\n  shapes: {{x: {{min: [1], opt: [2]}}}}\n"), &["r.yaml:6", "missing field `max`"]),
            (
                format!("{ONNX}build:\n  shapes: {{x: {{min: [1], opt: [2], max: [3], step: [1]}}}}\n"),
                &["r.yaml:6", "unknown field `step`"],
            ),
            (format!("{ONNX}build:\n  shapes: {{x: wide}}\n"), &["r.yaml:6", "a range { min: [1, 8]"]),
            (format!("{ONNX}build:\n  shapes: {{x: [1, wide]}}\n"), &["r.yaml:6", "wide"]),
            (
                format!("{ONNX}build:\n  shapes: {{x: {{min: [1, 1], opt: [2], max: [3, 3]}}}}\n"),
                &["r.yaml:6", "min, opt and max of `x` have [2, 1, 2] dimensions"],
            ),
            (
                format!("{ONNX}build:\n  shapes: {{x: {{min: [1, 5], opt: [2, 4], max: [3, 9]}}}}\n"),
                &["r.yaml:6", "dimension 1 of `x`: min 5 <= opt 4 <= max 9 does not hold"],
            ),
            (
                format!("{ONNX}build:\n  shapes: {{x: {{min: [0], opt: [2], max: [3]}}}}\n"),
                &["r.yaml:6", "dimension 0 of `x`", "the least is 1"],
            ),
            (
                format!("{ONNX}build:\n  shapes: {{x: {{min: [1, 1], opt: [2, 2], max: [4000000000, 4000000000]}}}}\n"),
                &["r.yaml:6", "elements"],
            ),
            (format!("{GOOD}verify:\n  tolerance: .nan\n"), &["r.yaml:10", "tolerance"]),
            (format!("{GOOD}verify:\n  inputs: [{{x: a.npy}}]\n"), &["r.yaml:10", "is for the kind onnx"]),
            (
                format!("{ONNX}inputs:\n  sr: 16000\n  mode: fast\n"),
                &["r.yaml:7", "inputs.mode: ", "\"fast\", expected a number, true or false, or a list of numbers"],
            ),
            (
                format!("{ONNX}inputs:\n  sr:\n    - 1\n    - x\n"),
                &["r.yaml:8", "inputs.sr[1]: ", "\"x\", expected a number"],
            ),
            (
                format!("{ONNX}inputs: {{ sr: 9223372036854775808 }}\n"),
                &["r.yaml:5", "inputs.sr", "up to 9223372036854775807"],
            ),
            (
                format!("{GOOD}  resize: big\n"),
                &["r.yaml:9", "preprocess.resize: ", "a number of pixels, or [HEIGHT, WIDTH]"],
            ),
            (format!("{GOOD}  resize: [1]\n"), &["r.yaml:9", "preprocess.resize: ", "invalid length 1"]),
            (
                format!("{YOLO}image_size: -64\n"),
                &["r.yaml:6", "image_size: ", "a number of pixels, or [HEIGHT, WIDTH]"],
            ),
            (
                format!("{YOLO}verify:\n  images:\n    - a.png\n    - 3\n"),
                &["r.yaml:9", "verify.images[1]: ", "a path, or a source"],
            ),
            (
                format!("{YOLO}verify:\n  images: [{{ pth: x }}]\n"),
                &["r.yaml:7", "unknown field `pth`", "did you mean `path`?"],
            ),
            (format!("{ONNX}inputs: {{ sr: .nan }}\n"), &["the value of `sr`", "finite"]),
            (format!("{ONNX}inputs: {{ sr: [] }}\n"), &["the value of `sr`", "1 to 65536"]),
            (format!("{ONNX}verify:\n  inputs: []\n"), &["r.yaml:6", "1 to 100 tries"]),
            (format!("{GOOD}verify:\n  divergence: .inf\n"), &["r.yaml:10", "divergence must be"]),
            (format!("{GOOD}verify:\n  perplexity: .nan\n"), &["r.yaml:10", "perplexity must be"]),
            (format!("{GOOD}verify:\n  seeds: 4000000000\n"), &["r.yaml:10", "from 0 to 10000"]),
            (format!("{GOOD}labels: [\"a\\nok   b: hashes\"]\n"), &["r.yaml:9", "`labels`", "U+000A"]),
            (with("name: face", "name: \"a\\u001b\""), &["r.yaml:2", "`name`", "U+001B"]),
            (with("  path: face.onnx", "  path: \"a\\tb\""), &["r.yaml:5", "`source.path`", "U+0009"]),
            (with("  path: face.onnx", "  hub: o/n\n  files: [\"a\\r\"]"), &["r.yaml:6", "`source.files`"]),
            (with("  path: face.onnx", "  hub: o/n\n  file: \"a\\nb\""), &["r.yaml:6", "`source.file`"]),
            (with("classifier", "\"a\\nerror: forged\""), &["r.yaml:3", "unknown kind `a\\nerror: forged`"]),
            (format!("{GOOD}\"a\\nerror: forged\": 1\n"), &["unknown field `a\\nerror: forged`"]),
            (format!("{YOLO}confidence: .nan\n"), &["r.yaml:6", "confidence is NaN", "from 0 to 1"]),
            (format!("{YOLO}iou: -1\n"), &["r.yaml:6", "iou is -1"]),
            (format!("{YOLO}max_detections: 4000000000\n"), &["r.yaml:6", "from 1 to 100000"]),
            (format!("{YOLO}max_batch_size: 5000\n").replace("yolo", "llm"), &["r.yaml:6", "from 1 to 4096"]),
        ];
        for (text, expected) in cases {
            let message = error(&text);
            for part in expected {
                assert!(message.contains(part), "for\n{text}\ngot `{message}`, which lacks `{part}`");
            }
        }
    }
}
