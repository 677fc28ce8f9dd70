"""Decoding at the speed of memory: this tool against llama.cpp and torch on one GPU in one run, Mistral-7B's shape, float16 and 4 bits.

    python3 benches/decode_vs_llama.py make    --work DIR --gguf-py LLAMA/gguf-py [--only FILE…] [--layers 32]
    python3 benches/decode_vs_llama.py build   --work DIR --watus BIN [--only ENGINE…] [--slots 4]
    python3 benches/decode_vs_llama.py measure --work DIR --watus BIN --llama LLAMA/build/bin [--only ENGINE…] [--without llama ours torch]

`make` writes random weights (speed does not depend on their values) in four forms: safetensors in bfloat16, the same
shape as GPTQ (4 bits, groups of 128, zero points), GGUF in float16, GGUF in Q4_0 with its output matrix in Q6_K, as
llama-quantize makes it. `build` builds and verifies engines of the first two, of the second also with keys and values in 8
bits. `measure` runs llama-bench (flash attention, all layers on the GPU; keys and values in Q8_0 beside ours in 8 bits) at
--contexts and prompts of --lengths, llama-batched-bench with one sequence and as many as the engine has slots, and `watus-build bench
--compare` with their results: tables, and charts in DIR. Then `torch_peers.py` runs, each in a process of its own: transformers in
float16 as it is and with a static cache and torch.compile, and torch's own int4 product. A peer that fails is a row that says so.

What was measured lies in DIR: NAME-llama.json, NAME-batched.jsonl, NAME-ours.json, torch-KIND.json. --without leaves parts out, so
that they may be measured in several calls, and `ours` is compared with what llama.cpp left there. With --json ours is measured once
and the table is made of that, without charts; it has launches with drafted tokens too.

The engine in 4 bits is measured as the GPTQ checkpoint has its output matrix, in float16, and with that in 8 bits (`head: int8`), as
llama.cpp has it in Q6_K.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import numpy as np
import torch

import llm_vs_peers as model

GROUP, BITS = 128, 4
PROMPTS = (1, 8, 16, 17, 24, 32, 33, 48, 61, 64, 65, 128, 256, 512, 1024, 2048)
CONTEXTS, TOKENS = (128, 1024, 2048), 64
# Engine directory: checkpoint, GGUF, how keys and values are kept here and there, our output matrix.
RUNS = {"m7b": ("m7b", "m7b.gguf", "auto", "f16", "fp16"), "m7b-int4": ("m7b-int4", "m7b-q4_0.gguf", "auto", "f16", "fp16"),
        "m7b-int4-head8": ("m7b-int4", "m7b-q4_0.gguf", "auto", "f16", "int8"),
        "m7b-int4-kv8": ("m7b-int4", "m7b-q4_0.gguf", "int8", "q8_0", "fp16")}
# What torch runs, and how it is called in the table.
TORCH = {"float16": "transformers, static cache, torch.compile", "int4": "torch's int4 product, static cache, torch.compile"}
PARTS = ("llama", "ours", "torch")
# Drafted tokens in a launch.
DRAFTED = (1, 2, 4, 8, 16, 31)


def gptq(folder, layers):
    """The checkpoint as AutoGPTQ writes it (version 1: zero points less one)."""
    from safetensors.torch import save_file
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(model.DEVICE).manual_seed(1)
    per, middle = 32 // BITS, 1 << (BITS - 1)

    def random(*shape):
        return (torch.randn(*shape, generator=generator, device=model.DEVICE) * 0.02).half()

    def packed(outputs, inputs):
        draw = lambda: torch.randint(1, 2 * middle, (inputs // per, outputs), generator=generator, device=model.DEVICE)
        words = sum(draw() << (BITS * i) for i in range(per)).int()
        zeros = torch.full((inputs // GROUP, outputs // per), 0x77777777, device=model.DEVICE, dtype=torch.int64)
        zeros[0, 0] -= 1  # one that is not the middle: zero points are multiplied
        spread = 0.8 + 0.4 * torch.rand(inputs // GROUP, outputs, generator=generator, device=model.DEVICE)
        return {"qweight": words, "qzeros": zeros.int(), "scales": (0.02 / 4.3 * spread).half()}

    index, hidden, vocabulary = {}, model.SHAPE["hidden_size"], model.SHAPE["vocab_size"]
    for shard in range(-1, layers // 4):
        tensors = {}
        if shard < 0:
            tensors = {"model.embed_tokens.weight": random(vocabulary, hidden), "lm_head.weight": random(vocabulary, hidden),
                       "model.norm.weight": 1 + random(hidden)}
        for layer in range(4 * shard, 4 * shard + 4) if shard >= 0 else ():
            for name, value in model.layer(layer, lambda *shape: torch.empty(*shape, device="meta")).items():
                if value.dim() == 1:
                    tensors[name] = 1 + random(*value.shape)
                else:
                    stem = name.removesuffix("weight")
                    tensors.update({stem + part: data for part, data in packed(*value.shape).items()})
        name = f"model-{shard + 2:05d}-of-{layers // 4 + 1:05d}.safetensors"
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    packing = {"quant_method": "gptq", "bits": BITS, "group_size": GROUP, "desc_act": False, "sym": False}
    config = {**model.CONFIG, "torch_dtype": "float16", "num_hidden_layers": layers, "quantization_config": packing}
    (folder / "config.json").write_text(json.dumps(config))
    model.tokenizer(folder)
    (folder / "done").touch()


def q4_0(path, layers):
    """A GGUF of random blocks: Q4_0, 18 bytes for 32 weights; output in Q6_K, 210 bytes for 256."""
    import gguf
    if path.exists():
        return
    random = np.random.default_rng(2)
    writer = gguf.GGUFWriter(path, "llama")
    shape = model.SHAPE
    for add, value in ((writer.add_block_count, layers), (writer.add_context_length, 4096),
                       (writer.add_embedding_length, shape["hidden_size"]),
                       (writer.add_feed_forward_length, shape["intermediate_size"]),
                       (writer.add_head_count, shape["num_attention_heads"]),
                       (writer.add_head_count_kv, shape["num_key_value_heads"]),
                       (writer.add_rope_freq_base, model.CONFIG["rope_theta"]), (writer.add_layer_norm_rms_eps, 1e-5),
                       (writer.add_vocab_size, shape["vocab_size"]), (writer.add_rope_dimension_count, model.HEAD),
                       (writer.add_file_type, 2)):
        add(value)
    model.gguf_vocabulary(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    types = gguf.GGMLQuantizationType

    def blocks(rows, columns, kind):
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        data = random.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
        scale, place = (0.0045, 0) if kind == types.Q4_0 else (2e-5, 208)
        data[:, :, place:place + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        return data.reshape(rows, -1)

    outer = {"model.embed_tokens.weight": (shape["vocab_size"], shape["hidden_size"]),
             "lm_head.weight": (shape["vocab_size"], shape["hidden_size"]), "model.norm.weight": (shape["hidden_size"],)}
    inner = [{k: tuple(v.shape) for k, v in model.layer(i, lambda *s: torch.empty(*s, device="meta")).items()} for i in range(layers)]
    for key, size in [item for part in [outer, *inner] for item in part.items()]:
        name = names.get_name(key.removesuffix(".weight")) + ".weight"
        if len(size) == 1:
            writer.add_tensor(name, np.ones(size, np.float32))
        else:
            kind = types.Q6_K if key.startswith("lm_head") else types.Q4_0
            writer.add_tensor(name, blocks(*size, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# Checkpoints, those in float16 in both forms at once; by what --only calls them.
MAKE = {"m7b": lambda work, layers: model.make(work / "m7b", str(work / "m7b.gguf"), layers),
        "m7b-int4": lambda work, layers: gptq(work / "m7b-int4", layers),
        "m7b-q4_0": lambda work, layers: q4_0(work / "m7b-q4_0.gguf", layers)}


def run(*command, into=None):
    print("$", *command, flush=True)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} failed: {done.stdout[-2000:]}{done.stderr[-3000:]}")
    if into:
        into.write_text(done.stdout)
    return done.stdout


def chosen(args):
    """Engines by name, as in RUNS."""
    return {name: run for name, run in RUNS.items() if not args.only or name in args.only}


def build(args):
    for name, (checkpoint, _, cache, _, head) in chosen(args).items():
        recipe = args.work / f"{name}.yaml"
        settings = f"max_batch_size: {args.slots}\nbuild: {{ kv_cache: {cache}, head: {head} }}"
        recipe.write_text(f"version: 1\nname: {name}\nkind: llm\nsource: {{ path: {checkpoint} }}\n{settings}\n")
        print(run(args.watus, "build", recipe, "-o", args.work / "engines"))


def results_of(args, name):
    """Files with what llama.cpp did: llama-bench's, llama-batched-bench's."""
    _, gguf_file, _, cache, _ = RUNS[name]
    stem = f"{pathlib.Path(gguf_file).stem}-{cache}"
    return args.work / f"{stem}-llama.json", args.work / f"{stem}-batched.jsonl"


def measure_llama(args):
    done = set()
    for name, (_, gguf_file, _, cache, _) in chosen(args).items():
        single, batched = results_of(args, name)
        if single in done:
            continue
        done.add(single)
        common = ["-m", args.work / gguf_file, "-ngl", 99, "-ctk", cache, "-ctv", cache]
        lengths, depths = ",".join(map(str, args.lengths)), ",".join(map(str, args.contexts))
        prompts = run(args.llama / "llama-bench", *common, "-fa", 1, "-p", lengths, "-n", 0, "-r", 5, "-o", "json")
        answers = run(args.llama / "llama-bench", *common, "-fa", 1, "-p", 0, "-n", TOKENS, "-d", depths, "-r", 3, "-o", "json")
        single.write_text(json.dumps(json.loads(prompts) + json.loads(answers)))
        ends = f"{args.contexts[0]},{args.contexts[-1]}"
        room = args.slots * (args.contexts[-1] + TOKENS) + 512
        lines = run(args.llama / "llama-batched-bench", *common, "-fa", "on", "-c", room, "-npp", ends, "-ntg", TOKENS,
                    "-npl", f"1,{args.slots}", "--output-format", "jsonl").splitlines()
        batched.write_text("\n".join(line for line in lines if line.startswith("{")))


def measure_ours(args):
    lengths, depths = ",".join(map(str, args.lengths)), ",".join(map(str, args.contexts))
    for name in chosen(args):
        peers = [path for path in results_of(args, name) if path.exists()]
        command = [args.watus, "bench", "-q", args.work / "engines" / name, "--lengths", lengths, "--contexts", depths]
        if not args.json:
            compared = ["--compare", *peers] if peers else []
            print(run(*command, "--chart", args.work / f"{name}.svg", *compared), flush=True)
            continue
        own = args.work / f"{name}-ours.json"
        drafted = ["--drafted", ",".join(map(str, args.drafted))] if args.drafted else []
        run(*command, *drafted, "--json", into=own)
        table(name, json.loads(own.read_text())[0], json.loads(peers[0].read_text()) if peers else [])


def table(name, ours, theirs):
    """Milliseconds, of prompts and of tokens, beside llama-bench's: medians, since its means have its first run in them."""
    def median(row):
        return 1e-6 * statistics.median(row["samples_ns"])

    prompts = {row["n_prompt"]: median(row) for row in theirs if not row["n_gen"]}
    tokens = {row["n_depth"]: median(row) / row["n_gen"] for row in theirs if row["n_gen"]}

    def line(title, milliseconds, peer, *more):
        against = f"{peer:.2f} | {peer / milliseconds:.2f}" if peer else "|"
        print(f"| {title} | {milliseconds:.2f} | {against} | {' '.join(more)} |")

    print(f"\n{name}: {ours['backend']['device']}, copies move {ours['bandwidth'] / 1e9:.0f} GB/s\n")
    print("| | ms | llama.cpp | times as fast | |\n|---|---|---|---|---|")
    for row in ours["prefill"]:
        line(f"prompt of {row['tokens']}", row["latency"]["p50_ms"], prompts.get(row["tokens"]))
    for row in ours["decode"]:
        alone, milliseconds = row["batch"] == 1, row["latency"]["p50_ms"]
        more = f"{row['tokens_per_second']:.1f} tok/s, {100 * row['bandwidth_share']:.0f} % of the copies"
        line(f"a step of {row['batch']} after {row['context']}", milliseconds, tokens.get(row["context"]) if alone else None, more)
    for row in ours.get("drafted", []):
        line(f"{row['drafted']} drafted after {row['context']}", row["latency"]["p50_ms"], None)
    sys.stdout.flush()


