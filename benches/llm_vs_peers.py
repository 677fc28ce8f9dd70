"""A 7B language model against llama.cpp, transformers and torch.onnx.export: same GPU, same weights, one run.

    python3 benches/llm_vs_peers.py --watus BIN --logits BIN --work DIR [--llama-bench BIN] [--json FILE] [--tiny]

--tiny tries the script itself, on a model of a few megabytes and any machine.

Makes, once, a checkpoint of Mistral-7B's shape with random weights (speed does not depend on their values) in DIR: as
safetensors in bfloat16 and, if llama-bench is given, as GGUF in float16. Then measures, in turn:

- building engines (wall time and largest resident memory of tool and builder), hashing told apart;
- prompts and decoding, ours (`watus-build bench`), llama-bench's, transformers' (float16, SDPA);
- the error of our logits and of transformers' own float16 run to transformers in float32;
- the whole model as ONNX, ours (7B), and by torch.onnx.export of four of its layers.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import numpy as np
import torch

SHAPE = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
             num_key_value_heads=8, vocab_size=32000, max_position_embeddings=32768, rms_norm_eps=1e-5,
             sliding_window=None, tie_word_embeddings=False, hidden_act="silu", bos_token_id=1, eos_token_id=2)
CONFIG = dict(SHAPE, architectures=["MistralForCausalLM"], model_type="mistral", rope_theta=1e6, torch_dtype="bfloat16")
HEAD = 128
TINY = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def layer(index, random):
    hidden, inner = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    kv = SHAPE["num_key_value_heads"] * HEAD
    p = f"model.layers.{index}."
    return {p + "self_attn.q_proj.weight": random(hidden, hidden), p + "self_attn.k_proj.weight": random(kv, hidden),
            p + "self_attn.v_proj.weight": random(kv, hidden), p + "self_attn.o_proj.weight": random(hidden, hidden),
            p + "mlp.gate_proj.weight": random(inner, hidden), p + "mlp.up_proj.weight": random(inner, hidden),
            p + "mlp.down_proj.weight": random(hidden, inner), p + "input_layernorm.weight": 1 + random(hidden),
            p + "post_attention_layernorm.weight": 1 + random(hidden)}


def tokenizer(folder):
    """A tokenizer of 32,000 made-up words: the engine directory wants one."""
    vocab = {f"w{i}": i for i in range(SHAPE["vocab_size"])}
    document = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
                "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"}}
    (folder / "tokenizer.json").write_text(json.dumps(document))


def gguf_vocabulary(writer):
    """As many made-up words in a GGUF, after the three and the 256 bytes that llama.cpp looks for: llama-server wants them."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + 256 * [6] + (SHAPE["vocab_size"] - len(words)) * [1]
    words += [f"\u2581w{index}" for index in range(len(words), SHAPE["vocab_size"])]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([0.0] * len(words))
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def make(folder, gguf_file, layers):
    """The checkpoint with its first `layers` layers; also as GGUF, if asked for."""
    from safetensors.torch import save_file
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    random_of = torch.Generator(DEVICE).manual_seed(0)

    def random(*shape):
        return (torch.randn(*shape, generator=random_of, device=DEVICE) * 0.02).bfloat16()

    writer = None
    if gguf_file:
        import gguf
        writer = gguf.GGUFWriter(gguf_file, "llama")
        for add, value in ((writer.add_block_count, layers), (writer.add_context_length, 4096),
                           (writer.add_embedding_length, SHAPE["hidden_size"]),
                           (writer.add_feed_forward_length, SHAPE["intermediate_size"]),
                           (writer.add_head_count, SHAPE["num_attention_heads"]),
                           (writer.add_head_count_kv, SHAPE["num_key_value_heads"]),
                           (writer.add_rope_freq_base, CONFIG["rope_theta"]), (writer.add_layer_norm_rms_eps, 1e-5),
                           (writer.add_vocab_size, SHAPE["vocab_size"]), (writer.add_rope_dimension_count, HEAD),
                           (writer.add_file_type, 1)):
            add(value)
        gguf_vocabulary(writer)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    index = {}
    outer = {"model.embed_tokens.weight": random(SHAPE["vocab_size"], SHAPE["hidden_size"]),
             "lm_head.weight": random(SHAPE["vocab_size"], SHAPE["hidden_size"]),
             "model.norm.weight": 1 + random(SHAPE["hidden_size"])}
    for shard in range(-1, layers // 4):
        tensors = outer if shard < 0 else {k: v for i in range(4 * shard, 4 * shard + 4) for k, v in layer(i, random).items()}
        name = f"model-{shard + 2:05d}-of-{layers // 4 + 1:05d}.safetensors"
        save_file({k: v.cpu() for k, v in tensors.items()}, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
        for key, value in tensors.items() if writer else ():
            # The rotary order of llama.cpp is left out: the weights are random.
            data = value.float() if value.dim() == 1 else value.half()
            writer.add_tensor(names.get_name(key.removesuffix(".weight")) + ".weight", data.cpu().numpy())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    tokenizer(folder)
    if writer:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    (folder / "done").touch()


def run(command):
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{command} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return seconds, done.stdout, done.stderr


def build(args, folder):
    """Twice: with unknown hashes, then with known ones, as after `fetch`."""
    recipe = args.work / "m7b.yaml"
    recipe.write_text("version: 1\nname: m7b\nkind: llm\nsource: { path: m7b }\n")
    command = [args.watus, "build", str(recipe), "-o", str(args.work / "engines")]
    _, out, err = run(command + ["--dry-run"])
    hashing = next((line for line in err.splitlines() if "hashed" in line), "")
    seconds, out, err = run(command + ["--rebuild", "--force"])
    built = [line for line in err.splitlines() if "built in" in line]
    report = json.loads((args.work / "engines/m7b/verify.json").read_text())
    manifest = json.loads((args.work / "engines/m7b/manifest.json").read_text())
    return {"hashing": hashing, "built": built, "with_verification_seconds": seconds,
            "builder_peak_bytes": manifest["build"]["peak_memory_bytes"], "builder_seconds": manifest["build"]["seconds"],
            "checks": report["checks"]}


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def timed(work, runs):
    samples = []
    for index in range(runs + 2):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        if index >= 2:
            samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def transformers_speed(model):
    result = {"prefill": {}, "decode": {}}
    for length in (128, 512, 2048):
        ids = torch.randint(0, SHAPE["vocab_size"], (1, length), device=DEVICE)
        result["prefill"][length] = 1e3 * timed(lambda: model(ids, logits_to_keep=1), 5)
    for batch in (1, 4):
        ids = torch.randint(0, SHAPE["vocab_size"], (batch, 128), device=DEVICE)
        out = model(ids, logits_to_keep=1, use_cache=True)
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
        result["decode"][batch] = 1e3 * timed(lambda: model(token, past_key_values=cache, use_cache=True), 30)
    return result


@torch.no_grad()
def peers(args, folder):
    """transformers' speed in float16 and its logits in both; then ours, prefilled and one by one."""
    from transformers import AutoModelForCausalLM
    tokens = [(7919 * i + 13) % SHAPE["vocab_size"] for i in range(96)]
    ids = torch.tensor([tokens], device=DEVICE)
    torch.backends.cuda.matmul.allow_tf32 = False
    wide = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(DEVICE).eval()
    want = wide(ids).logits[0].double().cpu().numpy()
    del wide
    torch.cuda.empty_cache()
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, attn_implementation="sdpa").to(DEVICE).eval()
    theirs = half(ids).logits[0].double().cpu().numpy()
    speed = {} if "speed" in args.without else transformers_speed(half)
    del half
    torch.cuda.empty_cache()
    (args.work / "tokens.json").write_text(json.dumps(tokens))
    errors = {"transformers float16": error(theirs, want)}
    for name, prefilled in (("ours, prefilled", 96), ("ours, decoded one by one", 32)):
        out = args.work / "logits.npy"
        run([args.logits, str(args.work / "engines/m7b"), "tensorrt" if DEVICE == "cuda" else "cpu", str(args.work / "tokens.json"), str(out), str(prefilled)])
        errors[name] = error(np.load(out).astype(np.float64), want)
    return {"speed": speed, "errors": errors}


def error(have, want):
    """Largest difference by largest value, and mean divergence in nats."""
    def log_softmax(x):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))
    p, q = log_softmax(want), log_softmax(have)
    return {"relative": float(np.abs(have - want).max() / np.abs(want).max()),
            "root_mean_square": float(np.sqrt(((have - want) ** 2).mean()) / np.sqrt((want ** 2).mean())),
            "divergence": float((np.exp(p) * (p - q)).sum(-1).mean())}


