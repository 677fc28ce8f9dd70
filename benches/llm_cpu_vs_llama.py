"""A language model on the CPU: both CPU references beside llama.cpp, the same values in float32, two threads by default.

    pip install xllamacpp gguf numpy
    python3 benches/llm_cpu_vs_llama.py MODEL.gguf --watus BIN --engine DIR [--threads 2]

`--engine` is the engine directory built from MODEL.gguf. llama.cpp runs it widened to F32, which is what the CPU references
compute, and as it is. Printed: milliseconds to the first token after a prompt, and for a token after 128; medians.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

import gguf
import numpy as np
import xllamacpp

PROMPTS, CONTEXT, ROUNDS = (16, 61, 128, 512), 128, 5


def widen(source, target):
    """The same GGUF with every tensor in float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        writer.add_key_value(key, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama(model, threads):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = str(model), 1024, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)

    def ask(prompt, answer):
        tokens, results = [100 + (7919 * at + 13) % 40000 for at in range(prompt)], []
        request = {"prompt": tokens, "max_tokens": answer, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        server.handle_completions(request | {"stream": False}, lambda part: results.append(part) or False)
        last = results[-1] if isinstance(results[-1], dict) else json.loads(results[-1])
        return last["timings"]

    ask(16, 4)
    first = [statistics.median(ask(prompt, 1)["prompt_ms"] for _ in range(ROUNDS)) for prompt in PROMPTS]
    return first + [statistics.median(ask(CONTEXT, 32)["predicted_per_token_ms"] for _ in range(ROUNDS))]


def ours(watus, engine, reference):
    command = [watus, "bench", "--quiet", "--json", "--backend", "cpu", "-n", "7", "--warmup", "2", "--contexts", str(CONTEXT),
               "--lengths", ",".join(map(str, PROMPTS)), engine]
    done = subprocess.run(command, check=True, capture_output=True, env={**os.environ, "WATUS_CPU_ENGINE": reference})
    result = json.loads(done.stdout)[0]
    steps = [step["latency"]["p50_ms"] for step in result["decode"] if step["batch"] == 1]
    return [prefill["latency"]["p50_ms"] for prefill in result["prefill"]] + steps[:1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--watus", default="target/release/watus-build")
    parser.add_argument("--engine", required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wide = pathlib.Path(folder) / "wide.gguf"
        widen(args.model, wide)
        columns = {"rten": ours(args.watus, args.engine, "rten"), "onnxruntime": ours(args.watus, args.engine, "onnxruntime"),
                   "llama.cpp F32": llama(wide, args.threads), "llama.cpp as it is": llama(args.model, args.threads)}
    print("| ms | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for at, what in enumerate([f"prompt of {prompt}" for prompt in PROMPTS] + [f"a token, after {CONTEXT}"]):
        print(f"| {what} | " + " | ".join(f"{column[at]:.1f}" for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
