"""Makes the tiny checkpoints of this folder and what `transformers` answers on them.

    pip install torch transformers gguf && python make.py

Each has random weights, a few layers of a few dozen dimensions, and every option of its family that changes the
arithmetic. `expected.npy` is [tokens, vocabulary]: the logits in float32 of the tokens (7 * i + 3) % vocabulary.
"""

import json
import pathlib
import shutil

import numpy as np
import torch
import transformers
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
}


def main():
    here = pathlib.Path(__file__).parent
    for name, config in CASES.items():
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
        np.save(folder / "expected.npy", expected.astype(np.float32))
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, logits up to {abs(expected).max():.2f}")


if __name__ == "__main__":
    main()
