//! Who may import whom, who owns which crate, and CONTRIBUTING's limits. The table of modules is ARCHITECTURE.md's.
//!
//! What is over a limit today is listed by name. A list fails, too, if what it names is there no more: it only gets shorter.
#![allow(clippy::unwrap_used)]

#[path = "layers/imports.rs"]
mod imports;
#[path = "layers/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use source::{Source, files};

/// Imports that are part of circles.
const CIRCLES: &[(&str, &str)] = &[];

/// Files of more than [`FILE_LINES`].
const LONG_FILES: &[&str] = &[];
const FILE_LINES: usize = 400;

/// Functions of more than [`FUNCTION_LINES`].
const LONG_FUNCTIONS: &[&str] = &[
    "benches/step_phases.cu main",
    "src/cuda_executor/decode_kernel/tests/attention.rs one_attention",
    "src/cuda_executor/decode_kernel/tests/matmul.rs one_product",
];
const FUNCTION_LINES: usize = 60;

/// Functions of more than [`PARAMETERS`].
const MANY_PARAMETERS: &[&str] = &[];
const PARAMETERS: usize = 5;

/// Names that several types have.
const SHARED_NAMES: &[&str] = &[];

/// A row of ARCHITECTURE.md's table.
struct Row {
    line: usize,
    module: String,
    /// Crates that nobody else uses, each with the files that may, which may be all of the module's.
    owns: Vec<(String, Vec<String>)>,
}

fn table() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = fs::read_to_string(path).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with("| line | module |")).skip(2);
    let rows: Vec<Row> = rows.take_while(|line| line.starts_with('|')).map(row).collect();
    assert!(rows.len() > 20, "ARCHITECTURE.md has no table of modules");
    rows
}

/// `| 3 | `fetch` | … | hf-hub (`hub.rs`), ureq |`.
fn row(text: &str) -> Row {
    let cells: Vec<&str> = text.trim_matches('|').split(" |").map(str::trim).collect();
    let [line, module, _, owns] = cells[..] else { panic!("ARCHITECTURE.md: a row of {} cells: {text}", cells.len()) };
    let module = module.trim_matches('`').to_owned();
    let owns = owns.split(", ").filter(|owned| !owned.is_empty()).map(|owned| {
        let (name, files) = owned.split_once(" (").unwrap_or((owned, ""));
        let files = files.trim_end_matches(')').split_whitespace().map(|file| file.trim_matches('`'));
        let files: Vec<String> = files.map(|file| format!("{module}/{file}")).collect();
        let everywhere = vec![format!("{module}/"), format!("{module}.rs")];
        (name.replace('-', "_"), if files.is_empty() { everywhere } else { files })
    });
    Row { line: line.parse().unwrap(), owns: owns.collect(), module }
}

/// Compares what was found with what is known, each in words.
fn only_known(found: impl IntoIterator<Item = String>, known: &[&str], list: &str) {
    let found: BTreeSet<String> = found.into_iter().collect();
    let known: BTreeSet<String> = known.iter().map(|known| (*known).to_owned()).collect();
    let new = found.difference(&known).map(|new| format!("new: {new}"));
    let gone = known.difference(&found).map(|gone| format!("no longer so, strike it off {list}: {gone}"));
    let wrong: Vec<String> = new.chain(gone).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// All Rust of the crate, by its paths in src.
fn rust() -> &'static [Source] {
    static SOURCES: OnceLock<Vec<Source>> = OnceLock::new();
    SOURCES.get_or_init(|| files("src", &["rs"]))
}

/// The module that a file of src belongs to.
fn module(name: &str) -> &str {
    name.split(['/', '.']).next().unwrap()
}

