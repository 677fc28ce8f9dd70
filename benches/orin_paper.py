"""A paper table: what each phase of a turn costs on an AGX Orin, computed from counted bytes and operations. Nothing is measured.

    python3 benches/orin_paper.py CONFIG.json [--precision int4] [--head int8] [--group-size 128] [--kv-cache auto]
                                  [--board orin-64gb] [--known 1500] [--share 0.88 0.7] [--json FILE]

CONFIG.json is a model's config.json (Llama, Mistral, Qwen2, Qwen3, Phi-3, Gemma: dense). A phase takes as long as its bytes at the
memory's rate or its operations at the tensor cores', whichever is longer; the layers' products, attention and the output matrix follow
each other, so their times add up. Three columns: at the limits of the board; at the shares of both that the best published figures
reached there (`REACHED`); and with --share at shares of your own. Beside them is what others published for that board, for the same
shape or, named, for the nearest.

Counted of memory: weights as the decode kernel's tiles have them, once for a pass, whatever its rows; the cache, once for all rows of a
pass; new keys and values; activations between products. A turn is read in one pass of at most --pass tokens by products that unpack
weights in registers; `--unpack` counts the other way, in which weights are unpacked to float16 in memory and read from there. Not
counted: launches, waiting between phases, the rows of the embedding, sampling, HTTP.
"""

import argparse
import dataclasses
import json
import pathlib

TURNS = (8, 16, 24, 32, 61, 64, 128, 256, 512, 1024, 2048)


@dataclasses.dataclass(frozen=True)
class Board:
    """GPU and memory of a module. NVIDIA, "Jetson AGX Orin Series Technical Brief" and module data sheets: multiprocessors of 128 CUDA
    cores and four tensor cores, most GPU clock, memory bandwidth."""
    name: str
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes a second

    @property
    def operations(self):
        """float16 operations a second on tensor cores, dense. The brief's 170 sparse INT8 TOPS of 16 multiprocessors at 1.3 GHz are 85
        dense ones, and half as many in float16: 1,024 multiply-adds a multiprocessor and clock."""
        return self.multiprocessors * 1024 * 2 * self.clock


BOARDS = {
    "orin-64gb": Board("Jetson AGX Orin 64 GB", 16, 1.3e9, 204.8e9),
    "orin-32gb": Board("Jetson AGX Orin 32 GB", 14, 0.93e9, 204.8e9),
}

# Shares of bandwidth and of arithmetic that TensorRT-LLM 0.12 reached on the 64 GB board with Llama-3-8B in 4 bits (source below): 35.9
# tokens a second of 4.54 GB each (a scale for each output, an output matrix in float16); 512 tokens in 260 ms, 27.7 TFLOP/s. Its table
# has 1,024 tokens in 582 ms, and, with groups, in 337, which would be all that the tensor cores can: it is left out.
REACHED = (0.80, 0.65)


@dataclasses.dataclass(frozen=True)
class Published:
    """Milliseconds of turns by tokens without any known before, and tokens a second by cached tokens (128: of a short prompt and an
    answer), in 4 bits on the 64 GB board."""
    who: str
    model: str
    shape: tuple  # layers, hidden, intermediate, vocabulary
    turns: dict
    decode: dict
    source: str


EDGE = "TensorRT Edge-LLM 0.10.0"
EDGE_SOURCE = "https://nvidia.github.io/TensorRT-Edge-LLM/0.10.0/user_guide/performance/performance-benchmarks.html"
PUBLISHED = [
    Published(EDGE, "Qwen3-0.6B", (28, 1024, 3072, 151936), {61: 12.8, 2048: 118.5}, {128: 200.5, 2048: 162.5}, EDGE_SOURCE),
    Published(EDGE, "Qwen3-1.7B", (28, 2048, 6144, 151936), {61: 24.3, 2048: 308.3}, {128: 99.8, 2048: 89.5}, EDGE_SOURCE),
    Published(EDGE, "Qwen3-4B", (36, 2560, 9728, 151936), {61: 49.9, 2048: 761.9}, {128: 55.3, 2048: 50.7}, EDGE_SOURCE),
    Published(EDGE, "Qwen3-8B", (36, 4096, 12288, 151936), {61: 74.7, 2048: 1384.0}, {128: 32.2, 2048: 30.6}, EDGE_SOURCE),
    Published("TensorRT-LLM 0.12", "Llama-3-8B", (32, 4096, 14336, 128256), {128: 91.0, 512: 260.0, 1024: 582.0}, {128: 35.9},
              "https://github.com/NVIDIA/TensorRT-LLM/blob/v0.12.0-jetson/README4Jetson.md"),
    Published("MLC", "Llama-2-7B", (32, 4096, 11008, 32000), {}, {128: 46.9},
              "https://github.com/dusty-nv/jetson-containers/tree/master/packages/llm/mlc"),
]


