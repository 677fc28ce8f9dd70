//! Configures minijinja like transformers configures Jinja2 (`_cached_compile_jinja_template` in its
//! chat_template_utils.py), with Python's semantics where templates depend on them.
//!
//! This takes three measures: the source is rewritten before it is compiled ([`rewrite`]), values are printed like
//! Python's ([`values`]), and filters, tests and methods are Python's where minijinja's differ.

mod clock;
mod filters;
mod json;
mod lexer;
mod methods;
mod operators;
mod percent;
mod rewrite;
mod values;
mod words;

use minijinja::value::Rest;
use minijinja::{Environment, Error, ErrorKind, Value};

/// Most steps of a rendering, since a crafted template may never end.
const FUEL: u64 = 5_000_000;

/// An environment without templates.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, _, value| out.write_str(&values::text(value)?).map_err(Error::from));
    environment.set_fuel(Some(FUEL));
    // Jinja2 has no such function, and templates may ask for a variable of that name.
    environment.remove_global("debug");
    environment.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, values::text(&message)?))
    });
    environment.add_function("strftime_now", |format: String| clock::strftime_now(&format));
    environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    operators::add(&mut environment);
    filters::add(&mut environment);
    environment
}

/// Compiles a template.
pub(super) fn add(environment: &mut Environment<'static>, name: &'static str, source: &str) -> Result<(), Error> {
    environment.add_template_owned(name, rewrite::rewrite(source))
}

/// Writes JSON like Python's `json.dumps`.
pub(super) fn json(value: &serde_json::Value) -> String {
    // What came from JSON can be said in it.
    json::JsonStyle::default().dump(&Value::from_serialize(value)).unwrap_or_default()
}
