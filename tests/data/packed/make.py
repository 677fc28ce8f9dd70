"""Makes the tiny checkpoint of this folder, whose output matrix is packed in 8 bits and whose layers are in 4, and what
`transformers` answers on it.

    pip install torch transformers compressed-tensors && python make.py

compressed-tensors packs it, by two schemes: 4 bits for every matrix (`Linear`), 8 bits for `lm_head`. Both are without zero points,
which transformers 5.24 does not load. `expected.npy` is [tokens, vocabulary]: the logits in float32 of the tokens
(7 * i + 3) % vocabulary, by transformers, for which compressed-tensors unpacks the weights.
"""

import json
import pathlib

import numpy as np
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

TOKENS, GROUP = 40, 32
FOLDER = pathlib.Path(__file__).parent / "head-8-bits"


def scheme(targets, bits):
    weights = dict(num_bits=bits, type="int", strategy="group", group_size=GROUP, symmetric=True)
    return dict(targets=targets, weights=weights)


def main():
    torch.manual_seed(3)
    config = LlamaConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=64, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
                         pad_token_id=2, tie_word_embeddings=False)
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.1 * torch.randn_like(parameter)
            parameter.copy_(1 + spread if parameter.dim() == 1 else 2.5 * spread)
    quantization = QuantizationConfig(config_groups={"group_0": scheme(["Linear"], 4),
                                                     "group_1": scheme(["re:.*lm_head$"], 8)},
                                      format="pack-quantized", quantization_status="frozen")
    apply_quantization_config(model, quantization)
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        groups = module.weight.detach().unflatten(-1, (-1, GROUP))
        scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), module.quantization_scheme.weights)
        module.weight_scale.data.copy_(scale.half())
    compressor = ModelCompressor(quantization_config=quantization)
    compressor.compress_model(model)
    model.save_pretrained(FOLDER)
    compressor.update_config(FOLDER)
    path = FOLDER / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config, indent=1) + "\n")
    (FOLDER / "generation_config.json").unlink(missing_ok=True)
    loaded = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    tokens = torch.tensor([[(7 * i + 3) % 64 for i in range(TOKENS)]])
    with torch.no_grad():
        np.save(FOLDER / "expected.npy", loaded(tokens).logits[0].float().numpy())


if __name__ == "__main__":
    main()
