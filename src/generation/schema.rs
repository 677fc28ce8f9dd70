//! Checks a JSON schema before a grammar is made of it: a client's schema must not take more than a moment to compile, and must
//! demand nothing that the grammar leaves out.
//!
//! llguidance follows references and nested schemas recursively, compares all patterns of an object with each other,
//! and multiplies alternatives out. Each of these is limited, far above what people and pydantic write.

use std::collections::{HashMap, VecDeque};

use serde_json::{Map, Value};

/// A schema that exceeds a limit, or demands what cannot be enforced.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct SchemaError {
    /// Location as a JSON pointer, as in references: "#/properties/a".
    pub path: String,
    /// The limit that is exceeded, or the keyword that cannot be enforced.
    pub message: String,
}

/// Most bytes of all keys and strings.
const BYTES: usize = 256 << 10;
/// Most objects, lists, strings and numbers in all.
const VALUES: usize = 20_000;
/// Deepest nesting of schemas, with references followed.
const DEPTH: usize = 64;
/// Most properties of an object. The parser keeps an item for each that may come next.
const PROPERTIES: usize = 256;
/// Most properties in all: each costs about a tenth of a millisecond and 8 KB in every answer with the schema.
const ALL_PROPERTIES: usize = 2000;
/// Most alternatives of an `anyOf` or `oneOf`, and most parts of an `allOf`.
const ALTERNATIVES: usize = 256;
/// Largest product of the alternatives within an `allOf`.
const PRODUCT: usize = 256;
/// Largest sum of the products of all `allOf`s of a schema.
const ALL_PRODUCTS: usize = 1024;
/// Most patterns of an object: each is compared with every other.
const PATTERNS: usize = 16;
/// Most bytes of a pattern.
const PATTERN_BYTES: usize = 1024;

/// Keywords that llguidance 1.9 warns about and leaves out: they are keywords of a draft (`is_known_keyword` in its
/// src/json/context_simple/draft.rs) and not among `IMPLEMENTED` of its src/json/schema.rs. `then` and the like demand nothing alone.
const UNENFORCED: [&str; 12] = [
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "if",
    "not",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];
/// Values of `$schema` (without a final `#`) whose drafts have no `prefixItems`: llguidance then leaves it out.
const WITHOUT_PREFIX_ITEMS: [&str; 4] = [
    "http://json-schema.org/draft-04/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-07/schema",
    "https://json-schema.org/draft/2019-09/schema",
];

/// Keywords with one schema.
const ONE: [&str; 3] = ["additionalProperties", "additionalItems", "items"];
/// Keywords with several schemas by name. Schemas in `$defs` count where they are referred to.
const NAMED: [&str; 2] = ["properties", "patternProperties"];
/// Keywords with a list of schemas.
const LISTS: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
/// Keywords whose schemas apply to the same value, as references do.
const SAME: [&str; 3] = ["allOf", "anyOf", "oneOf"];

/// Refuses a schema that would take too long to compile or to match, or with a keyword that cannot be enforced.
pub fn check(schema: &Value) -> Result<(), SchemaError> {
    check_bounds(schema, true)
}

/// As [`check`], of a schema that need not be kept to the letter, as of functions that are not `strict`: keywords that
/// cannot be enforced are left to the model, which reads them.
pub fn check_lenient(schema: &Value) -> Result<(), SchemaError> {
    check_bounds(schema, false)
}

fn check_bounds(schema: &Value, strict: bool) -> Result<(), SchemaError> {
    size(schema)?;
    let (heights, targets) = (HashMap::new(), Vec::new());
    let mut walk = Walk { root: schema, strict, heights, targets, properties: 0, products: 0 };
    walk.schema(schema, "#", 0)?;
    let mut colours = HashMap::new();
    for target in std::mem::take(&mut walk.targets) {
        walk.circles(&target, &mut colours)?;
    }
    Ok(())
}

