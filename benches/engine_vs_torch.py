#!/usr/bin/env python3
"""Engines against PyTorch on the same GPU: eager, compiled, and compiled with CUDA graphs (`mode="reduce-overhead"`).

usage: engine_vs_torch.py [--watus BINARY] [--rounds N] [--runs N] [--transformers ENGINE=FOLDER]... ENGINE_DIR...

torch runs the engine's own ONNX graph op by op (x * sigmoid(x) as one silu), or, where --transformers names a checkpoint
for an engine, that checkpoint's own class in transformers. Weights and inputs are the same, outputs are compared,
arithmetic is the engine's (float16, or FP32 or TF32 as the manifest says). Time is the GPU's alone, between two events;
rounds are interleaved, and the median round's median is printed with its ratio to the engine.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper


def spatial_pads(attributes, rank=2):
    pads = attributes.get("pads", [0] * 2 * rank)
    # ONNX: begins then ends, outermost first. torch.nn.functional.pad: pairs, innermost first.
    return [value for axis in reversed(range(rank)) for value in (pads[axis], pads[axis + rank])]


def convolution(x, weight, bias=None, attributes=None):
    x = F.pad(x, spatial_pads(attributes))
    return F.conv2d(x, weight, bias, attributes.get("strides", [1, 1]), 0, attributes.get("dilations", [1, 1]),
                    attributes.get("group", 1))


def pool(function, value):
    def run(x, attributes):
        x = F.pad(x, spatial_pads(attributes), value=value)
        return function(x, attributes["kernel_shape"], attributes.get("strides", [1, 1]))
    return run


def fuse_silu(nodes):
    """Sigmoid and Mul by its input, as the one operator a torch model would have."""
    gates = {outputs[0]: inputs[0] for op, inputs, outputs, _ in nodes if op == "Sigmoid"}
    silus = {outputs[0]: inputs[0] for op, inputs, outputs, _ in nodes if op == "Mul" and gates.get(inputs[1]) == inputs[0]}
    used = {name for op, inputs, outputs, _ in nodes if outputs[0] not in silus for name in inputs}
    return [("Silu", [silus[outputs[0]]], outputs, {}) if outputs[0] in silus else (op, inputs, outputs, attributes)
            for op, inputs, outputs, attributes in nodes if not (op == "Sigmoid" and outputs[0] not in used)]


class Graph(torch.nn.Module):
    """An ONNX graph of the operators our vision models use. Raises on any other."""

    def __init__(self, path, dtype):
        super().__init__()
        graph = onnx.load(path).graph
        self.inputs = [value.name for value in graph.input]
        self.shape = shape_of(path)
        self.outputs = [value.name for value in graph.output]
        self.constants = {}
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            # Shapes and sizes stay on the host, weights go to the device.
            self.constants[tensor.name] = array.tolist() if array.dtype == np.int64 else torch.tensor(array).cuda().to(dtype)
        self.nodes = fuse_silu([(node.op_type, list(node.input), list(node.output),
                       {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}) for node in graph.node])

    def forward(self, x):
        values = {**self.constants, self.inputs[0]: x}
        for op, inputs, outputs, attributes in self.nodes:
            result = self.step(op, [values[name] if name else None for name in inputs], attributes)
            values.update(zip(outputs, result if isinstance(result, (tuple, list)) else [result]))
        return [values[name] for name in self.outputs]

    def step(self, op, inputs, attributes):
        first = inputs[0]
        if op == "Conv":
            return convolution(*inputs, attributes=attributes)
        if op == "ConvTranspose":
            assert not any(attributes.get("pads", []))
            return F.conv_transpose2d(*inputs, stride=attributes.get("strides", [1, 1]), groups=attributes.get("group", 1))
        if op == "Slice":
            starts, ends, axes = inputs[1:4]
            for start, end, axis in zip(starts, ends, axes):
                first = first.narrow(axis, start, end - start)
            return first
        if op == "MaxPool":
            return pool(F.max_pool2d, float("-inf"))(first, attributes)
        if op == "AveragePool":
            assert not any(attributes.get("pads", [])), "padded average pooling"
            return pool(F.avg_pool2d, 0.0)(first, attributes)
        if op == "Concat":
            return torch.cat(inputs, attributes["axis"])
        if op == "Split":
            return torch.split(first, inputs[1], attributes.get("axis", 0))
        if op == "Reshape":
            return first.reshape(inputs[1])
        if op == "Resize":
            return F.interpolate(first, scale_factor=2.0, mode="nearest")
        if op == "Pad":
            pads, rank = inputs[1], first.dim()
            return F.pad(first, [v for axis in reversed(range(rank)) for v in (pads[axis], pads[axis + rank])])
        if op == "Gemm":
            weight = inputs[1].T if attributes.get("transB") else inputs[1]
            return first @ weight + inputs[2]
        simple = {
            "Add": lambda: first + inputs[1], "Sub": lambda: first - inputs[1], "Mul": lambda: first * inputs[1],
            "Div": lambda: first / inputs[1], "Relu": lambda: F.relu(first), "Sigmoid": lambda: torch.sigmoid(first),
            "Softmax": lambda: torch.softmax(first, attributes.get("axis", -1)),
            "Transpose": lambda: first.permute(attributes["perm"]),
            "Silu": lambda: F.silu(first), "MatMul": lambda: first @ inputs[1], "Identity": lambda: first,
            "Flatten": lambda: first.flatten(attributes.get("axis", 1)),
            "GlobalAveragePool": lambda: first.mean((2, 3), keepdim=True),
        }
        return simple[op]()


def milliseconds(function, x, runs):
    for _ in range(20):
        function(x)
    times = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function(x)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def engine_milliseconds(watus, engine, runs):
    report = subprocess.run([watus, "bench", "--quiet", "--backend", "tensorrt", "--json", "-n", str(runs), "--warmup",
                             "200", str(engine)], check=True, capture_output=True)
    return json.loads(report.stdout)[0]["compute"]["p50_ms"]


def difference(watus, engine, x, want, names):
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", x.cpu().numpy())
        name = json.loads((engine / "manifest.json").read_text())["inputs"][0]["name"]
        subprocess.run([watus, "run", "--backend", "tensorrt", str(engine), "--input", f"{name}={folder}/x.npy",
                        "--save", folder], check=True, stdout=subprocess.DEVNULL)
        have = torch.tensor(np.load(f"{folder}/{names[0]}.npy")).cuda()
    return float((have - want).abs().max() / want.abs().max())


class Transformers(torch.nn.Module):
    """A checkpoint as its own class computes it."""

    def __init__(self, folder, shape, dtype):
        super().__init__()
        from transformers import AutoModelForImageClassification
        self.model = AutoModelForImageClassification.from_pretrained(folder, dtype=dtype).cuda().eval()
        self.shape, self.outputs = shape, ["logits"]

    def forward(self, x):
        return [self.model(pixel_values=x).logits]


def shape_of(path):
    return [dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watus", default="target/release/watus-build")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--transformers", action="append", default=[], metavar="ENGINE=FOLDER")
    parser.add_argument("engines", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()
    checkpoints = dict(pair.split("=", 1) for pair in arguments.transformers)

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| engine | difference | engine ms | eager ms | compiled ms | with CUDA graphs ms | eager / engine "
          "| compiled / engine | with CUDA graphs / engine |")
    print("|---|---|---|---|---|---|---|---|---|")
    for engine in arguments.engines:
        manifest = json.loads((engine / "manifest.json").read_text())
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = manifest["tf32"]
        torch.backends.cudnn.benchmark = True
        dtype = torch.float16 if manifest["precision"] == "fp16" else torch.float32
        model = engine / "model.onnx"
        folder = checkpoints.get(engine.name)
        eager = Transformers(folder, shape_of(model), dtype) if folder else Graph(model, dtype)
        torch._dynamo.reset()
        kinds = [eager, torch.compile(eager), torch.compile(eager, mode="reduce-overhead")]
        x = torch.rand(eager.shape, device="cuda") * 2 - 1
        half = x.to(dtype)
        error = difference(arguments.watus, engine, x, eager(half)[0].float(), eager.outputs)
        rounds = [[engine_milliseconds(arguments.watus, engine, arguments.runs)]
                  + [milliseconds(kind, half, arguments.runs) for kind in kinds] for _ in range(arguments.rounds)]
        ours, *theirs = (statistics.median(column) for column in zip(*rounds))
        cells = [f"{ours:.3f}", *(f"{time:.3f}" for time in theirs), *(f"{time / ours:.2f}" for time in theirs)]
        print(f"| {engine.name} | {error:.1e} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