#[test]
fn modules_import_only_from_lines_above() {
    let table: BTreeMap<String, usize> = table().into_iter().map(|row| (row.module, row.line)).collect();
    let sources: Vec<&Source> = rust().iter().filter(|file| !is_root(file)).collect();
    let modules: BTreeSet<&str> = sources.iter().map(|source| module(&source.name)).collect();
    let rows: BTreeSet<&str> = table.keys().map(String::as_str).collect();
    assert_eq!(rows, modules, "the rows of ARCHITECTURE.md's table and the modules of src");
    let mut wrong = Vec::new();
    for Source { name, code, .. } in sources {
        for (at, found) in code.match_indices("crate::") {
            let target = source::word_at(code.as_bytes(), at + found.len());
            if target.is_empty() {
                wrong.push(format!("{name}: one module per `use crate::`, no groups"));
            } else if target != module(name) && table.get(&target) >= table.get(module(name)) {
                wrong.push(format!("{name} imports {target}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_root(source: &Source) -> bool {
    matches!(source.name.as_str(), "lib.rs" | "main.rs")
}

#[test]
fn files_import_in_one_direction() {
    let graph = imports::graph(rust());
    assert!(graph["text/chat.rs"].contains("text/message.rs"), "the scanner finds no imports");
    let circles = imports::circles(&graph);
    let known: BTreeSet<(String, String)> =
        CIRCLES.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
    let gone: Vec<_> = known.difference(&circles).collect();
    assert!(gone.is_empty(), "part of no circle any more, strike it off CIRCLES: {gone:?}");
    let mut rest = graph;
    for (from, to) in &known {
        rest.get_mut(from).unwrap().remove(to);
    }
    let left = imports::circles(&rest);
    let left: Vec<String> = left.iter().map(|(from, to)| format!("{from} imports {to}, which leads back")).collect();
    assert!(left.is_empty(), "{}", left.join("\n"));
}

#[test]
fn heavy_crates_have_one_owner() {
    let mut owners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (owned, files) in table().into_iter().flat_map(|row| row.owns) {
        owners.entry(owned).or_default().extend(files);
    }
    let (mut wrong, mut used) = (Vec::new(), BTreeSet::new());
    for Source { name, code, .. } in rust() {
        for (owned, owners) in &owners {
            let uses = code
                .match_indices(&format!("{owned}::"))
                .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
            if uses && !owners.iter().any(|owner| name.starts_with(owner.as_str())) {
                wrong.push(format!("{name} uses {owned}, which belongs to {}", owners.join(", ")));
            }
            used.extend(uses.then(|| owned.clone()));
        }
    }
    wrong.extend(owners.keys().filter(|owned| !used.contains(*owned)).map(|owned| format!("nobody uses {owned}")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// C++ and CUDA of the shim, the kernels and the benches, by their paths in the repository.
fn cpp() -> Vec<Source> {
    let below = |folder: &'static str| {
        let sources = files(folder, &["cu", "cuh", "cc", "h"]).into_iter();
        sources.map(move |source| Source { name: format!("{folder}/{}", source.name), ..source })
    };
    below("src").chain(below("cpp")).chain(below("benches")).collect()
}

#[test]
fn files_stay_readable() {
    for Source { name, text, .. } in rust() {
        assert!(text.starts_with("//!"), "{name} does not say what it is for");
    }
    let lines = |source: &Source| (source.name.clone(), source.lines());
    let rust = rust().iter().map(lines).map(|(name, lines)| (format!("src/{name}"), lines));
    let all = rust.chain(cpp().iter().map(lines).collect::<Vec<_>>());
    let long = all.filter(|(_, lines)| *lines > FILE_LINES).map(|(name, _)| name);
    only_known(long, LONG_FILES, "LONG_FILES");
}

#[test]
fn functions_stay_readable() {
    let rust: Vec<_> = rust().iter().map(|source| (format!("src/{}", source.name), source.functions())).collect();
    let count: usize = rust.iter().map(|(_, functions)| functions.len()).sum();
    assert!(count > 2000, "the scanner finds {count} functions");
    let is = |name: &str, function: &source::Function| format!("{name} {}", function.name);
    let many = rust.iter().flat_map(|(name, functions)| functions.iter().map(move |function| (name, function)));
    let many = many.filter(|(_, function)| function.parameters > PARAMETERS);
    only_known(many.map(|(name, function)| is(name, function)), MANY_PARAMETERS, "MANY_PARAMETERS");
    let cpp = cpp().into_iter().map(|source| (source.name.clone(), source.cpp_functions()));
    let mut long = Vec::new();
    for (name, functions) in rust.into_iter().chain(cpp) {
        long.extend(functions.iter().filter(|function| function.lines > FUNCTION_LINES).map(|one| is(&name, one)));
    }
    only_known(long, LONG_FUNCTIONS, "LONG_FUNCTIONS");
}

/// The next step of an error is a field. How it stands in a text is said once, and once where the command line prints it alone.
#[test]
fn hints_are_no_part_of_texts() {
    let (mut wrong, mut places) = (Vec::new(), BTreeSet::new());
    for source in rust().iter().filter(|source| !source.is_test()) {
        for (at, _) in source.literals().into_iter().filter(|(_, literal)| literal.contains("hint: ")) {
            match source.name.as_str() {
                name @ ("diagnostic.rs" | "cli/mod.rs") => drop(places.insert(name)),
                name => wrong.push(format!("src/{name}:{}", source.text[..at].matches('\n').count() + 1)),
            }
        }
    }
    assert!(wrong.is_empty(), "give a Diagnostic its help instead of writing `hint: `: {}", wrong.join(", "));
    assert_eq!(places.len(), 2, "the scanner finds literals in {places:?}");
}

/// Errors that have a next step are asked for it by whoever prints them.
#[test]
fn every_diagnosis_is_asked_for() {
    const DECLARED: &str = "impl Diagnose for ";
    let code = &rust().iter().find(|source| source.name == "api/error.rs").unwrap().code;
    let declared =
        rust().iter().flat_map(|source| source.code.split(DECLARED).skip(1).map(|rest| (&source.name, rest)));
    let declared: Vec<_> = declared.map(|(name, rest)| (name, rest.split(" {").next().unwrap_or_default())).collect();
    assert!(declared.len() > 5, "the scanner finds {declared:?}");
    for (name, error) in declared {
        let asked = code.contains(&format!("ask::<{error}>,"));
        assert!(asked, "src/{name}: {error} is not among the CAUSES of src/api/error.rs");
    }
}

/// What is searched for by its name should be found once. The command line's `Args` are apart.
#[test]
fn types_have_names_of_their_own() {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in rust() {
        if !source.name.starts_with("cli/") && !source.is_test() {
            source.types().into_iter().for_each(|name| names.entry(name).or_default().push(source.name.clone()));
        }
    }
    assert!(names.len() > 300, "the scanner finds {} types", names.len());
    let shared = names.into_iter().filter(|(_, files)| files.len() > 1);
    // Where, for who has to choose another name.
    let told = |(name, files): (String, Vec<String>)| match SHARED_NAMES.contains(&name.as_str()) {
        true => name,
        false => format!("{name} is declared in {}", files.join(", ")),
    };
    only_known(shared.map(told), SHARED_NAMES, "SHARED_NAMES");
}

/// Comments, literals and tests are no code; what is within them forbids nothing, and what follows them is not lost.
#[test]
fn the_scanner_reads_rust() {
    let text = r##"
//! use crate::cli; "
use crate::a::{b as c, d::{self, e}};
/* fn no() { */
fn url<'a, T: Fn(&str) -> bool>(&'a self, a: (u8, u8), b: [u8; 2], c: &dyn Fn(u8, u8) -> u8) -> String where T: Copy {
    let quote = ('"', '\'', b'\\', "http://x \" {", r#"// " }"#, 'ż');
    crate::f::g("//");
}
trait Way { type Item; fn no_body(&self, x: [u8; 1]); }
type Alias = fn(u8) -> u8;
#[cfg(test)]
mod tests { use crate::h; struct Hidden; fn f() { { "hidden" } } }
enum After { Tests }
"##;
    let source = Source::new("x.rs".to_owned(), text.to_owned(), true);
    assert_eq!(source.code.len(), text.len());
    assert!(!source.code.contains("cli") && !source.code.contains("http") && !source.code.contains("Hidden"));
    let functions = source.functions();
    assert_eq!(
        functions.iter().map(|one| (one.name.as_str(), one.lines, one.parameters)).collect::<Vec<_>>(),
        [("url", 4, 3)]
    );
    assert_eq!(source.types(), ["After", "Way", "Alias"]);
    let literals: Vec<&str> = source.literals().into_iter().map(|(_, literal)| literal).collect();
    let said = ["'\"'", r"'\''", r"'\\'", r#""http://x \" {""#, r###"r#"// " }"#"###, "'ż'", r#""//""#];
    assert_eq!(literals, said);
}
