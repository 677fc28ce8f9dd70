"""Makes models/: tiny checkpoints as llama.cpp's and Ollama's converters write them, and what `transformers` answers.

    pip install gguf torch transformers && python make_models.py

Keys and tensors are those of llama.cpp's conversion/*.py and of Ollama's convert/*.go. NAME.npy is [40, vocabulary]: the
logits in float32 of the tokens (7 * i + 3) % vocabulary. `llama3` is cut into parts, as gguf-split does.
"""

import pathlib

import gguf
import numpy as np
import torch
import transformers
from transformers import (Gemma2Config, Gemma3TextConfig, LlamaConfig, MistralConfig, Phi3Config, Qwen2Config,
                          Qwen3Config)

HERE = pathlib.Path(__file__).parent / "models"
TOKENS, VOCABULARY = 40, 64
SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=VOCABULARY, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0)
TINY = {**SMALL, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 10}
ARCHITECTURES = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}


def rope(kind, **more):
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


def gemma_ropes(kind, **more):
    return {"full_attention": {**rope(kind, **more), "rope_theta": 1e6}, "sliding_attention": rope("default")}


def factors(count, step):
    return [1.0 + step * i for i in range(count)]


PHI4_MINI = dict(long_factor=factors(4, 0.5), short_factor=factors(4, 0.1), original_max_position_embeddings=32,
                 partial_rotary_factor=0.5)
CASES = {
    # Bielik v3, Granite code: biases everywhere.
    "bielik": ("llama", LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)),
    # Qwen's weights in Llama's form: none behind the output.
    "llamafied": ("llama", LlamaConfig(**SMALL, attention_bias=True)),
    "llama3": ("llama", LlamaConfig(**SMALL, rope_parameters=rope("llama3", factor=8.0, low_freq_factor=1.0,
                                    high_freq_factor=4.0, original_max_position_embeddings=64))),
    "mistral": ("llama", MistralConfig(**SMALL, sliding_window=10)),
    "qwen2-yarn": ("qwen2", Qwen2Config(**SMALL, rope_parameters=rope("yarn", factor=4.0,
                                        original_max_position_embeddings=64))),
    "qwen3": ("qwen3", Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True)),
    "phi4": ("phi3", Phi3Config(**SMALL, sliding_window=None, rope_parameters=rope("default"))),
    "phi4-mini": ("phi3", Phi3Config(**{**SMALL, "hidden_size": 64}, tie_word_embeddings=True, sliding_window=262144,
                                     original_max_position_embeddings=32,
                                     rope_parameters=rope("longrope", **PHI4_MINI))),
    "phi3-partial": ("phi3", Phi3Config(**{**SMALL, "hidden_size": 64}, sliding_window=12,
                                        rope_parameters=rope("default", partial_rotary_factor=0.5))),
    "gemma2": ("gemma2", Gemma2Config(**TINY, attn_logit_softcapping=2.0, final_logit_softcapping=3.0)),
    "gemma3": ("gemma3", Gemma3TextConfig(**{**TINY, "num_hidden_layers": 6}, rope_parameters=gemma_ropes("linear", factor=8.0))),
    # As Ollama's converter writes them: 4B without its scaling, 1B with a cap it does not have.
    "gemma3-4b": ("gemma3", Gemma3TextConfig(**{**TINY, "num_hidden_layers": 34}, rope_parameters=gemma_ropes("linear", factor=8.0))),
    "gemma3-1b": ("gemma3", Gemma3TextConfig(**{**TINY, "num_hidden_layers": 26}, rope_parameters=gemma_ropes("default"))),
}


