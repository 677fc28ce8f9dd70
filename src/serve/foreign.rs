//! Request fields that change the answer in other servers (vLLM, SGLang, llama.cpp, Ollama, transformers) and not in
//! this one. They are refused, unless their value asks for what this server does anyway.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::error::ApiError;

/// A field, its accepted JSON values (besides null, an empty list and an empty object), and what to use instead.
type Field = (&'static str, &'static [&'static str], &'static str);

const SCHEMA: &str = "use response_format with a json_schema";
const SAMPLING: &str = "this server samples by temperature, top_k, top_p, min_p, the penalties and logit_bias";
const ENDS: &str = "an answer ends with the model's own end, at `stop` or at `max_tokens`";
const TEMPLATE: &str = "the model's own chat template is used as it is; chat_template_kwargs sets its variables";
const THINKING: &str = "use reasoning_effort, or chat_template_kwargs with enable_thinking";
const ONE: &str = "this server gives one answer to a request";
const WORDS: &str = "this server takes and gives words";

const FIELDS: [Field; 66] = [
    ("guided_json", &[], SCHEMA),
    ("guided_regex", &[], SCHEMA),
    ("guided_choice", &[], SCHEMA),
    ("guided_grammar", &[], SCHEMA),
    ("structured_outputs", &[], SCHEMA),
    ("grammar", &["\"\""], SCHEMA),
    ("json_schema", &[], SCHEMA),
    ("regex", &[], SCHEMA),
    ("ebnf", &[], SCHEMA),
    ("structural_tag", &[], SCHEMA),
    ("format", &["\"\""], SCHEMA),
    ("ignore_eos", &["false"], ENDS),
    ("min_tokens", &["0"], ENDS),
    ("min_new_tokens", &["0"], ENDS),
    ("stop_token_ids", &[], ENDS),
    ("stop_regex", &[], ENDS),
    ("include_stop_str_in_output", &["false"], ENDS),
    ("no_stop_trim", &["false"], ENDS),
    ("n_predict", &["-1"], "use max_tokens"),
    ("num_predict", &["-1"], "use max_tokens"),
    ("max_new_tokens", &[], "use max_tokens"),
    ("max_output_tokens", &[], "use max_tokens"),
    ("options", &[], "Ollama's options go beside the messages here, under OpenAI's names"),
    ("repeat_penalty", &["1"], "use repetition_penalty"),
    ("repeat_last_n", &[], SAMPLING),
    ("typical_p", &["1"], SAMPLING),
    ("tfs_z", &["1"], SAMPLING),
    ("top_a", &["0"], SAMPLING),
    ("top_n_sigma", &["-1", "0"], SAMPLING),
    ("eta_cutoff", &["0"], SAMPLING),
    ("epsilon_cutoff", &["0"], SAMPLING),
    ("penalty_alpha", &["0"], SAMPLING),
    ("no_repeat_ngram_size", &["0"], SAMPLING),
    ("mirostat", &["0"], SAMPLING),
    ("dynatemp_range", &["0"], SAMPLING),
    ("xtc_probability", &["0"], SAMPLING),
    ("dry_multiplier", &["0"], SAMPLING),
    ("samplers", &[], SAMPLING),
    ("bad_words", &[], "use logit_bias"),
    ("allowed_token_ids", &[], "use logit_bias"),
    ("logits_processors", &[], SAMPLING),
    ("custom_logit_processor", &[], SAMPLING),
    ("use_beam_search", &["false"], ONE),
    ("num_beams", &["1"], ONE),
    ("length_penalty", &["1"], ONE),
    ("early_stopping", &["false"], ONE),
    ("best_of", &["1"], ONE),
    ("echo", &["false"], "this server does not repeat the prompt"),
    ("prompt_logprobs", &["false", "0"], "this server gives probabilities of the answer's tokens alone (logprobs)"),
    ("truncate_prompt_tokens", &["-1"], "a prompt that is too long is refused; shorten it"),
    ("chat_template", &["\"\""], TEMPLATE),
    ("template", &["\"\""], TEMPLATE),
    ("continue_final_message", &["false"], TEMPLATE),
    ("continue_assistant_turn", &["false"], TEMPLATE),
    ("add_generation_prompt", &["true"], TEMPLATE),
    ("enable_thinking", &[], THINKING),
    ("thinking", &[], THINKING),
    ("thinking_budget", &[], THINKING),
    ("think", &[], THINKING),
    ("reasoning", &[], THINKING),
    ("documents", &[], "put them into a message"),
    ("skip_special_tokens", &["true"], WORDS),
    ("prompt_embeds", &[], WORDS),
    ("return_token_ids", &["false"], WORDS),
    ("return_tokens_as_token_ids", &["false"], WORDS),
    ("lora_path", &[], "this server has one model; put the adapter into its checkpoint, and build that"),
];

/// The first such field in a request's body whose value would change the answer.
#[derive(Debug, Default)]
pub(super) struct Foreign(Option<&'static Field>);

impl Foreign {
    pub(super) fn refuse(self) -> Result<(), ApiError> {
        match self.0 {
            Some((name, _, instead)) => {
                Err(ApiError::unsupported(name, format!("{name} is not known here: {instead}")))
            }
            None => Ok(()),
        }
    }
}

fn says_nothing(value: &Value, fine: &[&str]) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(number) => fine.iter().any(|fine| fine.parse::<f64>().ok() == number.as_f64()),
        other => fine.contains(&other.to_string().as_str()),
    }
}

impl<'de> Deserialize<'de> for Foreign {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Foreign;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Foreign, A::Error> {
                let mut found = Foreign::default();
                while let Some(name) = map.next_key::<String>()? {
                    match FIELDS.iter().find(|field| field.0 == name && found.0.is_none()) {
                        Some(field) if !says_nothing(&map.next_value()?, field.1) => found = Foreign(Some(field)),
                        Some(_) => {}
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(found)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_servers_honour_is_refused_unless_it_changes_nothing() {
        let ask = |text: &str| serde_json::from_str::<Foreign>(text).unwrap().refuse();
        for (name, fine, _) in FIELDS {
            for fine in fine.iter().chain(&["null", "[]", "{}"]) {
                assert_eq!(ask(&format!(r#"{{"x": [1], "{name}": {fine}}}"#)), Ok(()), "{name}: {fine}");
            }
            for asking in ["7.5", "\"x\"", "[1]", "{\"a\": 1}"] {
                let error = ask(&format!(r#"{{"{name}": {asking}, "model": "m"}}"#)).unwrap_err();
                assert_eq!(error.body()["error"]["param"], name, "{asking}: {}", error.message);
            }
            assert_eq!(FIELDS.iter().filter(|other| other.0 == name).count(), 1, "{name}");
        }
        assert_eq!(ask(r#"{"typical_p": 1.0, "metadata": {"a": 1}, "store": true}"#), Ok(()));
    }
}
