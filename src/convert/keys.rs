//! Refuses configurations with unsupported fields: a field that changes the arithmetic and that no family read is an
//! error that names it, unless its value says what is done anyway. Names are those of `transformers`' configurations
//! (`configuration_*.py`), which fine-tuning tools and converters use too.

use serde_json::Value;

use super::config::Config;
use crate::checkpoint::{CheckpointError, says_nothing};
use crate::log::printable;

/// Fields that change the arithmetic, and the values at which they do not; absent, null and false always count as such
/// (except for [`MUST`]).
const ARITHMETIC: &[(&str, &str)] = &[
    // Activations.
    ("hidden_act", ""),
    ("hidden_activation", ""),
    ("activation_function", ""),
    ("swiglu_limit", ""),
    ("swiglu_alpha", ""),
    ("mlp_gate_softcap", ""),
    // Biases.
    ("attention_bias", ""),
    ("attention_out_bias", ""),
    ("qkv_bias", ""),
    ("use_qkv_bias", ""),
    ("bias", ""),
    ("use_bias", ""),
    ("add_bias_linear", ""),
    ("mlp_bias", ""),
    ("norm_bias", ""),
    ("lm_head_bias", ""),
    // Norms and the order of blocks.
    ("qk_layernorm", ""),
    ("qk_norm", ""),
    ("use_qk_norm", ""),
    ("use_post_norm", ""),
    ("post_norm", ""),
    ("use_sandwich_norm", ""),
    ("norm_weight_offset", ""),
    ("use_parallel_residual", ""),
    ("parallel_attn", ""),
    ("apply_residual_connection_post_layernorm", ""),
    ("do_layer_norm_before", "true"),
    // Scales and caps.
    ("embedding_multiplier", "1"),
    ("embedding_scale", "1"),
    ("scale_emb", "1"),
    ("scale_embedding", ""),
    ("normalize_embedding", ""),
    ("scale_depth", ""),
    ("dim_model_base", ""),
    ("mup_enabled", ""),
    ("residual_multiplier", "1"),
    ("attention_multiplier", ""),
    ("attention_in_multiplier", "1"),
    ("attention_out_multiplier", "1"),
    ("attention_value_scale", "1"),
    ("key_multiplier", "1"),
    ("mlp_multipliers", ""),
    ("lm_head_multiplier", "1"),
    ("logit_scale", "1"),
    ("logits_scaling", "1"),
    ("attn_logit_softcapping", ""),
    ("final_logit_softcapping", ""),
    ("logits_soft_cap", ""),
    ("output_logit_soft_cap", ""),
    ("query_pre_attn_scalar", ""),
    ("scale_attn_by_inverse_layer_idx", ""),
    ("clip_qkv", ""),
    ("full_attn_mod", "1"),
    ("interpolate_factor", "1"),
    // What a query sees.
    ("use_bidirectional_attention", ""),
    ("is_causal", "true"),
    ("is_encoder_decoder", ""),
    ("add_cross_attention", ""),
    ("sliding_window", ""),
    ("sliding_window_pattern", ""),
    ("sliding_window_size", ""),
    ("use_sliding_window", ""),
    ("attention_window_size", ""),
    ("attention_chunk_size", ""),
    ("attn_temperature_tuning", ""),
    ("local_attention", ""),
    ("global_attn_every_n_layers", ""),
    ("layer_types", ""),
    ("attention_types", ""),
    ("attention_k_eq_v", ""),
    ("use_attention_gate", ""),
    // Positions.
    ("alibi", ""),
    ("position_embedding_type", "\"rope\""),
    ("rope_theta", ""),
    ("rope_scaling", ""),
    ("rope_parameters", ""),
    ("rope_local_base_freq", ""),
    ("local_rope_theta", ""),
    ("global_rope_theta", ""),
    ("layer_rope_theta", ""),
    ("rope_ratio", "1"),
    ("rope_interleave", ""),
    ("rope_interleaved", ""),
    ("partial_rotary_factor", "1"),
    ("rotary_dim", ""),
    ("rotary_pct", "1"),
    ("rotary_emb_fraction", "1"),
    ("rotary_emb_base", ""),
    ("no_rope_layers", ""),
    ("no_rope_layer_interval", ""),
    ("nope_layer_interval", ""),
    // Layers that differ, and other kinds of layers.
    ("block_configs", ""),
    ("per_layer_config", ""),
    ("num_attention_heads_per_layer", ""),
    ("layers_block_type", ""),
    ("block_types", ""),
    ("attn_layer_indices", ""),
    ("num_kv_shared_layers", ""),
    ("hidden_size_per_layer_input", ""),
    ("altup_num_inputs", ""),
    ("laurel_rank", ""),
    ("activation_sparsity_pattern", ""),
    ("use_double_wide_mlp", ""),
    ("n_shared_experts", ""),
    ("num_shared_experts", ""),
    ("enable_moe_block", ""),
    ("kv_lora_rank", ""),
    ("q_lora_rank", ""),
    ("qk_rope_head_dim", ""),
    ("qk_nope_head_dim", ""),
    ("v_head_dim", ""),
    ("multi_query", ""),
    // Weights that are not as they seem: BitNet's first releases call themselves Llama.
    ("weight_bits", ""),
    ("input_bits", ""),
    ("compression_config", ""),
    ("sparsity_config", ""),
    ("transform_config", ""),
];

