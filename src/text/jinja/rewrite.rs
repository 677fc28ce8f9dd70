//! Rewrites a template's source so that minijinja computes what Jinja2 would: what a user of the library cannot
//! configure (operators, slices, tuples) becomes calls of functions in [`super::operators`].
//!
//! Expressions are parsed by the grammar of jinja2/parser.py and written again token by token, so that line numbers do
//! not change. What cannot be parsed is kept, and minijinja reports the error.

use super::lexer::{self, Token, TokenKind};

/// Function names that no template contains.
pub(super) const SUM: &str = "__sum";
pub(super) const CONCAT: &str = "__concat";
pub(super) const REMAINDER: &str = "__remainder";
pub(super) const QUOTIENT: &str = "__quotient";
pub(super) const PRODUCT: &str = "__product";
pub(super) const SLICE: &str = "__slice";
pub(super) const TUPLE: &str = "__tuple";

/// Deepest nesting that is rewritten: minijinja refuses more than 150.
const DEPTH: usize = 160;

/// The template rewritten for minijinja.
pub(super) fn rewrite(source: &str) -> String {
    // Jinja2 ends every line alike (`newline_sequence`).
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut text = String::with_capacity(source.len() + source.len() / 8);
    for piece in lexer::pieces(&source) {
        match piece {
            lexer::Lexeme::Plain(plain) => text.push_str(plain),
            lexer::Lexeme::Code { open, tokens, close, block, whole } => {
                let tokens = tokens.as_slice();
                let inner = if block { statement(tokens) } else { TokenReader::new(tokens).all() };
                match inner {
                    Some(inner) => {
                        text.push_str(open);
                        text.push_str(&inner);
                        text.push_str(close);
                    }
                    None => text.push_str(whole),
                }
            }
        }
    }
    text
}

/// Rewrites the text between `{%` and `%}`.
fn statement(tokens: &[Token<'_>]) -> Option<String> {
    let mut reader = TokenReader::new(tokens);
    let tag = reader.peek()?;
    let mut text = match tag.text {
        // transformers' own, which marks what a model is trained on and writes nothing; a scope of its own, as there.
        "generation" if tokens.len() == 1 => return Some(format!("{}with", tag.space)),
        "endgeneration" if tokens.len() == 1 => return Some(format!("{}endwith", tag.space)),
        _ => reader.take(),
    };
    // Targets of assignments are no expressions.
    let ends = |token: &Token<'_>| match tag.text {
        "for" => token.text == "in",
        "set" => token.text == "=",
        _ => true,
    };
    while reader.peek().is_some_and(|token| !ends(&token)) {
        text.push_str(&reader.take());
    }
    if tag.text == "call" && reader.next_is("(") {
        text.push_str(&reader.group()?);
    }
    text.push_str(&reader.all()?);
    Some(text)
}

/// Parses and writes expressions.
struct TokenReader<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    depth: usize,
}

