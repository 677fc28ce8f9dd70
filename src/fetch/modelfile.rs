//! The Modelfile of an Ollama model: system prompt, sampling parameters, stop texts.
//!
//! They are stored in the engine directory's generation_config.json, under `transformers`' names where those exist.
//! Parameters and defaults are those of Ollama's `api/types.go`. A parameter that would change answers and is not
//! supported is an error.

use serde_json::{Map, Value, json};

use crate::diagnostic::Diagnostic;

/// System prompt, sampling parameters and stop texts of a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Modelfile {
    /// Fields of generation_config.json.
    pub generation: Map<String, Value>,
    /// Whether it has a template in Go's language, which is not supported.
    pub has_template: bool,
}

/// Supported numeric parameters: Ollama's name and the one in generation_config.json.
const NUMBERS: [(&str, &str); 6] = [
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("repeat_penalty", "repetition_penalty"),
    ("presence_penalty", "presence_penalty"),
    ("frequency_penalty", "frequency_penalty"),
];
/// Parameters that do not affect answers, and lengths, which the recipe sets.
const RUNNER: [&str; 17] = [
    "num_ctx",
    "num_batch",
    "num_gpu",
    "num_gqa",
    "num_thread",
    "num_keep",
    "num_predict",
    "main_gpu",
    "draft_num_predict",
    "use_mmap",
    "use_mlock",
    "low_vram",
    "f16_kv",
    "numa",
    "logits_all",
    "vocab_only",
    "embedding_only",
];
/// Unsupported parameters, and the values at which they have no effect.
const NEUTRAL: [(&str, f64); 7] = [
    ("typical_p", 1.0),
    ("tfs_z", 1.0),
    ("mirostat", 0.0),
    ("rope_frequency_base", 0.0),
    ("rope_frequency_scale", 0.0),
    ("xtc_probability", 0.0),
    ("dry_multiplier", 0.0),
];
/// Parameters without effect while the feature that they belong to is off, which is checked separately.
const DETAILS: [&str; 3] = ["mirostat_eta", "mirostat_tau", "penalize_newline"];
/// Most bytes of a stop string.
const STOP_LIMIT: usize = 256;
/// Most stop strings.
const STOPS_LIMIT: usize = 64;

impl Modelfile {
    /// Sets the system prompt.
    pub(super) fn system(&mut self, text: &str) {
        if !text.trim().is_empty() {
            self.generation.insert("system_prompt".to_owned(), json!(text));
        }
    }

    /// Adds a layer of parameters; returns warnings.
    pub(super) fn parameters(&mut self, values: &Map<String, Value>) -> Result<Vec<String>, Diagnostic> {
        let mut left = Vec::new();
        for (name, value) in values {
            match name.as_str() {
                "stop" => self.stops(value)?,
                "seed" => self.seed(value)?,
                "top_k" => {
                    let k = value.as_u64().ok_or_else(|| odd(name, value))?;
                    self.generation.insert("top_k".to_owned(), json!(k));
                }
                // Looked at below, with the penalty.
                "repeat_last_n" => {}
                name if DETAILS.contains(&name) => {}
                name if RUNNER.contains(&name) => left.push(name.to_owned()),
                name => self.number(name, value)?,
            }
        }
        let mut notes = self.penalty(values);
        self.sample();
        if values.get("penalize_newline") == Some(&Value::Bool(false))
            && self.generation.contains_key("repetition_penalty")
        {
            return Err(unsupported("penalize_newline", &Value::Bool(false)));
        }
        if !left.is_empty() {
            notes.push(format!("left to the recipe and the machine: {}", left.join(", ")));
        }
        Ok(notes)
    }

    /// The text of generation_config.json with the model's parameters added.
    pub fn apply(&self, text: &str) -> serde_json::Result<String> {
        let mut fields: Map<String, Value> = serde_json::from_str(text)?;
        fields.extend(self.generation.clone());
        serde_json::to_string(&fields)
    }

    fn number(&mut self, name: &str, value: &Value) -> Result<(), Diagnostic> {
        let number = value.as_f64().filter(|number| number.is_finite());
        if let Some((_, neutral)) = NEUTRAL.iter().find(|(have, _)| *have == name) {
            return if number == Some(*neutral) { Ok(()) } else { Err(unsupported(name, value)) };
        }
        let Some((_, ours)) = NUMBERS.iter().find(|(theirs, _)| *theirs == name) else {
            return Err(unsupported(name, value));
        };
        let number = number.ok_or_else(|| odd(name, value))?;
        let fits = match name {
            "temperature" => (0.0..=100.0).contains(&number),
            "repeat_penalty" => number > 0.0 && number <= 100.0,
            "top_p" | "min_p" => (0.0..=1.0).contains(&number),
            _ => (-100.0..=100.0).contains(&number),
        };
        if !fits {
            return Err(odd(name, value));
        }
        // To Ollama 0 is all, as 1 is.
        let number = if name == "top_p" && number == 0.0 { 1.0 } else { number };
        self.generation.insert((*ours).to_owned(), json!(number));
        Ok(())
    }