fn error<T>(path: &str, message: impl Into<String>) -> Result<T, SchemaError> {
    // Keys may be long.
    let path =
        if path.len() > 200 { format!("{}…", &path[..path.floor_char_boundary(200)]) } else { path.to_owned() };
    Err(SchemaError { path, message: message.into() })
}

fn size(schema: &Value) -> Result<(), SchemaError> {
    let (mut bytes, mut values) = (0usize, 0usize);
    let mut pending = vec![schema];
    while let Some(value) = pending.pop() {
        values += 1;
        match value {
            Value::String(text) => bytes += text.len(),
            Value::Array(list) => pending.extend(list),
            Value::Object(map) => {
                bytes += map.keys().map(String::len).sum::<usize>();
                pending.extend(map.values());
            }
            _ => {}
        }
    }
    if bytes > BYTES {
        return error("#", format!("the schema holds {} KiB of text; {} KiB are the most", bytes >> 10, BYTES >> 10));
    }
    if values > VALUES {
        return error("#", format!("the schema holds {values} values; {VALUES} are the most"));
    }
    Ok(())
}

struct Walk<'a> {
    root: &'a Value,
    /// Whether keywords that cannot be enforced are refused.
    strict: bool,
    /// Nesting below each reference that was followed, since a grammar has one rule for each; `None` while it is being
    /// followed, since recursion is as deep as the answer makes it.
    heights: HashMap<String, Option<usize>>,
    targets: Vec<String>,
    /// Number of properties so far, and sum of the products.
    properties: usize,
    products: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Colour {
    Open,
    Done,
}

impl<'a> Walk<'a> {
    /// Checks a schema at a depth; returns the nesting below it. Whichever path reaches it first, the longest counts,
    /// since llguidance may take it.
    fn schema(&mut self, schema: &'a Value, path: &str, depth: usize) -> Result<usize, SchemaError> {
        let Value::Object(object) = schema else { return Ok(0) };
        let mut height = 0;
        if depth > DEPTH {
            return error(path, format!("schemas and references are nested deeper than {DEPTH}"));
        }
        self.enforceable(object, path)?;
        self.products += counts(object, path)?;
        if self.products > ALL_PRODUCTS {
            return error(path, format!("the alternatives within all allOf make more than {ALL_PRODUCTS}"));
        }
        if let Some(reference) = object.get("$ref") {
            let reference = reference.as_str().unwrap_or_default();
            let target = self.target(reference, path)?;
            let known = self.heights.get(reference).copied();
            height = match known {
                Some(known) => known.unwrap_or(0),
                None => {
                    self.targets.push(reference.to_owned());
                    self.heights.insert(reference.to_owned(), None);
                    let below = self.schema(target, reference, depth + 1)?;
                    self.heights.insert(reference.to_owned(), Some(below));
                    below
                }
            };
        }
        for (keyword, value) in object {
            let below = format!("{path}/{keyword}");
            match value {
                Value::Object(_) if ONE.contains(&keyword.as_str()) => {
                    height = height.max(self.schema(value, &below, depth + 1)?);
                }
                Value::Object(named) if NAMED.contains(&keyword.as_str()) => {
                    self.properties += named.len();
                    if self.properties > ALL_PROPERTIES {
                        return error(&below, format!("the schema has more than {ALL_PROPERTIES} properties in all"));
                    }
                    for (name, value) in named {
                        height = height.max(self.schema(value, &format!("{below}/{name}"), depth + 1)?);
                    }
                }
                Value::Array(list) if LISTS.contains(&keyword.as_str()) => {
                    for (index, value) in list.iter().enumerate() {
                        height = height.max(self.schema(value, &format!("{below}/{index}"), depth + 1)?);
                    }
                }
                _ => {}
            }
        }
        if depth + height > DEPTH {
            return error(path, format!("schemas and references are nested deeper than {DEPTH}"));
        }
        Ok(height + 1)
    }