def measure_torch(args):
    results = {kind: torch_peer(args, kind) for kind in TORCH}
    for kind, result in results.items():
        (args.work / f"torch-{kind}.json").write_text(json.dumps(result))
    torch_table(args, results)


def measure(args):
    for part in PARTS:
        if part not in args.without:
            globals()[f"measure_{part}"](args)


def torch_peer(args, kind):
    """The results of torch_peers.py, or why there are none."""
    script = pathlib.Path(__file__).with_name("torch_peers.py")
    command = [sys.executable, script, kind, "--work", args.work, "--prompts", ",".join(map(str, prompts_of_torch(args))),
               "--contexts", ",".join(map(str, args.contexts))]
    print("$", *command, flush=True)
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=args.torch_limit)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return {"failed": lines[-1][:300].replace("|", "/")}
        return json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {args.torch_limit} s"}
    except (IndexError, json.JSONDecodeError) as error:
        return {"failed": f"no result: {error}"}


def prompts_of_torch(args):
    """With one token torch has no prompt, but a step."""
    return [length for length in args.lengths if length > 1]


def torch_table(args, results):
    columns = [("prompts", count, f"{count} tokens, ms") for count in prompts_of_torch(args)]
    columns += [("decode", context, f"a token after {context}, ms") for context in args.contexts]
    print(f"\n| | {' | '.join(title for *_, title in columns)} |\n|---|" + "---|" * len(columns))
    for kind, result in results.items():
        if "failed" in result:
            print(f"| {TORCH[kind]} | failed: {result['failed']} |" + " |" * (len(columns) - 1))
            continue
        rows = {TORCH[kind]: result, **({"transformers": result["plain"]} if "plain" in result else {})}
        for name, row in rows.items():
            cells = [f"{row[of][str(at)]:.2f}" if of in row else "" for of, at, _ in columns]
            print(f"| {name} ({result['torch']}) | {' | '.join(cells)} |", flush=True)