def bytes_of_weight(precision, group, outputs, inputs):
    """Bytes of a matrix on the device. Packed tiles have 16 outputs and 128 (4 bits) or 64 (8 bits) inputs, and four bytes of scale and
    zero point for each output and group (src/cuda_executor/packed_tiles.rs)."""
    if precision in ("fp16", "bf16"):
        return 2 * outputs * inputs
    inputs_of_tile = 128 if precision == "int4" else 64
    tiles = -(-inputs // inputs_of_tile) * (-(-outputs // 32) * 2)
    return tiles * (1024 + 64 * -(-inputs_of_tile // min(group, inputs_of_tile)))


class Model:
    """Sizes of a dense transformer, from its config.json."""

    def __init__(self, config, precision, head, group, kv_cache):
        config = {**config, **config.get("text_config", {})}
        if any(config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
            raise SystemExit("a mixture of experts is not counted here")
        self.hidden, self.inner = config["hidden_size"], config["intermediate_size"]
        self.layers, self.vocabulary = config["num_hidden_layers"], config["vocab_size"]
        self.heads = config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.dim = config.get("head_dim") or self.hidden // self.heads
        self.precision = precision
        queries, keys = self.heads * self.dim, self.kv_heads * self.dim
        # Outputs and inputs of a layer's matrices: qkv, output, gate and up, down.
        self.matrices = [(queries + 2 * keys, self.hidden), (self.hidden, queries), (2 * self.inner, self.hidden),
                         (self.hidden, self.inner)]
        self.elements = self.layers * sum(outputs * inputs for outputs, inputs in self.matrices)
        self.weights = self.layers * sum(bytes_of_weight(precision, group, *matrix) for matrix in self.matrices)
        self.head_elements = self.vocabulary * self.hidden
        self.head_weights = bytes_of_weight(head, group, self.vocabulary, self.hidden)
        # In 8 bits with a float32 scale for each position and head.
        self.kv = 2 * self.layers * self.kv_heads * (self.dim + 4 if kv_cache == "int8" else 2 * self.dim)

    def shape(self):
        return self.layers, self.hidden, self.inner, self.vocabulary

    def activations(self):
        """Bytes written and read again between the products of a token, in float16."""
        written = sum(outputs for outputs, _ in self.matrices)
        return self.layers * 2 * 2 * (written - self.inner)


def cost(model, rows, known, unpacks):
    """(bytes, operations) of the parts of a pass of `rows` after `known` positions, without the output matrix."""
    weights = model.weights
    if unpacks and model.precision in ("int4", "int8"):
        # Read packed, written in float16, read in float16.
        weights += 2 * 2 * model.elements
    products = (weights + rows * model.activations(), 2 * model.elements * rows)
    pairs = rows * known + rows * (rows + 1) // 2
    attention = (model.kv * (known + 2 * rows), 4 * model.layers * model.heads * model.dim * pairs)
    return [products, attention]


def head(model, rows=1):
    return (model.head_weights + rows * 4 * model.vocabulary, 2 * model.head_elements * rows)


def turn(model, tokens, known, longest, unpacks):
    """Parts of a turn until the logits of its last token, in passes of at most `longest` tokens."""
    parts, done = [], 0
    while done < tokens:
        rows = min(longest, tokens - done)
        parts += cost(model, rows, known + done, unpacks)
        done += rows
    return [*parts, head(model)]


def seconds(parts, board, shares):
    bandwidth, arithmetic = board.bandwidth * shares[0], board.operations * shares[1]
    return sum(max(moved / bandwidth, operations / arithmetic) for moved, operations in parts)


def bound(parts, board, shares):
    """What most of the time is spent on."""
    bandwidth, arithmetic = board.bandwidth * shares[0], board.operations * shares[1]
    memory = sum(moved / bandwidth for moved, ops in parts if moved / bandwidth >= ops / arithmetic)
    return "memory" if 2 * memory >= seconds(parts, board, shares) else "arithmetic"


def published(model, kind, at):
    """What others published for this phase: for the shape, else for the model nearest in size, if it is near."""
    def size(shape):
        layers, hidden, inner, vocabulary = shape
        return layers * hidden * (2.5 * hidden + 3 * inner) + vocabulary * hidden

    own = size(model.shape())
    fits = [entry for entry in PUBLISHED if at in getattr(entry, kind)]
    exact = [entry for entry in fits if entry.shape == model.shape()]
    near = sorted((entry for entry in fits if abs(size(entry.shape) / own - 1) < 0.15), key=lambda entry: abs(size(entry.shape) - own))
    unit = "ms" if kind == "turns" else "tok/s"
    said = [f"{getattr(entry, kind)[at]:,} {unit} ({entry.who}, {entry.model})" for entry in exact or near[:1]]
    return "; ".join(said) or "–"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=pathlib.Path)
    parser.add_argument("--precision", choices=["fp16", "bf16", "int8", "int4"], default="int4")
    parser.add_argument("--head", choices=["fp16", "bf16", "int8", "int4"], help="default: int8 with int4, else fp16")
    parser.add_argument("--group-size", type=int, choices=[32, 64, 128], default=128)
    parser.add_argument("--kv-cache", choices=["auto", "int8"], default="auto")
    parser.add_argument("--board", choices=BOARDS, default="orin-64gb")
    parser.add_argument("--known", type=int, default=1500, help="tokens before a turn, for the second table")
    parser.add_argument("--pass", dest="longest", type=int, default=2048, help="most tokens of a pass")
    parser.add_argument("--unpack", action="store_true", help="unpack weights in memory before the products")
    parser.add_argument("--share", type=float, nargs=2, metavar=("BANDWIDTH", "ARITHMETIC"), help="shares of your own, 0 to 1")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    of_head = args.head or ("int8" if args.precision == "int4" else "fp16")
    model = Model(json.loads(args.config.read_text()), args.precision, of_head, args.group_size, args.kv_cache)
    board = BOARDS[args.board]
    columns = {"at the limits": (1.0, 1.0), f"at {REACHED[0]:.0%} and {REACHED[1]:.0%}, as published": REACHED}
    if args.share:
        columns[f"at {args.share[0]:.0%} and {args.share[1]:.0%}"] = tuple(args.share)
    print(f"Paper table: {args.config}, {args.precision}, output matrix {of_head}, on a {board.name} ({board.multiprocessors} "
          f"multiprocessors, {board.clock / 1e9:.2f} GHz, {board.operations / 1e12:.1f} TFLOP/s in float16, {board.bandwidth / 1e9:.1f} "
          f"GB/s). Computed, not measured.\n")
    print(f"Layers {model.weights / 1e9:.2f} GB, output matrix {model.head_weights / 1e9:.2f} GB, {model.kv / 1e3:.1f} kB of keys and values "
          f"a position.")
    result = {"board": args.board, "precision": args.precision, "head": of_head, "rows": []}

    def table(title, rows, kind, unit, as_value):
        print(f"\n{title}\n\n| | {' | '.join(columns)} | bound by | published |\n|---|" + "---|" * (len(columns) + 2))
        for name, parts, at in rows:
            values = [as_value(seconds(parts, board, shares)) for shares in columns.values()]
            cells = " | ".join(f"{value:.1f} {unit}" for value in values)
            beside = published(model, kind, at) if args.board == "orin-64gb" and at is not None else "–"
            print(f"| {name} | {cells} | {bound(parts, board, REACHED)} | {beside} |")
            result["rows"].append({"phase": f"{title}: {name}", "unit": unit, **dict(zip(columns, values))})

    steps = [(f"after {cached:,} tokens", cost(model, 1, cached, False) + [head(model)], cached) for cached in (128, 2048)]
    table("Decoding, one sequence", steps, "decode", "tok/s", lambda value: 1 / value)
    turns = lambda known, named: [(f"{tokens:,} tokens", turn(model, tokens, known, args.longest, args.unpack), tokens if named else None)
                                  for tokens in TURNS]
    table("First token of a new conversation", turns(0, True), "turns", "ms", lambda value: 1e3 * value)
    if args.known:
        table(f"First token of a turn after {args.known:,} known tokens", turns(args.known, False), "turns", "ms", lambda value: 1e3 * value)
    print("\nSources of published figures:")
    for source in dict.fromkeys(f"- {entry.who}: {entry.source}" for entry in PUBLISHED):
        print(source)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
