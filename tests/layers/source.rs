//! Files of this repository, and what a scanner sees in them: code without comments, literals and unit tests, functions, names of
//! types.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One file.
pub struct Source {
    /// Path below the folder that was read.
    pub name: String,
    /// As it is.
    pub text: String,
    /// As long as `text`, with spaces for comments, literals and, in Rust, unit tests.
    pub code: String,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// From its first line to its last.
    pub lines: usize,
    /// Without `self`.
    pub parameters: usize,
}

/// Files below `folder` of the repository with one of these extensions.
pub fn files(folder: &str, extensions: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let (mut sources, mut pending) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                pending.push(path);
            } else if extensions.contains(&extension.as_str()) {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                sources.push(Source::new(name, fs::read_to_string(&path).unwrap(), extension == "rs"));
            }
        }
    }
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources
}

impl Source {
    pub fn new(name: String, text: String, is_rust: bool) -> Self {
        let mut code = blank(&text);
        if is_rust {
            cut_tests(&mut code);
        } else {
            cut_directives(&mut code);
        }
        Self { name, text, code: String::from_utf8(code).unwrap() }
    }

    /// Whether all of it is tests.
    pub fn is_test(&self) -> bool {
        self.name.split('/').any(|part| part == "tests" || part == "tests.rs")
    }

    /// Lines that are not unit tests.
    pub fn lines(&self) -> usize {
        let kept = self.code.trim_end();
        // Comments at the end count; what is blank behind a test module does not.
        self.text[..kept.len()].lines().count()
    }

    /// The literals of a Rust file outside of its unit tests, each with where it begins.
    pub fn literals(&self) -> Vec<(usize, &str)> {
        let bytes = self.text.as_bytes();
        let tests = tests(&blank(&self.text));
        let (mut at, mut literals) = (0, Vec::new());
        while at < bytes.len() {
            let Some(end) = end_of_words(bytes, at) else {
                at += 1;
                continue;
            };
            if bytes[at] != b'/' && !tests.iter().any(|test| test.contains(&at)) {
                literals.push((at, &self.text[at..end]));
            }
            at = end;
        }
        literals
    }

    /// Functions of a Rust file.
    pub fn functions(&self) -> Vec<Function> {
        let code = self.code.as_bytes();
        words(code, "fn").filter_map(|at| function(code, at)).collect()
    }

    /// Functions of a C++ or CUDA file, with an unknown number of parameters.
    pub fn cpp_functions(&self) -> Vec<Function> {
        cpp_functions(self.code.as_bytes())
    }

    /// Names of the types that a Rust file declares, private ones too.
    pub fn types(&self) -> Vec<String> {
        let code = self.code.as_bytes();
        let mut names = Vec::new();
        // Inside of braces they are a function's own, or a trait's.
        let is_outside = |at: &usize| code[..*at].iter().fold(0, |depth, byte| depth + brace(*byte)) == 0;
        for keyword in ["struct", "enum", "union", "trait", "type"] {
            let declared = words(code, keyword).filter(is_outside);
            names.extend(declared.map(|at| word_at(code, skip_space(code, at + keyword.len()))));
        }
        names.retain(|name| name.starts_with(|first: char| first.is_ascii_uppercase()));
        names
    }
}

pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn brace(byte: u8) -> i32 {
    i32::from(byte == b'{') - i32::from(byte == b'}')
}

pub fn skip_space(code: &[u8], mut at: usize) -> usize {
    while code.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// The identifier at a place; empty if there is none.
pub fn word_at(code: &[u8], at: usize) -> String {
    code[at.min(code.len())..].iter().take_while(|byte| is_word(**byte)).map(|byte| char::from(*byte)).collect()
}

/// Where a word stands by itself.
pub fn words<'a>(code: &'a [u8], word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let end = code.len().saturating_sub(word.len());
    (0..=end).filter(move |at| {
        code[*at..].starts_with(word.as_bytes())
            && !at.checked_sub(1).is_some_and(|before| is_word(code[before]))
            && !code.get(at + word.len()).is_some_and(|after| is_word(*after))
    })
}

/// A copy with spaces for comments and literals.
fn blank(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        match end_of_words(bytes, at) {
            Some(end) => {
                erase(&mut code[at..end]);
                at = end;
            }
            None => at += 1,
        }
    }
    // What is left of letters beyond ASCII are identifiers, of which there are none.
    code.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b' ');
    code
}