    fn stops(&mut self, value: &Value) -> Result<(), Diagnostic> {
        let stops: Option<Vec<&str>> = match value {
            Value::String(stop) => Some(vec![stop]),
            Value::Array(stops) => stops.iter().map(Value::as_str).collect(),
            _ => None,
        };
        let stops =
            stops.filter(|stops| stops.len() <= STOPS_LIMIT && stops.iter().all(|stop| stop.len() <= STOP_LIMIT));
        let stops = stops.ok_or_else(|| odd("stop", value))?;
        self.generation.insert("stop_strings".to_owned(), json!(stops));
        Ok(())
    }

    fn seed(&mut self, value: &Value) -> Result<(), Diagnostic> {
        // Below 0: by the clock.
        match (value.as_u64(), value.as_i64()) {
            (Some(seed), _) => {
                self.generation.insert("seed".to_owned(), json!(seed));
                Ok(())
            }
            (None, Some(_)) => Ok(()),
            (None, None) => Err(odd("seed", value)),
        }
    }

    /// Handles the window of the repetition penalty.
    fn penalty(&mut self, values: &Map<String, Value>) -> Vec<String> {
        let is_on = self.generation.get("repetition_penalty").and_then(Value::as_f64).is_some_and(|by| by != 1.0);
        match values.get("repeat_last_n").map_or(Some(64), Value::as_i64) {
            _ if !is_on => Vec::new(),
            Some(0) => {
                self.generation.remove("repetition_penalty");
                Vec::new()
            }
            Some(-1) => Vec::new(),
            window => {
                let window = window.map_or_else(|| "some".to_owned(), |window| window.to_string());
                vec![format!(
                    "repeat_penalty looks at all tokens here, and at the last {window} in Ollama (repeat_last_n)"
                )]
            }
        }
    }

    /// Turns on sampling: Ollama always samples, transformers only if `do_sample` says so.
    fn sample(&mut self) {
        let says = |name: &str| self.generation.contains_key(name);
        if !["temperature", "top_k", "top_p", "min_p"].into_iter().any(says) {
            return;
        }
        // Ollama's default.
        let temperature = self.generation.entry("temperature").or_insert(json!(0.8)).as_f64().unwrap_or(0.0);
        self.generation.insert("do_sample".to_owned(), json!(temperature > 0.0));
    }
}

fn odd(name: &str, value: &Value) -> Diagnostic {
    Diagnostic::new(format!("parameter `{name}` is {}, which makes no sense", short(value)))
}

fn unsupported(name: &str, value: &Value) -> Diagnostic {
    Diagnostic::new(format!("parameter `{name}` ({}) changes the answers, and is not supported", short(value))).with_help(
        "`path:` with the blob of the model takes its weights alone; `ollama create` makes a model without the parameter",
    )
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: Value) -> Result<(Value, Vec<String>), Diagnostic> {
        let mut modelfile = Modelfile::default();
        let notes = modelfile.parameters(values.as_object().unwrap())?;
        Ok((Value::Object(modelfile.generation), notes))
    }

    #[test]
    fn parameters_become_defaults() {
        let cases = [
            (json!({}), json!({})),
            (
                json!({"temperature": 0.1, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7, "stop": ["<|im_end|>", "User:"]}),
                json!({"temperature": 0.1, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7, "do_sample": true,
                       "stop_strings": ["<|im_end|>", "User:"]}),
            ),
            (json!({"temperature": 0}), json!({"temperature": 0.0, "do_sample": false})),
            (json!({"top_k": 20, "seed": -1}), json!({"top_k": 20, "temperature": 0.8, "do_sample": true})),
            (json!({"stop": "END", "mirostat": 0, "mirostat_tau": 5.0}), json!({"stop_strings": ["END"]})),
            (json!({"repeat_penalty": 1.1, "repeat_last_n": -1}), json!({"repetition_penalty": 1.1})),
            (json!({"repeat_penalty": 1.1, "repeat_last_n": 0}), json!({})),
        ];
        for (values, expected) in cases {
            assert_eq!(read(values.clone()).unwrap(), (expected, Vec::new()), "{values}");
        }
        let (_, notes) = read(json!({"repeat_penalty": 1.1, "num_ctx": 4096})).unwrap();
        assert!(notes[0].contains("the last 64") && notes[1].contains("num_ctx"), "{notes:?}");
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for (values, part) in [
            (json!({"mirostat": 2}), "parameter `mirostat` (2)"),
            (json!({"typical_p": 0.5}), "parameter `typical_p` (0.5)"),
            (json!({"what_comes_next": 1}), "parameter `what_comes_next` (1)"),
            (json!({"temperature": "hot"}), "parameter `temperature` is \"hot\""),
            (json!({"top_p": 7}), "parameter `top_p` is 7"),
            (json!({"repeat_penalty": 0}), "parameter `repeat_penalty` is 0"),
            (json!({"top_k": -3}), "parameter `top_k` is -3"),
            (json!({"stop": [1]}), "parameter `stop` is [1]"),
            (json!({"seed": "x"}), "parameter `seed` is \"x\""),
        ] {
            let error = read(values.clone()).unwrap_err().to_string();
            assert!(error.contains(part), "{values}: {error}");
        }
    }
}