def llama_bench(binary, gguf_file):
    command = [binary, "-m", str(gguf_file), "-ngl", "99", "-fa", "1", "-r", "5", "-o", "json"]
    _, out, _ = run(command + ["-p", "128,512,2048", "-n", "64"])
    rows = json.loads(out)
    prefill = {row["n_prompt"]: row["avg_ts"] for row in rows if row["n_prompt"]}
    decode = next(row["avg_ts"] for row in rows if row["n_gen"])
    return {"prefill_tokens_per_second": prefill, "decode_tokens_per_second": decode,
            "build": rows[0].get("build_number"), "flash_attention": True}


def onnx(args, small):
    _, out, _ = run([args.watus, "build", str(args.work / "m7b.yaml"), "-o", str(args.work / "m7b"), "--emit", "onnx"])
    ours = float(out.split("written in ")[1].split(" s")[0])
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.randint(0, SHAPE["vocab_size"], (1, 16))
    start = time.perf_counter()
    torch.onnx.export(model, (ids,), str(args.work / "export.onnx"), dynamo=True, external_data=True,
                      kwargs={"use_cache": False})
    theirs = time.perf_counter() - start
    written = sum(path.stat().st_size for path in args.work.glob("export.onnx*"))
    return {"ours_seconds": ours, "ours_layers": SHAPE["num_hidden_layers"], "ours_bytes": os.path.getsize(args.work / "m7b/m7b.onnx"),
            "torch_seconds": theirs, "torch_layers": 4, "torch_bytes": written}


def main():
    parser = argparse.ArgumentParser()
    for name in ("watus", "logits", "work"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    parser.add_argument("--llama-bench", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--without", nargs="*", default=[], choices=["speed", "onnx"])
    args = parser.parse_args()
    if args.tiny:
        SHAPE.update(TINY)
        CONFIG.update(TINY)
    folder, small, gguf_file = args.work / "m7b", args.work / "m7b-4layers", args.work / "m7b.gguf"
    make(folder, str(gguf_file) if args.llama_bench else None, SHAPE["num_hidden_layers"])
    make(small, None, 4)
    result = {"gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else "none"}

    def keep(name, value):
        result[name] = value
        print(name, json.dumps(value), flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1))

    keep("build", build(args, folder))
    bench = [args.watus, "bench", str(args.work / "engines/m7b"), "--json", "--chart", str(args.work / "m7b.svg")]
    keep("ours", json.loads(run(bench)[1])[0])
    if args.llama_bench:
        keep("llama.cpp", llama_bench(args.llama_bench, gguf_file))
    keep("transformers", peers(args, folder))
    if "onnx" not in args.without:
        keep("onnx", onnx(args, small))


if __name__ == "__main__":
    main()
