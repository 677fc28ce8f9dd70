//! Refuses checkpoints with unsupported tensors: a tensor that no layer reads is known to have no effect, or is an
//! error that names it.

use std::collections::HashSet;

use super::Transformer;
use crate::checkpoint::{Checkpoint, CheckpointError};

/// Suffixes of buffers that are computed, not trained: older versions of `transformers` stored rotary frequencies
/// (which version 5 ignores by the same name, `modeling_utils.py`) and causal masks.
const COMPUTED: &[&str] = &[
    "rotary_emb.inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    ".attn.bias",
    ".attn.masked_bias",
    ".self_attn.masked_bias",
    // The frequencies in old GGUF files.
    ".attn_rot_embd.weight",
];

/// Prefixes of tensors outside the language model: the value head that trl's trainers leave (`modeling_value_head.py`).
const BESIDE: &[&str] = &["v_head."];

/// Prefixes of Gemma 3's vision part, in both versions of `transformers` and in Ollama's files.
const PICTURES: &[&str] =
    &["vision_tower.", "model.vision_tower.", "multi_modal_projector.", "model.multi_modal_projector.", "v.", "mm."];

/// Suffixes of scales for an 8-bit KV cache. They concern storage, not arithmetic: vLLM, for which they are written,
/// only reads them with `kv_cache_dtype: fp8` (its docs, "Quantized KV Cache").
const CACHE: &[&str] =
    &[".k_scale", ".v_scale", ".k_zero_point", ".v_zero_point", ".k_proj.output_scale", ".v_proj.output_scale"];

/// The message about [`CACHE`] scales.
pub(super) const CACHE_SCALES: &str =
    "the checkpoint's scales for a cache of keys and values in 8 bits are not used: `kv_cache: int8` makes its own";

/// Fails at the first tensor that should be used and is not; otherwise returns messages for the user.
pub(super) fn tensors(model: &Transformer, checkpoint: &Checkpoint) -> Result<Vec<String>, CheckpointError> {
    let mut taken: HashSet<String> = model.parts().map(|part| part.tensor).collect();
    // Tied and the same as the embedding.
    taken.insert(model.output.clone());
    let (mut notes, mut unread) = (Vec::new(), Vec::new());
    for name in checkpoint.others(&taken) {
        let ends = |list: &[&str]| list.iter().any(|end| name.ends_with(end));
        let begins = |list: &[&str]| list.iter().any(|start| name.starts_with(start));
        if ends(CACHE) {
            notes = vec![CACHE_SCALES.to_owned()];
        } else if !(ends(COMPUTED)
            || begins(BESIDE)
            || model.family == "gemma3" && begins(PICTURES)
            || adds_nothing(checkpoint, name, &taken))
        {
            unread.push(checkpoint.spelled(name));
        }
    }
    unread.sort_unstable();
    let Some(first) = unread.first() else {
        notes.retain(|note| !model.notes.contains(note));
        return Ok(notes);
    };
    let more = match unread.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let message = format!(
        "tensor `{first}`{more} is not part of `{}` as the configuration describes it; without it the answers would be \
         others",
        model.family
    );
    Err(CheckpointError::new(&checkpoint.config_path, message)
        .with_help("take another release of the model, or one whose configuration fits its tensors"))
}

/// Whether a bias has no effect: quantisers (GPTQ-for-LLaMa, early AutoGPTQ) add zeros where the model has no bias.
fn adds_nothing(checkpoint: &Checkpoint, name: &str, taken: &HashSet<String>) -> bool {
    let Some(stem) = name.strip_suffix(".bias") else { return false };
    if !taken.contains(&format!("{stem}.weight")) {
        return false;
    }
    checkpoint.tensor(name).is_ok_and(|view| {
        let mut values = vec![0.0; view.columns()];
        (0..view.rows()).all(|row| {
            view.read_row(row, &mut values);
            values.iter().all(|value| *value == 0.0)
        })
    })
}
