"""Makes the tiny checkpoints of this folder and what `transformers` answers on them.

    pip install torch transformers gguf && python make.py [NAME…]

Each has random weights, a few layers of a few dozen dimensions, and every option of its family that changes the
arithmetic. `expected.npy` is [tokens, vocabulary]: the logits in float32 of the tokens (7 * i + 3) % vocabulary.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (Gemma2Config, Gemma3TextConfig, LlamaConfig, MistralConfig, Phi3Config, Qwen2Config,
                          Qwen3Config)

TOKENS = 40
SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             vocab_size=64, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=2)
DIM = 8  # SMALL's head size


def rope(kind, **more):
    return {"rope_type": kind, "rope_theta": 10000.0, **more}


LONG = dict(long_factor=[1.0 + 0.5 * i for i in range(DIM // 2)], short_factor=[1.0 + 0.1 * i for i in range(DIM // 2)],
            original_max_position_embeddings=128)
DTYPES = {"llama": torch.float32, "gemma2": torch.float16}
CASES = {
    "llama": LlamaConfig(**SMALL),
    "llama-mqa-bias": LlamaConfig(**{**SMALL, "num_key_value_heads": 1, "head_dim": 12, "attention_bias": True,
                                     "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-linear": LlamaConfig(**SMALL, rope_parameters=rope("linear", factor=4.0)),
    "llama-dynamic": LlamaConfig(**{**SMALL, "max_position_embeddings": 16}, rope_parameters=rope("dynamic", factor=4.0)),
    "llama-llama3": LlamaConfig(**SMALL, rope_parameters=rope("llama3", factor=8.0, low_freq_factor=1.0,
                                high_freq_factor=4.0, original_max_position_embeddings=64)),
    "llama-yarn": LlamaConfig(**SMALL, rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "mistral": MistralConfig(**SMALL, sliding_window=10),
    "qwen2": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SMALL, head_dim=16, query_pre_attn_scalar=24, sliding_window=10, attn_logit_softcapping=2.0,
                           final_logit_softcapping=3.0),
    "gemma3": Gemma3TextConfig(**{**SMALL, "num_hidden_layers": 3}, head_dim=16, query_pre_attn_scalar=20, sliding_window=10,
                               layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                               rope_parameters={"full_attention": rope("linear", factor=8.0),
                                                "sliding_attention": rope("default")}),
    "phi3": Phi3Config(**{**SMALL, "max_position_embeddings": 256}, original_max_position_embeddings=128,
                       sliding_window=12, rope_parameters=rope("longrope", **LONG)),
    "phi3-long": Phi3Config(**SMALL, original_max_position_embeddings=32,
                            rope_parameters=rope("longrope", **{**LONG, "original_max_position_embeddings": 32})),
    "phi3-partial": Phi3Config(**{**SMALL, "hidden_size": 64}, rope_parameters=rope("default", partial_rotary_factor=0.5)),
    # As Bielik v3: biases everywhere, an output matrix of its own.
    "llama-bielik": LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True, rope_parameters={
        "rope_type": "default", "rope_theta": 1000000.0}),
    "llama-own-head": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2-yarn": Qwen2Config(**{**SMALL, "max_position_embeddings": 20}),
    "qwen3-yarn": Qwen3Config(**SMALL, head_dim=16),
    "gemma3-scaled": Gemma3TextConfig(**SMALL, head_dim=16, query_pre_attn_scalar=20, sliding_window=10,
                                      sliding_window_pattern=2),
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def qwen2_yarn(config):
    """As Qwen2.5's card tells: `rope_scaling` beside transformers 4's `rope_theta`; the longest sequence as it was."""
    del config["rope_parameters"]
    config.update(rope_theta=10000.0, rope_scaling=YARN)


def gemma3_scaled(config):
    """A scaling for the full layers added beside both kinds' parameters."""
    config.update(rope_scaling={"rope_type": "linear", "factor": 8.0})


# What people change in the files afterwards.
EDITS = {
    "qwen2-yarn": qwen2_yarn,
    "qwen3-yarn": lambda config: config.update(rope_scaling=YARN),
    "gemma3-scaled": gemma3_scaled,
}


def edited(name, folder, tokens):
    """The logits of a checkpoint whose files were changed, as `from_pretrained` reads them."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    EDITS.get(name, lambda config: None)(config)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if name == "llama-own-head":
        file = folder / "model.safetensors"
        tensors = load_file(file)
        embedding = tensors["model.embed_tokens.weight"]
        tensors["lm_head.weight"] = (torch.randn(embedding.shape) * 0.25).to(embedding.dtype)
        save_file(tensors, file, metadata={"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(tokens).logits[0].numpy()


def main():
    here = pathlib.Path(__file__).parent
    for name, config in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(len(name))
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases too, or they would not be tested
                parameter.copy_(torch.randn_like(parameter) * (0.25 if parameter.dim() > 1 else 0.5)
                                + (1.0 if parameter.dim() == 1 and "gemma" not in name else 0.0))
            dtype = DTYPES.get(name, torch.bfloat16)
            for parameter in model.parameters():
                parameter.copy_(parameter.to(dtype).float())
            tokens = torch.tensor([[(7 * i + 3) % config.vocab_size for i in range(TOKENS)]])
            expected = model(tokens).logits[0].numpy()
        folder = here / name
        shutil.rmtree(folder, ignore_errors=True)
        model.to(dtype).save_pretrained(folder, max_shard_size="20KB" if name == "mistral" else "1GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        if name in EDITS or name == "llama-own-head":
            expected = edited(name, folder, tokens)
        np.save(folder / "expected.npy", expected.astype(np.float32))
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits up to {abs(expected).max():.2f}")


if __name__ == "__main__":
    main()
