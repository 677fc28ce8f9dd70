"""torch's side of benches/decode_vs_llama.py: transformers with a static cache and torch.compile, and the same with torch's own int4 product.

    python3 benches/torch_peers.py float16 --work DIR [--tiny] [--eager]
    python3 benches/torch_peers.py int4    --work DIR [--tiny] [--eager]

Each is a process of its own, whose last line is its result as JSON: milliseconds of prompts by tokens, and of a token by context.
`float16` loads the checkpoint DIR/m7b. `int4` has random weights of its shape: the layers' matrices are products by
`torch._weight_int4pack_mm` (bfloat16, groups of 128), the output matrix stays in bfloat16; speed does not depend on the values. Decoding
is compiled (`mode="reduce-overhead"`, which captures CUDA graphs); prompts are not, since each length would be compiled anew. `float16`
also has prompts with the cache that transformers takes by itself (`plain`), which grows and needs no mask.
--tiny tries the script itself on any machine, --eager without a compiler.
"""

import argparse
import inspect
import json
import pathlib
import time

import torch

import llm_vs_peers as peers

GROUP, TOKENS = 128, 64


class Int4Linear(torch.nn.Module):
    """A product with random weights in torch's own layout of 4 bits."""

    def __init__(self, outputs, inputs):
        super().__init__()
        on_gpu = peers.DEVICE == "cuda"
        if on_gpu:
            pairs = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=peers.DEVICE)
            packed = torch._convert_weight_to_int4pack(pairs, 8)
        else:
            packed = torch._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (outputs, inputs), dtype=torch.int32), 1)
        self.product = torch._weight_int4pack_mm if on_gpu else torch._weight_int4pack_mm_for_cpu
        terms = torch.full((inputs // GROUP, outputs, 2), 0.002, dtype=torch.bfloat16, device=peers.DEVICE)
        self.outputs = outputs
        self.register_buffer("packed", packed)
        self.register_buffer("terms", terms)

    def forward(self, x):
        out = self.product(x.reshape(-1, x.shape[-1]), self.packed, GROUP, self.terms)
        return out.reshape(*x.shape[:-1], self.outputs)


def load(kind, folder):
    from transformers import AutoConfig, AutoModelForCausalLM
    if kind == "float16":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, attn_implementation="sdpa").to(peers.DEVICE).eval()
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    for layer in network.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(part, name, Int4Linear(linear.out_features, linear.in_features))
    # What is left on no device is made: embedding, norms, output matrix, rotary frequencies.
    for module in network.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_meta:
                made = (torch.randn(tensor.shape, device=peers.DEVICE) * 0.02).to(tensor.dtype)
                if name in module._parameters:
                    module._parameters[name] = torch.nn.Parameter(made, requires_grad=False)
                else:
                    module._buffers[name] = made
    return network.eval()


@torch.no_grad()
def measure(network, prompts, contexts, *, compiles, plain):
    from transformers import StaticCache
    longest = max(*prompts, max(contexts) + TOKENS + 8)
    name = "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"
    cache = StaticCache(config=network.config, max_cache_len=longest)
    draw = lambda count: torch.randint(0, network.config.vocab_size, (1, count), device=peers.DEVICE)

    def read(ids):
        cache.reset()
        return network(ids, use_cache=True, logits_to_keep=1, **{name: cache}).logits[:, -1:].argmax(-1)

    step = torch.compile(network.forward, mode="reduce-overhead", fullgraph=True) if compiles else network.forward

    def decode(token):
        if compiles:
            torch.compiler.cudagraph_mark_step_begin()
        return step(token, use_cache=True, **{name: cache}).logits[:, -1:].argmax(-1).clone()

    result = {"prompts": {count: 1e3 * peers.timed(lambda: read(draw(count)), 5) for count in prompts}, "decode": {}}
    if plain:
        own = lambda ids: network(ids, use_cache=True, logits_to_keep=1)
        result["plain"] = {"prompts": {count: 1e3 * peers.timed(lambda: own(draw(count)), 5) for count in prompts}}
    for context in contexts:
        token = read(draw(context))
        for _ in range(4):
            token = decode(token)
        peers.synchronize()
        begun = time.perf_counter()
        for _ in range(TOKENS):
            token = decode(token)
        peers.synchronize()
        result["decode"][context] = 1e3 * (time.perf_counter() - begun) / TOKENS
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["float16", "int4"])
    parser.add_argument("--work", required=True, type=pathlib.Path)
    parser.add_argument("--prompts", default="8,61,128,512,2048")
    parser.add_argument("--contexts", default="128,2048")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    folder = args.work / "m7b"
    if args.tiny:
        peers.SHAPE.update(peers.TINY)
        peers.CONFIG.update(peers.TINY)
        folder = args.work / "tiny"
        peers.make(folder, None, peers.SHAPE["num_hidden_layers"])
    numbers = lambda text: [int(part) for part in text.split(",")]
    network = load(args.kind, folder)
    found = measure(network, numbers(args.prompts), numbers(args.contexts), compiles=not args.eager, plain=args.kind == "float16")
    print(json.dumps({"torch": torch.__version__, **found}))


if __name__ == "__main__":
    main()
