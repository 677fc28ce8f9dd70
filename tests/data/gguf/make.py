"""Makes the GGUF files of this folder with gguf-py, llama.cpp's own writer, and what it reads back from them.

    pip install gguf safetensors torch && python make.py

blocks.gguf: one tensor of every encoding we read, random blocks; expected.npy: their values, stacked in order of name.
llama.gguf: the checkpoint ../llm/llama as llama.cpp's converter writes it (rows of q and k in rotary pairs), f16 and f32.
"""

import json
import pathlib

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file

T = gguf.GGMLQuantizationType
HERE = pathlib.Path(__file__).parent


def blocks():
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(HERE / "blocks.gguf", "llama")
    expected = []
    for kind in sorted([T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K],
                       key=lambda kind: kind.name):
        values = rng.standard_normal((2, 512)).astype(np.float32)
        try:
            data = quantize(values, kind)
        except NotImplementedError:  # gguf-py cannot quantise to K types: random blocks with sane scales
            block, size = gguf.GGML_QUANT_SIZES[kind]
            data = rng.integers(0, 256, (2, 512 // block * size), dtype=np.uint8)
            scales = rng.uniform(0.001, 0.1, (2, 512 // block, 2)).astype(np.float16).view(np.uint8)
            at = (208,) if kind == T.Q6_K else (0, 2)
            rows = data.reshape(2, 512 // block, size)
            for index, start in enumerate(at):
                rows[:, :, start:start + 2] = scales[:, :, 2 * index:2 * index + 2]
        expected.append(dequantize(data, kind))
        writer.add_tensor(f"values.{kind.name}", data, raw_dtype=kind)
    write(writer)
    np.save(HERE / "expected.npy", np.stack(expected))


def permute(weights, heads):
    """Halves (i, i + d/2) of each head to neighbours (2i, 2i + 1)."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def llama():
    source = HERE.parent / "llm" / "llama"
    config = json.loads((source / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(HERE / "llama.gguf", "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(source / "model.safetensors").items():
        values = tensor.numpy()
        if "q_proj" in name:
            values = permute(values, heads)
        if "k_proj" in name:
            values = permute(values, kv_heads)
        writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", values)
    # A vocabulary of the characters that the tests' template and prompts need.
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(0x41, 0x41 + 61)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([2, 3, 3] + [6] * 61)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    write(writer)


def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    blocks()
    llama()
