//! Splits a template into plain text and the tokens of expressions and statements, by the rules of jinja2/lexer.py.

/// A part of a template.
pub(super) enum Lexeme<'a> {
    /// Text, comments, and raw blocks.
    Plain(&'a str),
    /// An expression, or a statement if it is a `block`.
    Code { open: &'a str, tokens: Vec<Token<'a>>, close: &'a str, block: bool, whole: &'a str },
}

/// Kind of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Name,
    Number,
    Text,
    Sign,
}

/// A token, with the space before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub kind: TokenKind,
    pub space: &'a str,
    pub text: &'a str,
}

impl Token<'_> {
    /// Whether it is this word or operator, and not a string.
    pub(super) fn is(&self, text: &str) -> bool {
        self.kind != TokenKind::Text && self.text == text
    }

    /// Whether it can begin the argument of a test without parentheses.
    pub(super) fn is_argument(&self) -> bool {
        match self.kind {
            TokenKind::Name => !matches!(self.text, "else" | "or" | "and" | "is" | "if" | "in" | "not" | "recursive"),
            TokenKind::Number | TokenKind::Text => true,
            TokenKind::Sign => matches!(self.text, "[" | "{"),
        }
    }
}

/// Splits a template.
pub(super) fn pieces(source: &str) -> Vec<Lexeme<'_>> {
    let mut pieces = Vec::new();
    let mut rest = source;
    while let Some((at, kind)) = begin(rest) {
        let (before, code) = rest.split_at(at);
        pieces.push(Lexeme::Plain(before));
        let length = match kind {
            b'#' => code[2..].find("#}").map(|end| end + 4),
            b'%' => raw(code),
            _ => None,
        };
        if let Some(length) = length {
            let (plain, after) = code.split_at(length);
            // Jinja2 keeps the line's end after `{% raw %}`; to minijinja a plus says so.
            match tag(plain, "raw").and_then(|tag| plain.split_at_checked(tag - 2)) {
                Some((tag, raw)) if !tag.ends_with(['-', '+']) => {
                    pieces.extend([tag, "+", raw].map(Lexeme::Plain));
                }
                _ => pieces.push(Lexeme::Plain(plain)),
            }
            rest = after;
            continue;
        }
        let Some((piece, after)) = self::code(code, kind) else {
            // Not to be understood: minijinja says why.
            rest = code;
            break;
        };
        pieces.push(piece);
        rest = after;
    }
    pieces.push(Lexeme::Plain(rest));
    pieces
}

/// Index and kind of the next `{{`, `{%` or `{#`.
fn begin(text: &str) -> Option<(usize, u8)> {
    text.as_bytes()
        .windows(2)
        .enumerate()
        .find(|(_, pair)| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))
        .map(|(at, pair)| (at, pair[1]))
}

/// Length of `{% word %}`, if the text begins with it.
fn tag(text: &str, word: &str) -> Option<usize> {
    let inner = text.strip_prefix("{%")?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).trim_start().strip_prefix(word)?.trim_start();
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner).strip_prefix("%}")?;
    Some(text.len() - inner.len())
}

/// Length of a raw block, from its first tag to its last.
fn raw(text: &str) -> Option<usize> {
    let mut at = tag(text, "raw")?;
    loop {
        at += text[at..].find("{%")?;
        match tag(&text[at..], "endraw") {
            Some(length) => return Some(at + length),
            None => at += 2,
        }
    }
}

/// An expression or a statement, and the text after it.
fn code(text: &str, kind: u8) -> Option<(Lexeme<'_>, &str)> {
    let end = if kind == b'%' { "%}" } else { "}}" };
    let sign = text[2..].starts_with(['-', '+']);
    // A minus may also be the expression's own; Jinja2 takes it for a mark.
    let (open, mut rest) = text.split_at(if sign { 3 } else { 2 });
    let (mut tokens, mut brackets) = (Vec::new(), Vec::new());
    loop {
        let code = rest.trim_start();
        let space = &rest[..rest.len() - code.len()];
        let marked = code.starts_with(['-', '+']) && code[1..].starts_with(end);
        if brackets.is_empty() && (marked || code.starts_with(end)) {
            let after = &code[usize::from(marked) + end.len()..];
            let whole = &text[..text.len() - after.len()];
            let close = &rest[..rest.len() - after.len()];
            return Some((Lexeme::Code { open, tokens, close, block: kind == b'%', whole }, after));
        }
        let (kind, length) = token(code)?;
        let (text, after) = code.split_at(length);
        match text {
            "(" => brackets.push(")"),
            "[" => brackets.push("]"),
            "{" => brackets.push("}"),
            ")" | "]" | "}" => {
                brackets.pop().filter(|open| *open == text)?;
            }
            _ => {}
        }
        tokens.push(Token { kind, space, text });
        rest = after;
    }
}

/// Kind and length of a token.
fn token(code: &str) -> Option<(TokenKind, usize)> {
    let first = code.chars().next()?;
    let run = |accept: &dyn Fn(char) -> bool| code.find(|c| !accept(c)).unwrap_or(code.len());
    if first == '_' || first.is_alphabetic() {
        return Some((TokenKind::Name, run(&|c| c == '_' || c.is_alphanumeric())));
    }
    if first.is_ascii_digit() {
        return Some((TokenKind::Number, number(code)));
    }
    if first == '\'' || first == '"' {
        let mut escaped = false;
        for (at, c) in code.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if c == first => return Some((TokenKind::Text, at + 1)),
                _ => {}
            }
        }
        return None;
    }
    let two = ["//", "**", "==", "!=", ">=", "<="].iter().any(|sign| code.starts_with(sign));
    if two {
        return Some((TokenKind::Sign, 2));
    }
    "+-*/%~[]().:|,;{}=<>".contains(first).then_some((TokenKind::Sign, 1))
}

/// Length of a number: `0x1f`, `1_000`, `1.5e-3`.
fn number(code: &str) -> usize {
    let bytes = code.as_bytes();
    let digits = |from: usize| {
        let rest = bytes.get(from..).unwrap_or_default();
        from + rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count()
    };
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let mut end = digits(0);
    if bytes.get(end) == Some(&b'.') && digit(end + 1) {
        end = digits(end + 1);
    }
    let exponent = matches!(bytes.get(end.wrapping_sub(1)), Some(b'e' | b'E')) && !code.starts_with("0x");
    if exponent && matches!(bytes.get(end), Some(b'-' | b'+')) && digit(end + 1) {
        end = digits(end + 1);
    }
    end
}

/// Replaces `\U0001f916` in a string literal by the character, the one Python escape that minijinja lacks.
pub(super) fn long_escapes(quoted: &str) -> String {
    let mut text = String::with_capacity(quoted.len());
    let mut rest = quoted;
    while let Some(at) = rest.find('\\') {
        let code = rest.get(at + 1..at + 10).and_then(|code| code.strip_prefix('U'));
        let character = code.and_then(|code| char::from_u32(u32::from_str_radix(code, 16).ok()?));
        text.push_str(&rest[..at]);
        match character.filter(|c| !c.is_ascii()) {
            Some(character) => {
                text.push(character);
                rest = &rest[at + 10..];
            }
            None => {
                let escaped = rest[at + 1..].chars().next().map_or(0, char::len_utf8);
                text.push_str(&rest[at..at + 1 + escaped]);
                rest = &rest[at + 1 + escaped..];
            }
        }
    }
    text + rest
}
