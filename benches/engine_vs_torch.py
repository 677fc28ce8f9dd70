#!/usr/bin/env python3
"""Engines against PyTorch on the same GPU: the engine's own ONNX graph, run op by op in torch, eager and compiled.

usage: engine_vs_torch.py [--watus BINARY] [--rounds N] [--runs N] ENGINE_DIR...

Weights and inputs are the same, outputs are compared, arithmetic is the engine's (FP32, or TF32 where the manifest says
so). Time is the GPU's alone, between two events; rounds of engine, eager and compiled are interleaved, and the median
round's median is printed with its ratio to the engine.
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


class Graph(torch.nn.Module):
    """An ONNX graph of the operators our vision models use. Raises on any other."""

    def __init__(self, path):
        super().__init__()
        graph = onnx.load(path).graph
        self.inputs = [value.name for value in graph.input]
        self.shape = [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim]
        self.outputs = [value.name for value in graph.output]
        self.constants = {}
        for tensor in graph.initializer:
            array = numpy_helper.to_array(tensor)
            # Shapes and sizes stay on the host, weights go to the device.
            self.constants[tensor.name] = array.tolist() if array.dtype == np.int64 else torch.tensor(array).cuda()
        self.nodes = [(node.op_type, list(node.input), list(node.output),
                       {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}) for node in graph.node]

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


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--watus", default="target/release/watus-build")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("engines", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| engine | difference | engine ms | eager ms | compiled ms | eager / engine | compiled / engine |")
    print("|---|---|---|---|---|---|---|")
    for engine in arguments.engines:
        tf32 = json.loads((engine / "manifest.json").read_text())["tf32"]
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
        eager = Graph(engine / "model.onnx")
        torch._dynamo.reset()
        compiled = torch.compile(eager)
        x = torch.rand(eager.shape, device="cuda") * 2 - 1
        error = difference(arguments.watus, engine, x, eager(x)[0], eager.outputs)
        rounds = [(engine_milliseconds(arguments.watus, engine, arguments.runs), milliseconds(eager, x, arguments.runs),
                   milliseconds(compiled, x, arguments.runs)) for _ in range(arguments.rounds)]
        ours, slow, fast = (statistics.median(column) for column in zip(*rounds))
        print(f"| {engine.name} | {error:.1e} | {ours:.3f} | {slow:.3f} | {fast:.3f} | {slow / ours:.2f} | "
              f"{fast / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