fn erase(bytes: &mut [u8]) {
    bytes.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

/// The end of the comment or literal that begins at a place.
fn end_of_words(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let find = |from: usize, what: &[u8]| {
        let found = bytes[from..].windows(what.len()).position(|window| window == what);
        found.map_or(bytes.len(), |found| from + found + what.len())
    };
    if rest.starts_with(b"//") {
        return Some(at + rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
    }
    if rest.starts_with(b"/*") {
        return Some(find(at + 2, b"*/"));
    }
    if rest[0] == b'"' {
        let mut end = at + 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        return Some((end + 1).min(bytes.len()));
    }
    if rest[0] == b'\'' {
        // A character between quotes; anything else is a lifetime, or C++'s digit separator.
        let first = *rest.get(1)?;
        if first == b'\\' {
            return Some(find(at + 3, b"'"));
        }
        let length = first.leading_ones().max(1) as usize;
        return (rest.get(1 + length) == Some(&b'\'')).then_some(at + length + 2);
    }
    let begins_word = !at.checked_sub(1).is_some_and(|before| is_word(bytes[before]));
    let raw = rest.strip_prefix(b"b").or(rest.strip_prefix(b"c")).unwrap_or(rest).strip_prefix(b"r");
    let raw = raw.filter(|_| begins_word)?;
    let hashes = raw.iter().take_while(|byte| **byte == b'#').count();
    let quote = (raw.get(hashes) == Some(&b'"')).then_some(bytes.len() - raw.len() + hashes)?;
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    Some(find(quote + 1, &end))
}

/// The end of what is between brackets of one kind, of which the first is at `at`.
fn closing(code: &[u8], at: usize) -> usize {
    let (open, close) = match code[at] {
        b'(' => (b'(', b')'),
        b'[' => (b'[', b']'),
        b'<' => (b'<', b'>'),
        _ => (b'{', b'}'),
    };
    let mut depth = 0;
    for (index, byte) in code.iter().enumerate().skip(at) {
        // `->` closes nothing.
        let is_arrow = *byte == b'>' && code[index - 1] == b'-';
        depth += i32::from(*byte == open) - i32::from(*byte == close && !is_arrow);
        if depth == 0 {
            return index + 1;
        }
    }
    code.len()
}

/// The next of these bytes outside of round and square brackets.
fn next_of(code: &[u8], mut at: usize, wanted: &[u8]) -> Option<usize> {
    while at < code.len() {
        match code[at] {
            byte if wanted.contains(&byte) => return Some(at),
            b'(' | b'[' => at = closing(code, at),
            _ => at += 1,
        }
    }
    None
}

/// Erases items that are compiled for tests alone.
fn cut_tests(code: &mut [u8]) {
    for test in tests(code) {
        erase(&mut code[test]);
    }
}

/// Where unit tests are, in what is left without comments and literals.
fn tests(code: &[u8]) -> Vec<Range<usize>> {
    const MARK: &[u8] = b"#[cfg(test)]";
    let (mut from, mut tests) = (0, Vec::new());
    while let Some(found) = code[from..].windows(MARK.len()).position(|window| window == MARK) {
        let start = from + found;
        let stop = next_of(code, start + MARK.len(), b";{").unwrap_or(code.len() - 1);
        let end = if code[stop] == b'{' { closing(code, stop) } else { stop + 1 };
        tests.push(start..end);
        from = end;
    }
    tests
}

/// Erases the preprocessor's lines.
fn cut_directives(code: &mut [u8]) {
    let (mut start, mut goes_on) = (0, false);
    while start < code.len() {
        let end = code[start..].iter().position(|byte| *byte == b'\n').map_or(code.len(), |end| start + end);
        let line = code[start..end].trim_ascii();
        let is_directive = goes_on || line.starts_with(b"#");
        goes_on = is_directive && line.ends_with(b"\\");
        if is_directive {
            erase(&mut code[start..end]);
        }
        start = end + 1;
    }
}

fn count_lines(code: &[u8]) -> usize {
    code.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// The function whose `fn` is at a place; none of a pointer's type and of what has no body.
fn function(code: &[u8], at: usize) -> Option<Function> {
    let start = skip_space(code, at + 2);
    let name = word_at(code, start);
    let mut open = skip_space(code, start + name.len());
    if code.get(open) == Some(&b'<') {
        open = skip_space(code, closing(code, open));
    }
    if name.is_empty() || code.get(open) != Some(&b'(') {
        return None;
    }
    let after = closing(code, open);
    let body = next_of(code, after, b";{").filter(|body| code[*body] == b'{')?;
    let lines = count_lines(&code[at..closing(code, body)]);
    Some(Function { name, lines, parameters: parameters(&code[open + 1..after - 1]) })
}

/// Counts parameters, but for `self`.
fn parameters(list: &[u8]) -> usize {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, byte) in list.iter().enumerate() {
        match byte {
            b'(' | b'[' | b'{' | b'<' => depth += 1,
            b'>' if list[at - 1] == b'-' => {}
            b')' | b']' | b'}' | b'>' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts.iter().filter(|part| !part.trim_ascii().is_empty() && !is_self(part)).count()
}

/// Whether a parameter is the receiver, in any of its forms.
fn is_self(parameter: &[u8]) -> bool {
    let name = parameter.split(|byte| *byte == b':').next().unwrap_or_default();
    words(name, "self").next().is_some()
}

fn cpp_functions(code: &[u8]) -> Vec<Function> {
    let (mut functions, mut head, mut at) = (Vec::new(), 0, 0);
    while at < code.len() {
        match code[at] {
            b'(' | b'[' => {
                at = closing(code, at);
                continue;
            }
            b'{' => {
                let start = skip_space(code, head);
                if let Some(name) = cpp_name(&code[start..at]) {
                    let end = closing(code, at);
                    functions.push(Function { name, lines: count_lines(&code[start..end]), parameters: 0 });
                    at = end - 1;
                }
                head = at + 1;
            }
            b'}' | b';' => head = at + 1,
            _ => {}
        }
        at += 1;
    }
    functions
}

/// The name of the function of which this is what stands before its body; none if it is no function's.
fn cpp_name(head: &[u8]) -> Option<String> {
    let mut at = 0;
    while word_at(head, at) == "template" {
        let open = skip_space(head, at + "template".len());
        at = if head.get(open) == Some(&b'<') { skip_space(head, closing(head, open)) } else { open };
    }
    let is_scope = ["namespace", "struct", "class", "union", "enum"].contains(&word_at(head, at).as_str());
    let is_value = head.trim_ascii_end().ends_with(b"=");
    while let Some(open) = head[at..].iter().position(|byte| *byte == b'(').map(|found| at + found) {
        let before = head[..open].trim_ascii_end();
        let length = before.iter().rev().take_while(|byte| is_word(**byte)).count();
        let name = word_at(before, before.len() - length);
        if !name.is_empty() && !["__launch_bounds__", "__attribute__", "alignas", "decltype"].contains(&name.as_str()) {
            return (!is_scope && !is_value).then_some(name);
        }
        at = closing(head, open);
    }
    None
}