    /// Refuses keywords that the grammar leaves out, unless they demand nothing.
    fn enforceable(&self, object: &Map<String, Value>, path: &str) -> Result<(), SchemaError> {
        let demanding = |keyword: &&str| object.get(*keyword).is_some_and(|value| !demands_nothing(keyword, value));
        if let Some(keyword) = UNENFORCED.into_iter().find(demanding).filter(|_| self.strict) {
            let message =
                format!("`{keyword}` cannot be enforced; leave it out (a `description` may ask the model for it)");
            return error(path, message);
        }
        if !object.contains_key("prefixItems") {
            return Ok(());
        }
        let draft = self.root.get("$schema").and_then(Value::as_str).unwrap_or_default().trim_end_matches('#');
        if WITHOUT_PREFIX_ITEMS.contains(&draft) {
            return error(
                path,
                "`prefixItems` is no keyword of this `$schema`; leave out `$schema`, or write a list of `items`",
            );
        }
        match object.contains_key("additionalItems") || object.get("items").is_some_and(Value::is_array) {
            true => error(
                path,
                "`prefixItems` cannot be enforced beside `additionalItems` or a list of `items`; use `items`",
            ),
            false => Ok(()),
        }
    }

    fn target(&self, reference: &str, path: &str) -> Result<&'a Value, SchemaError> {
        if reference.contains(['~', '%']) {
            return error(
                path,
                "escapes (~ and %) in a $ref cannot be followed; rename what it names, or write it as it is",
            );
        }
        let found = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        match found {
            Some(target) => Ok(target),
            None => error(path, "$ref must name a place within the schema that exists, such as #/$defs/Name"),
        }
    }

    /// Refuses a schema that refers back to itself for the same value, which is meaningless.
    fn circles(&self, reference: &str, colours: &mut HashMap<String, Colour>) -> Result<(), SchemaError> {
        match colours.get(reference) {
            Some(Colour::Done) => return Ok(()),
            Some(Colour::Open) => return error(reference, "the schema refers to itself, with nothing in between"),
            None => {}
        }
        colours.insert(reference.to_owned(), Colour::Open);
        let mut pending = VecDeque::from([self.target(reference, reference)?]);
        while let Some(schema) = pending.pop_front() {
            if let Some(next) = schema.get("$ref").and_then(Value::as_str) {
                self.circles(next, colours)?;
            }
            pending.extend(SAME.iter().filter_map(|keyword| schema.get(*keyword)?.as_array()).flatten());
        }
        colours.insert(reference.to_owned(), Colour::Done);
        Ok(())
    }
}

/// Whether a keyword of [`UNENFORCED`] has a value that every answer satisfies.
fn demands_nothing(keyword: &str, value: &Value) -> bool {
    match (keyword, value) {
        ("uniqueItems" | "not", Value::Bool(demanded)) => !demanded,
        ("unevaluatedItems" | "unevaluatedProperties" | "propertyNames", Value::Bool(allowed)) => *allowed,
        // Names are strings; zod's records say so.
        ("propertyNames", Value::Object(names)) => {
            names.iter().all(|(name, value)| name == "type" && value == "string")
        }
        ("contains" | "if" | "not" | "uniqueItems", _) => false,
        (_, Value::Object(map)) => map.is_empty(),
        _ => false,
    }
}

/// The patterns of a schema, each with its place: values of `pattern` and names in `patternProperties`.
pub(super) fn patterns(schema: &Value) -> Vec<(String, &str)> {
    let (mut found, mut pending) = (Vec::new(), vec![("#".to_owned(), schema)]);
    while let Some((path, value)) = pending.pop() {
        match value {
            Value::Object(object) => {
                if let Some(pattern) = object.get("pattern").and_then(Value::as_str) {
                    found.push((format!("{path}/pattern"), pattern));
                }
                let named = object.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
                found.extend(named.map(|name| (format!("{path}/patternProperties"), name.as_str())));
                // Their values are data, not schemas.
                let schemas =
                    object.iter().filter(|(key, _)| !["const", "enum", "default", "examples"].contains(&key.as_str()));
                pending.extend(schemas.map(|(key, value)| (format!("{path}/{key}"), value)));
            }
            Value::Array(list) => {
                pending.extend(list.iter().enumerate().map(|(index, value)| (format!("{path}/{index}"), value)));
            }
            _ => {}
        }
    }
    found
}

