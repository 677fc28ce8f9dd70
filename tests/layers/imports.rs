//! Which file imports from which: `use` declarations and paths that begin with `crate` or `super`, followed through what modules
//! export again. What a module takes of the modules inside it is no import: they are its parts.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, is_word, skip_space, words};

/// A module's path below the crate.
type Module = Vec<String>;

/// One name that a `use` declaration brings.
struct Import {
    path: Vec<String>,
    /// What it is called here.
    alias: String,
}

/// Files by their names, each with those that it imports from.
pub type Graph = BTreeMap<String, BTreeSet<String>>;

/// All modules that have a file, by their paths.
struct Modules<'a> {
    files: BTreeMap<Module, &'a Source>,
    imports: BTreeMap<Module, Vec<Import>>,
}

fn module_of(name: &str) -> Module {
    let stem = name.trim_end_matches(".rs");
    let mut path: Module = stem.split('/').map(str::to_owned).collect();
    path.pop_if(|last| matches!(last.as_str(), "mod" | "lib" | "main"));
    path
}

pub fn graph(sources: &[Source]) -> Graph {
    let kept = sources.iter().filter(|source| source.name != "main.rs" && !source.is_test());
    let files: BTreeMap<Module, &Source> = kept.map(|source| (module_of(&source.name), source)).collect();
    let imports = files.iter().map(|(module, source)| (module.clone(), imports(&source.code))).collect();
    let modules = Modules { files, imports };
    let mut graph = Graph::new();
    for (module, source) in &modules.files {
        let mut targets = BTreeSet::new();
        let used = modules.imports[module].iter().map(|import| &import.path).cloned();
        for path in used.chain(paths(&without_imports(&source.code))) {
            // Unless it begins so, it is a part of this module or another crate.
            if !matches!(path[0].as_str(), "crate" | "super") {
                continue;
            }
            if let Some(target) = modules.resolve(module, &path, &mut Vec::new()).filter(|to| !to.starts_with(module)) {
                targets.insert(modules.files[&target].name.clone());
            }
        }
        graph.insert(source.name.clone(), targets);
    }
    graph
}

impl Modules<'_> {
    /// The module whose file declares what `path` names as seen from `from`; none of other crates.
    fn resolve(&self, from: &Module, path: &[String], seen: &mut Vec<(Module, String)>) -> Option<Module> {
        let (mut module, mut at) = (from.clone(), 0);
        match path.first()?.as_str() {
            "crate" => (module, at) = (Module::new(), 1),
            "self" => at = 1,
            "super" => {
                while path.get(at).is_some_and(|part| part == "super") {
                    module.pop();
                    at += 1;
                }
            }
            part if !self.has(&module, part) => return None,
            _ => {}
        }
        while let Some(part) = path.get(at).filter(|part| self.has(&module, part)) {
            module.push(part.clone());
            at += 1;
        }
        let Some(name) = path.get(at) else { return Some(module) };
        let step = (module.clone(), name.clone());
        if !seen.contains(&step) {
            seen.push(step);
            let mut named = self.imports.get(&module)?.iter().filter(|import| import.alias == *name);
            let found = named.find_map(|import| self.resolve(&module, &import.path, seen));
            return found.or(Some(module));
        }
        Some(module)
    }

    fn has(&self, module: &Module, part: &str) -> bool {
        self.files.contains_key(&[module.as_slice(), &[part.to_owned()]].concat())
    }
}

/// What the `use` declarations of a file bring.
fn imports(code: &str) -> Vec<Import> {
    let mut imports = Vec::new();
    for at in words(code.as_bytes(), "use") {
        let Some(end) = code[at..].find(';') else { continue };
        branch(&code[at + 3..at + end], &[], &mut imports);
    }
    imports
}

/// Takes a tree of imports apart, which follows `before`.
fn branch(tree: &str, before: &[String], imports: &mut Vec<Import>) {
    let (head, list) = tree.split_once('{').map_or((tree, None), |(head, list)| (head, Some(list)));
    let (head, alias) = head.split_once(" as ").map_or((head, None), |(head, alias)| (head, Some(alias.trim())));
    let parts = head.split("::").map(str::trim).filter(|part| !part.is_empty() && *part != "*").map(str::to_owned);
    let mut path: Vec<String> = before.iter().cloned().chain(parts).collect();
    let Some(list) = list else {
        if path.len() > 1 {
            path.pop_if(|last| matches!(last.as_str(), "self"));
        }
        let Some(last) = path.last() else { return };
        let alias = alias.unwrap_or(last).to_owned();
        return imports.push(Import { path, alias });
    };
    let list = list.trim_end().trim_end_matches('}');
    let (mut depth, mut start) = (0, 0);
    for (at, byte) in list.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                branch(&list[start..at], &path, imports);
                start = at + 1;
            }
            _ => {}
        }
    }
    branch(&list[start..], &path, imports);
}

fn without_imports(code: &str) -> String {
    let (mut kept, mut from) = (String::new(), 0);
    for at in words(code.as_bytes(), "use") {
        let end = code[at..].find(';').map_or(code.len(), |end| at + end);
        if at >= from {
            kept.push_str(&code[from..at]);
            from = end;
        }
    }
    kept + &code[from..]
}

/// Paths in the code that begin with `crate` or `super`.
fn paths(code: &str) -> Vec<Vec<String>> {
    let bytes = code.as_bytes();
    let mut paths = Vec::new();
    for first in ["crate", "super"] {
        for start in words(bytes, first) {
            // `super` after another one, or in `pub(super)`, begins no path.
            if code[..start].ends_with("::") {
                continue;
            }
            let (mut path, mut at) = (vec![first.to_owned()], start + first.len());
            while let Some(next) = separated(bytes, at) {
                let length = bytes[next..].iter().take_while(|byte| is_word(**byte)).count();
                if length == 0 {
                    break;
                }
                path.push(code[next..next + length].to_owned());
                at = next + length;
            }
            if path.len() > 1 {
                paths.push(path);
            }
        }
    }
    paths
}

/// Where a path goes on after `::`.
fn separated(code: &[u8], at: usize) -> Option<usize> {
    let at = skip_space(code, at);
    code[at..].starts_with(b"::").then(|| skip_space(code, at + 2))
}

/// Files that can be reached from one, and whether it is among them.
pub fn reached(graph: &Graph, from: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut pending: Vec<&String> = graph.get(from).into_iter().flatten().collect();
    while let Some(file) = pending.pop() {
        if found.insert(file.clone()) {
            pending.extend(graph.get(file).into_iter().flatten());
        }
    }
    found
}

/// Imports that are part of a circle.
pub fn circles(graph: &Graph) -> BTreeSet<(String, String)> {
    let reached: BTreeMap<&String, BTreeSet<String>> = graph.keys().map(|file| (file, reached(graph, file))).collect();
    let imports = graph.iter().flat_map(|(from, targets)| targets.iter().map(move |to| (from, to)));
    let closes = |(from, to): &(&String, &String)| reached.get(to).is_some_and(|found| found.contains(*from));
    imports.filter(closes).map(|(from, to)| (from.clone(), to.clone())).collect()
}