def numbers(text):
    return [int(part) for part in text.split(",") if part]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["make", "build", "measure"])
    parser.add_argument("--work", required=True, type=pathlib.Path)
    parser.add_argument("--watus", type=pathlib.Path)
    parser.add_argument("--llama", type=pathlib.Path)
    parser.add_argument("--gguf-py", type=pathlib.Path)
    parser.add_argument("--only", nargs="*", default=[], choices=[*RUNS, *MAKE], help="of what is made, or of the engines")
    parser.add_argument("--without", nargs="*", default=[], choices=PARTS)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--lengths", type=numbers, default=list(PROMPTS))
    parser.add_argument("--contexts", type=numbers, default=list(CONTEXTS))
    parser.add_argument("--drafted", type=numbers, default=list(DRAFTED), help="with --json; '' for none")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--torch-limit", type=int, default=1200, help="seconds for each of torch's; most of them compile")
    parser.add_argument("--layers", type=int, default=model.SHAPE["num_hidden_layers"])
    parser.add_argument("--tiny", action="store_true", help="try the script itself, on a model of a few megabytes")
    args = parser.parse_args()
    if args.tiny:
        model.SHAPE.update(model.TINY)
        model.CONFIG.update(model.TINY)
        args.layers = model.SHAPE["num_hidden_layers"]
    args.work.mkdir(parents=True, exist_ok=True)
    if args.what == "make":
        sys.path.insert(0, str(args.gguf_py))
        for name, make in MAKE.items():
            if not args.only or name in args.only:
                make(args.work, args.layers)
    else:
        {"build": build, "measure": measure}[args.what](args)


if __name__ == "__main__":
    main()