/// Fields with the number of experts of a mixture; 0 or absent means no mixture.
const EXPERTS: [&str; 6] =
    ["num_experts", "num_local_experts", "moe_num_experts", "n_routed_experts", "num_routed_experts", "n_experts"];

/// Fields of [`ARITHMETIC`] for which false has an effect.
const MUST: &[&str] = &["is_causal", "do_layer_norm_before"];

/// Fields without effect on the arithmetic here: names, versions, training, tokens, and sampling, which
/// generation_config.json decides.
const HARMLESS: &[&str] = &[
    // Names.
    "architectures",
    // Said by `own_code.rs`.
    "auto_map",
    "custom_pipelines",
    "dtype",
    "finetuning_task",
    "is_llama_config",
    "language",
    "license",
    "model_name",
    "model_type",
    "name_or_path",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    // Labels of heads that are not the language model's.
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "classifier_dropout",
    "classifier_dropout_prob",
    // Training.
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "neftune_noise_alpha",
    "resid_dropout",
    "resid_pdrop",
    "residual_dropout",
    "router_aux_loss_coef",
    "use_unsloth_gradient_checkpointing",
    "z_loss_coefficient",
    // How it is run. A split for tensor parallelism changes the order of sums alone.
    "attn_implementation",
    "cache_implementation",
    "chunk_size_feed_forward",
    "fused_spec",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "pruned_heads",
    "quantization_config",
    "return_dict",
    "tf_legacy_loss",
    "torchscript",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention",
    "use_flash_attn",
    // Lengths that count beside a scaling alone, where they are read, or were somebody's notes.
    "original_max_position_embeddings",
    "max_length",
    "max_sequence_length",
    "max_seq_len",
    "model_max_length",
    "seq_length",
    "tokenizer_model_max_length",
    // Qwen's count of layers that do not slide, which says nothing where none do.
    "max_window_layers",
    // Tokens.
    "bos_token_id",
    "cls_token_id",
    "decoder_start_token_id",
    "eod_token_id",
    "eos_token_id",
    "mask_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    "image_token_id",
    "image_token_index",
    "tie_encoder_decoder",
    "is_decoder",
    // Sampling.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_scores",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict_in_generate",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Fields of `rope_scaling` without effect if they are not read: notes about training.
const ROTARY_HARMLESS: &[&str] = &["finetuned", "original_max_position_embeddings", "rope_type", "type"];

/// The error for a mixture of experts, if the configuration is of one.
pub(super) fn mixture(config: &Config, kind: &str) -> Option<CheckpointError> {
    let found = EXPERTS.iter().find_map(|field| {
        let value = config.get(field).filter(|value| !says_nothing(value))?;
        Some(format!(", `{field}: {}`", shortened(value)))
    });
    // A file may leave the number to transformers' defaults.
    let named = kind == "mixtral" || kind.contains("moe");
    (found.is_some() || named).then(|| {
        config
            .error(format!(
                "mixture of experts is not supported (model_type `{}`{})",
                printable(kind),
                found.unwrap_or_default()
            ))
            .with_help("take a dense model")
    })
}

/// Fails at a field that would change the arithmetic; otherwise returns a message that names unknown fields, if there
/// are any.
pub(super) fn check(config: &Config, family: &str) -> Result<Option<String>, CheckpointError> {
    let mut unknown = Vec::new();
    for (field, value) in config.unread() {
        match ARITHMETIC.iter().find(|(name, _)| *name == field) {
            Some((_, neutral)) if !is_neutral(field, value, neutral) => {
                return Err(config
                    .error(format!(
                        "`{field}: {}` changes what the model computes, and is not supported for `{family}`",
                        shortened(value)
                    ))
                    .with_help("take a release of the model without it"));
            }
            Some(_) => {}
            // What begins with an underscore is transformers' own memory of how a file was loaded.
            None if says_nothing(value) || field.starts_with('_') || HARMLESS.contains(&field) => {}
            None => unknown.push(format!("`{}: {}`", printable(field), shortened(value))),
        }
    }
    let more = unknown.len().saturating_sub(NAMED);
    unknown.truncate(NAMED);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    let note =
        format!("config.json has fields that nobody here knows, and that are not used: {}{rest}", unknown.join(", "));
    Ok((!unknown.is_empty()).then_some(note))
}

/// Most fields that a message names.
const NAMED: usize = 8;

/// Fails at an unread field of rotary parameters, all of which change the arithmetic.
pub(super) fn rotary(scaling: &Config) -> Result<(), CheckpointError> {
    let is_unread = |(field, value): &(&str, &Value)| !says_nothing(value) && !ROTARY_HARMLESS.contains(field);
    match scaling.unread().into_iter().find(is_unread) {
        Some((field, value)) => Err(scaling
            .error(format!(
                "`{field}: {}` of the rotary parameters is not supported with rope_type `{}`",
                shortened(value),
                super::rope::kind_of(scaling)
            ))
            .with_help("take a release of the model without it")),
        None => Ok(()),
    }
}

fn is_neutral(field: &str, value: &Value, neutral: &str) -> bool {
    if value.is_null() || (says_nothing(value) && !MUST.contains(&field)) {
        return true;
    }
    // As transformers writes it for families without windows.
    if field == "layer_types" {
        return value.as_array().is_some_and(|types| types.iter().all(|kind| kind == "full_attention"));
    }
    let Ok(neutral) = serde_json::from_str::<Value>(neutral) else { return false };
    *value == neutral || value.as_f64().is_some_and(|value| neutral.as_f64() == Some(value))
}

/// A value, shortened for messages.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