def permute(values, heads):
    """Halves (i, i + d/2) of each head to neighbours (2i, 2i + 1), of a matrix's rows or a bias's elements."""
    rows = values.shape[0]
    return values.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def metadata(writer, name, arch, config):
    ropes = config.rope_parameters
    full = ropes.get("full_attention", ropes)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(full["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if arch == "llama":
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_dim)
        if name == "mistral":
            writer.add_sliding_window(config.sliding_window)
    elif arch == "phi3":
        writer.add_rope_dimension_count(int(head_dim * full.get("partial_rotary_factor", 1.0)))
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        writer.add_sliding_window(config.sliding_window or 0)
        if "long_factor" in full:
            ratio = config.max_position_embeddings / config.original_max_position_embeddings
            writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(ratio) / np.log(config.original_max_position_embeddings))))
            writer.add_tensor("rope_factors_long.weight", np.array(full["long_factor"], np.float32))
            writer.add_tensor("rope_factors_short.weight", np.array(full["short_factor"], np.float32))
    else:
        if arch != "qwen2":
            writer.add_key_length(head_dim)
            writer.add_value_length(head_dim)
        if arch.startswith("gemma"):
            writer.add_sliding_window(config.sliding_window)
        if arch == "gemma2":
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
        if name == "gemma3-1b":
            writer.add_final_logit_softcapping(30.0)
            writer.add_float32("gemma3.rope.local.freq_base", 10000.0)
        if full["rope_type"] in ("linear", "yarn") and name != "gemma3-4b":
            writer.add_rope_scaling_type(gguf.RopeScalingType(full["rope_type"]))
            writer.add_rope_scaling_factor(full["factor"])
        if full["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if full["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config, full, head_dim))


def llama3_factors(config, ropes, head_dim):
    """As conversion/llama.py makes them, original_max_position_embeddings from where transformers 5 keeps it."""
    frequencies = 1.0 / (ropes["rope_theta"] ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim))
    low, high, original = ropes["low_freq_factor"], ropes["high_freq_factor"], ropes["original_max_position_embeddings"]
    result = []
    for wavelength in 2 * np.pi / frequencies:
        if wavelength < original / high:
            result.append(1.0)
        elif wavelength > original / low:
            result.append(ropes["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            result.append(1 / ((1 - smooth) / ropes["factor"] + smooth))
    return np.array(result, np.float32)


def vocabulary(writer):
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(0x41, 0x41 + 61)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [6] * 61)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def tensors(writer, arch, config, state):
    names = gguf.get_tensor_name_map(ARCHITECTURES[arch], config.num_hidden_layers)
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if arch == "llama" and "q_proj" in name:
            values = permute(values, config.num_attention_heads)
        if arch == "llama" and "k_proj" in name:
            values = permute(values, config.num_key_value_heads)
        if arch.startswith("gemma") and "norm" in name:
            values = values + 1
        stem, _, kind = name.rpartition(".")
        dtype = np.float16 if values.ndim > 1 else np.float32
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", np.ascontiguousarray(values.astype(dtype)))


def make(name, arch, config):
    torch.manual_seed(len(name))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    tokens = torch.tensor([[(7 * i + 3) % VOCABULARY for i in range(TOKENS)]])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.25 if parameter.dim() > 1 else 0.5)
                            + (1.0 if parameter.dim() == 1 and not arch.startswith("gemma") else 0.0))
            parameter.copy_(parameter.half().float())
        if name == "llamafied":
            for layer in model.model.layers:
                layer.self_attn.o_proj.bias.zero_()
        expected = model(tokens).logits[0].numpy()
    state = {key: value for key, value in model.state_dict().items()
             if not (name == "llamafied" and key.endswith("o_proj.bias"))}
    split = dict(split_max_tensors=8) if name == "llama3" else {}
    writer = gguf.GGUFWriter(HERE / f"{name}.gguf", arch, **split)
    metadata(writer, name, arch, config)
    vocabulary(writer)
    tensors(writer, arch, config, state)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.save(HERE / f"{name}.npy", expected.astype(np.float32))
    print(f"{name}: logits up to {abs(expected).max():.2f}")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for old in [*HERE.glob("*.gguf"), *HERE.glob("*.npy")]:
        old.unlink()
    for name, (arch, config) in CASES.items():
        make(name, arch, config)