/// Checks the limits of a schema's own keywords; returns the product of its `allOf`, if it has one.
fn counts(object: &Map<String, Value>, path: &str) -> Result<usize, SchemaError> {
    let length = |keyword: &str| match object.get(keyword) {
        Some(Value::Object(map)) => map.len(),
        Some(Value::Array(list)) => list.len(),
        _ => 0,
    };
    let bounds = [
        ("properties", PROPERTIES),
        ("required", PROPERTIES),
        ("patternProperties", PATTERNS),
        ("anyOf", ALTERNATIVES),
        ("oneOf", ALTERNATIVES),
        ("allOf", ALTERNATIVES),
        ("prefixItems", ALTERNATIVES),
    ];
    if let Some((keyword, most)) = bounds.into_iter().find(|(keyword, most)| length(keyword) > *most) {
        return error(path, format!("{keyword} has {} entries; {most} are the most", length(keyword)));
    }
    let alternatives = |part: &Value| {
        let one = |keyword: &str| part.get(keyword).and_then(Value::as_array).map_or(1, |list| list.len().max(1));
        one("anyOf").saturating_mul(one("oneOf"))
    };
    let parts = object.get("allOf").and_then(Value::as_array).into_iter().flatten();
    let product = parts.map(alternatives).fold(1usize, usize::saturating_mul);
    if product > PRODUCT {
        return error(path, format!("the alternatives within allOf make {product} together; {PRODUCT} are the most"));
    }
    let named = object.get("patternProperties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    let patterns = named.map(String::as_str).chain(object.get("pattern").and_then(Value::as_str));
    match patterns.map(str::len).max() {
        Some(longest) if longest > PATTERN_BYTES => {
            error(path, format!("a pattern has {longest} bytes; {PATTERN_BYTES} are the most"))
        }
        _ => Ok(if product > 1 { product } else { 0 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chain(links: usize, link: impl Fn(Value) -> Value) -> Value {
        let mut defs = Map::new();
        for at in 0..links {
            defs.insert(format!("a{at}"), link(json!({"$ref": format!("#/$defs/a{}", at + 1)})));
        }
        defs.insert(format!("a{links}"), json!({"type": "string"}));
        json!({"$ref": "#/$defs/a0", "$defs": defs})
    }

    fn refused(schema: &Value, part: &str) {
        let error = check(schema).unwrap_err();
        assert!(error.to_string().contains(part), "{error}, which lacks `{part}`");
        assert!(error.to_string().len() < 400, "{error}");
    }

    #[test]
    fn chains_are_bounded_whatever_links_them() {
        let links: [fn(Value) -> Value; 7] = [
            |next| next,
            |next| json!({"type": "object", "properties": {"x": next}}),
            |next| json!({"type": "array", "items": next}),
            |next| json!({"allOf": [next]}),
            |next| json!({"anyOf": [next, {"type": "null"}]}),
            |next| json!({"oneOf": [{"type": "null"}, next]}),
            |next| json!({"type": "object", "additionalProperties": next}),
        ];
        for link in links {
            assert_eq!(check(&chain(20, link)), Ok(()));
            for many in [245, 500, 2000] {
                refused(&chain(many, link), "deeper than 64");
            }
        }
    }

    /// A chain of references that are first met from its end, so that each looks shallow.
    #[test]
    fn the_longest_way_counts_whatever_was_met_first() {
        let links: [fn(Value) -> Value; 3] = [
            |next| json!({"type": "object", "properties": {"x": next}}),
            |next| json!({"anyOf": [next, {"type": "null"}]}),
            |next| json!({"type": "array", "items": next}),
        ];
        for link in links {
            for (links, deep) in [(20, false), (1000, true)] {
                let mut schema = chain(links, link);
                let backwards: Vec<Value> =
                    (0..links).rev().map(|at| json!({"$ref": format!("#/$defs/a{at}")})).collect();
                let groups: Vec<Value> = backwards.chunks(200).map(|part| json!({"prefixItems": part})).collect();
                let first = json!({"additionalProperties": {"prefixItems": groups}, "properties": {"x": {"$ref": "#/$defs/a0"}}});
                let defs = schema["$defs"].take();
                schema = first;
                schema["$defs"] = defs;
                match deep {
                    true => refused(&schema, "deeper than 64"),
                    false => assert_eq!(check(&schema), Ok(())),
                }
            }
        }
    }

    #[test]
    fn schemas_of_a_size_nobody_writes_are_refused() {
        let many = |count: usize| -> Map<String, Value> {
            (0..count).map(|at| (format!("p{at}"), json!({"type": "string"}))).collect()
        };
        refused(&json!({"type": "object", "properties": many(1000)}), "properties has 1000 entries");
        let patterns: Map<String, Value> =
            (0..500).map(|at| (format!("^a{at}(x|y)*z{{1,30}}"), json!({"type": "string"}))).collect();
        refused(&json!({"type": "object", "patternProperties": patterns}), "patternProperties has 500 entries");
        refused(&json!({"pattern": "a?".repeat(5000)}), "10000 bytes");
        refused(&json!({"enum": ["x".repeat(4_700_000)]}), "KiB of text");
        refused(&json!({"enum": vec![1; 30_000]}), "values");
        let nested: Map<String, Value> =
            (0..38).map(|at| (format!("g{at}"), json!({"type": "object", "properties": many(250)}))).collect();
        refused(&json!({"type": "object", "properties": nested}), "2000 properties in all");
        let wide = json!({"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "integer"}]});
        refused(&json!({"allOf": vec![wide; 12]}), "make 531441 together");
        let two: Vec<Value> = (0..16).map(|at| json!({"properties": {format!("p{at}"): {"type": "string"}}})).collect();
        let two = json!({"allOf": [{"anyOf": two}, {"anyOf": two}]});
        let many_times: Map<String, Value> = (0..12).map(|at| (format!("k{at}"), two.clone())).collect();
        refused(&json!({"type": "object", "properties": many_times}), "make more than 1024");
        refused(&json!({"properties": {"k".repeat(10_000): {"anyOf": vec![json!({}); 300]}}}), "anyOf has 300");
        assert_eq!(check(&json!({"type": "object", "properties": many(256)})), Ok(()));
    }

    #[test]
    fn keywords_that_no_grammar_enforces_are_refused_by_name() {
        let demanding = [
            json!({"uniqueItems": true}),
            json!({"contains": {"type": "integer"}, "minContains": 2}),
            json!({"not": {"const": 1}}),
            json!({"not": {}}),
            json!({"if": {"const": 1}, "then": {"const": 2}}),
            json!({"propertyNames": {"type": "string", "pattern": "^[a-z]+$"}}),
            json!({"dependentRequired": {"a": ["b"]}}),
            json!({"dependentSchemas": {"a": {"required": ["b"]}}}),
            json!({"dependencies": {"a": ["b"]}}),
            json!({"unevaluatedProperties": false}),
            json!({"unevaluatedItems": false}),
            json!({"$dynamicRef": "#node"}),
            json!({"$recursiveRef": "#"}),
        ];
        for schema in demanding {
            let keyword = schema.as_object().unwrap().keys().next().unwrap().clone();
            let within = json!({"properties": {"tags": {"anyOf": [{"$ref": "#/$defs/T"}]}}, "$defs": {"T": schema}});
            refused(&within, &format!("#/$defs/T: `{keyword}` cannot be enforced"));
            refused(&json!({"items": schema}), &format!("#/items: `{keyword}` cannot be enforced"));
            // As a property's name it is no keyword, and what nothing refers to is never asked for.
            assert_eq!(check_lenient(&schema), Ok(()), "{keyword}");
            assert_eq!(check(&json!({"properties": {keyword: {"type": "string"}}})), Ok(()));
            assert_eq!(check(&json!({"$defs": {"T": schema}})), Ok(()));
        }
        let harmless = [
            json!({"uniqueItems": false, "not": false, "propertyNames": {"type": "string"}, "dependentRequired": {}}),
            json!({"unevaluatedProperties": true, "unevaluatedItems": {}, "propertyNames": true, "then": {"const": 1}}),
            json!({"enum": [{"uniqueItems": true}], "default": {"not": {}}, "title": "if", "discriminator": {"not": 1}}),
            json!({"minProperties": 1, "maxProperties": 2, "minContains": 1}),
        ];
        for schema in harmless {
            assert_eq!(check(&schema), Ok(()), "{schema}");
        }
    }

    #[test]
    fn a_tuple_is_enforced_or_refused() {
        let first = json!([{"type": "string"}]);
        for schema in [json!({"prefixItems": first, "items": false}), json!({"items": first, "additionalItems": false})]
        {
            assert_eq!(check(&schema), Ok(()), "{schema}");
        }
        refused(&json!({"prefixItems": first, "additionalItems": false}), "`prefixItems` cannot be enforced beside");
        refused(&json!({"prefixItems": first, "items": first}), "`prefixItems` cannot be enforced beside");
        let old = json!({"$schema": "http://json-schema.org/draft-07/schema#", "items": {"prefixItems": first}});
        refused(&old, "#/items: `prefixItems` is no keyword of this `$schema`");
        let new = json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "prefixItems": first});
        assert_eq!(check(&new), Ok(()));
    }

    #[test]
    fn patterns_are_found_where_they_are() {
        let schema = json!({"properties": {"pattern": {"pattern": "^a"}, "x": {"anyOf": [{"pattern": "b"}]}},
            "patternProperties": {"^ż": {"const": {"pattern": "data"}}}, "enum": [{"pattern": "data"}]});
        let mut found = patterns(&schema);
        found.sort();
        let at = |path: &str| path.to_owned();
        let right = [
            (at("#/patternProperties"), "^ż"),
            (at("#/properties/pattern/pattern"), "^a"),
            (at("#/properties/x/anyOf/0/pattern"), "b"),
        ];
        assert_eq!(found, right);
    }

    #[test]
    fn trees_may_refer_to_themselves_and_circles_may_not() {
        let tree = json!({"$ref": "#/$defs/Node", "$defs": {"Node": {"type": "object", "properties":
            {"left": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}, "right": {"$ref": "#/$defs/Node"}}}}});
        assert_eq!(check(&tree), Ok(()));
        assert_eq!(check(&json!({"type": "array", "items": {"$ref": "#"}})), Ok(()));
        refused(&json!({"$ref": "#"}), "refers to itself");
        refused(&json!({"anyOf": [{"$ref": "#"}, {"type": "null"}]}), "refers to itself");
        let two = json!({"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"oneOf": [{"$ref": "#/$defs/a"}]}}});
        refused(&two, "refers to itself");
        refused(&json!({"properties": {"x": {"$ref": "http://evil.example/s.json"}}}), "#/properties/x");
        refused(&json!({"$ref": "#/$defs/none"}), "that exists");
        assert_eq!(check(&json!({"$ref": "#/$defs/a b", "$defs": {"a b": {"type": "null"}}})), Ok(()));
        for escaped in ["#/$defs/a%20b", "#/%24defs/a b", "#/$defs/a~1b"] {
            refused(&json!({"$ref": escaped, "$defs": {"a b": {}, "a/b": {}}}), "escapes");
        }
    }
}