impl<'a> TokenReader<'a> {
    fn new(tokens: &'a [Token<'a>]) -> Self {
        Self { tokens, at: 0, depth: 0 }
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn next_is(&self, text: &str) -> bool {
        self.peek().is_some_and(|token| token.is(text))
    }

    /// The next token unchanged, with the space before it.
    fn take(&mut self) -> String {
        let token = self.peek().map(|token| format!("{}{}", token.space, token.text)).unwrap_or_default();
        self.at += 1;
        token
    }

    /// Skips the next token, but keeps line breaks before it.
    fn skip(&mut self) -> String {
        let lines = self.peek().map_or(0, |token| token.space.matches('\n').count());
        self.at += 1;
        "\n".repeat(lines)
    }

    /// Rewrites all expressions, and keeps what is between them.
    fn all(&mut self) -> Option<String> {
        let mut text = String::new();
        while let Some(token) = self.peek() {
            let begins = match token.kind {
                TokenKind::Name => !matches!(token.text, "if" | "else" | "in" | "and" | "or" | "is" | "import" | "as"),
                TokenKind::Sign => matches!(token.text, "(" | "[" | "{" | "-" | "+"),
                TokenKind::Number | TokenKind::Text => true,
            };
            text.push_str(&if begins { self.condition()? } else { self.take() });
        }
        Some(text)
    }

    /// A parenthesised group, unchanged.
    fn group(&mut self) -> Option<String> {
        let (mut text, mut open) = (String::new(), 0_usize);
        loop {
            match self.peek()?.text {
                "(" | "[" | "{" => open += 1,
                ")" | "]" | "}" => open = open.checked_sub(1)?,
                _ => {}
            }
            text.push_str(&self.take());
            if open == 0 {
                return Some(text);
            }
        }
    }

    fn condition(&mut self) -> Option<String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return None;
        }
        let mut text = self.choice()?;
        while self.next_is("if") {
            text.push_str(&self.take());
            text.push_str(&self.choice()?);
            if self.next_is("else") {
                text.push_str(&self.take());
                text.push_str(&self.condition()?);
            }
        }
        self.depth -= 1;
        Some(text)
    }

    /// Operands of `or`, `and` and comparisons, with `not` before them.
    fn choice(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            while self.next_is("not") {
                text.push_str(&self.take());
            }
            text.push_str(&self.sum()?);
            let Some(token) = self.peek() else { return Some(text) };
            match token.text {
                "or" | "and" | "in" | "==" | "!=" | "<" | "<=" | ">" | ">=" if token.kind != TokenKind::Text => {
                    text.push_str(&self.take());
                }
                // `not` of `not in` follows at once.
                "not" if token.kind == TokenKind::Name => {
                    text.push_str(&self.take());
                    if !self.next_is("in") {
                        return None;
                    }
                    text.push_str(&self.take());
                }
                _ => return Some(text),
            }
        }
    }

    fn sum(&mut self) -> Option<String> {
        let added = |mut terms: Vec<String>| if terms.len() == 1 { terms.remove(0) } else { call(SUM, &terms) };
        let mut terms = vec![self.concatenation()?];
        loop {
            if self.next_is("+") {
                terms.push(self.skip() + &self.concatenation()?);
            } else if self.next_is("-") {
                let left = added(terms);
                terms = vec![format!("{left}{}{}", self.take(), self.concatenation()?)];
            } else {
                return Some(added(terms));
            }
        }
    }

    fn concatenation(&mut self) -> Option<String> {
        let mut operands = vec![self.product()?];
        while self.next_is("~") {
            operands.push(self.skip() + &self.product()?);
        }
        Some(if operands.len() == 1 { operands.remove(0) } else { call(CONCAT, &operands) })
    }

    fn product(&mut self) -> Option<String> {
        let mut left = self.power()?;
        while let Some(token) = self.peek().filter(|token| token.kind == TokenKind::Sign) {
            let function = match token.text {
                "%" => REMAINDER,
                "*" => PRODUCT,
                "//" => QUOTIENT,
                "/" => {
                    left.push_str(&self.take());
                    left.push_str(&self.power()?);
                    continue;
                }
                _ => break,
            };
            left = call(function, &[left, self.skip() + &self.power()?]);
        }
        Some(left)
    }

    fn power(&mut self) -> Option<String> {
        let mut text = self.unary()?;
        while self.next_is("**") {
            text.push_str(&self.take());
            text.push_str(&self.unary()?);
        }
        Some(text)
    }

    fn unary(&mut self) -> Option<String> {
        let mut text = String::new();
        while let Some(token) = self.peek().filter(|token| token.is("-") || token.is("+")) {
            match token.text {
                "-" => text.push_str(&self.take()),
                _ => self.at += 1, // minijinja has none, and it changes nothing
            }
        }
        let signs = text.len();
        text.push_str(&self.primary()?);
        let operand = text.split_off(signs);
        let operand = self.postfix(operand)?;
        // minijinja takes `-a.b` for `(-a).b`.
        text.push_str(&if signs > 0 { format!("({operand})") } else { operand });
        self.filters(text)
    }

    fn primary(&mut self) -> Option<String> {
        let token = self.peek()?;
        match token.kind {
            TokenKind::Name | TokenKind::Number => Some(self.take()),
            TokenKind::Text => {
                // Texts side by side are one.
                let mut text = String::new();
                while self.peek().is_some_and(|token| token.kind == TokenKind::Text) {
                    text.push_str(&lexer::long_escapes(&self.take()));
                }
                Some(text)
            }
            TokenKind::Sign => match token.text {
                "(" => {
                    let (items, comma) = self.items(")")?;
                    if comma || items.trim().is_empty() {
                        let items = items.trim_end().trim_end_matches(',');
                        return Some(format!("{}{TUPLE}({items})", token.space));
                    }
                    Some(format!("{}({items})", token.space))
                }
                "[" => Some(format!("{}[{}]", token.space, self.items("]")?.0)),
                "{" => Some(format!("{}{{{}}}", token.space, self.items("}")?.0)),
                _ => None,
            },
        }
    }

    /// The content of parentheses; and whether it has a comma.
    fn items(&mut self, end: &str) -> Option<(String, bool)> {
        self.at += 1;
        let (mut text, mut comma) = (String::new(), false);
        loop {
            let token = self.peek()?;
            if token.is(end) {
                text.push_str(token.space);
                self.at += 1;
                return Some((text, comma));
            }
            match token.text {
                "," | ":" | "=" | "*" | "**" if token.kind == TokenKind::Sign => {
                    comma |= token.text == ",";
                    text.push_str(&self.take());
                }
                _ => text.push_str(&self.condition()?),
            }
        }
    }

    fn postfix(&mut self, mut operand: String) -> Option<String> {
        while let Some(token) = self.peek().filter(|token| token.kind == TokenKind::Sign) {
            match token.text {
                "." => {
                    operand.push_str(&self.take());
                    operand.push_str(&self.take());
                }
                "(" => {
                    let items = self.items(")")?.0;
                    operand.push_str(&format!("{}({items})", token.space));
                }
                "[" => operand = self.subscript(operand)?,
                _ => break,
            }
        }
        Some(operand)
    }

    /// `[index]`, or a slice, which becomes a call.
    fn subscript(&mut self, operand: String) -> Option<String> {
        let space = self.peek()?.space;
        self.at += 1;
        let (mut parts, mut slice) = (vec![String::new()], false);
        loop {
            let token = self.peek()?;
            if token.is("]") {
                self.at += 1;
                break;
            } else if token.is(":") && parts.len() < 3 {
                self.at += 1;
                slice = true;
                parts.push(String::new());
            } else {
                let part = parts.last_mut().filter(|part| part.is_empty())?;
                part.push_str(&self.condition()?);
            }
        }
        if !slice {
            return Some(format!("{operand}{space}[{}]", parts[0]));
        }
        parts.resize(3, String::new());
        let given = parts.into_iter().map(|part| if part.is_empty() { "none".to_owned() } else { part });
        Some(call(SLICE, &std::iter::once(operand).chain(given).collect::<Vec<_>>()))
    }

    /// Filters and tests after an operand.
    fn filters(&mut self, mut text: String) -> Option<String> {
        while let Some(token) = self.peek() {
            if token.is("|") {
                text.push_str(&self.take());
                text.push_str(&self.name()?);
                if self.next_is("(") {
                    text = self.postfix_call(text)?;
                }
            } else if token.is("is") {
                text.push_str(&self.take());
                if self.next_is("not") {
                    text.push_str(&self.take());
                }
                text.push_str(&self.name()?);
                if self.next_is("(") {
                    text = self.postfix_call(text)?;
                } else if self.peek().is_some_and(|token| token.is_argument()) {
                    let argument = self.primary()?;
                    // In brackets: what was a word may have become a call.
                    text.push_str(&format!("({})", self.postfix(argument)?.trim_start()));
                }
            } else {
                break;
            }
        }
        Some(text)
    }

    fn postfix_call(&mut self, text: String) -> Option<String> {
        let space = self.peek()?.space;
        Some(format!("{text}{space}({})", self.items(")")?.0))
    }

    /// The name of a filter or a test.
    fn name(&mut self) -> Option<String> {
        if self.peek()?.kind != TokenKind::Name {
            return None;
        }
        let mut name = self.take();
        while self.next_is(".") {
            name.push_str(&self.take());
            name.push_str(&self.take());
        }
        Some(name)
    }
}

/// A call, preceded by the space before the first operand.
fn call(function: &str, operands: &[String]) -> String {
    let first = operands.first().map_or("", String::as_str);
    let space = &first[..first.len() - first.trim_start().len()];
    format!("{space}{function}({})", operands.join(",").trim_start())
}
