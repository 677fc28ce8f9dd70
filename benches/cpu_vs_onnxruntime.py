#!/usr/bin/env python3
"""The CPU reference against bare onnxruntime on the same ONNX files: relative error, and speed as a ratio. The reference is
onnxruntime too where it is present; WATUS_CPU_ENGINE=rten measures the built-in one.

usage: cpu_vs_onnxruntime.py [--check] [--watus BINARY] [--rounds N] MODEL.onnx...

Both compute on the same seeded inputs. Error is max|a - b| / max|b| per output; above 1e-4 the script exits with 1.
Speed is measured in interleaved rounds, the median of each round's runs; printed is the median of the rounds' ratios
(watus-build / onnxruntime, so above 1 onnxruntime is faster). --check compares the numbers alone.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime

TOLERANCE = 1e-4
DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(uint8)": np.uint8}


def seeded_inputs(session):
    random = np.random.default_rng(1)
    inputs = {}
    for spec in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
        dtype = DTYPES[spec.type]
        if dtype == np.float32:
            inputs[spec.name] = random.uniform(-1, 1, shape).astype(dtype)
        else:
            inputs[spec.name] = random.integers(0, 8, shape).astype(dtype)
    return inputs


def relative_errors(watus, model, session, inputs, folder):
    arguments = [watus, "run", "--backend", "cpu", str(model), "--save", str(folder)]
    for name, value in inputs.items():
        path = folder / f"in_{name}.npy"
        np.save(path, value)
        arguments += ["--input", f"{name}={path}"]
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    names = [output.name for output in session.get_outputs()]
    for name, want in zip(names, session.run(None, inputs)):
        have = np.load(folder / ("".join(c if c.isalnum() else "_" for c in name) + ".npy"))
        assert have.shape == want.shape, (name, have.shape, want.shape)
        yield name, float(np.max(np.abs(have - want)) / np.max(np.abs(want)))


def ratio(watus, model, session, inputs, rounds, runs):
    ratios = []
    for _ in range(rounds):
        report = subprocess.run(
            [watus, "bench", "--quiet", "--backend", "cpu", "--json", "-n", str(runs), "--warmup", "5", str(model)],
            check=True, capture_output=True)
        ours = json.loads(report.stdout)[0]["end_to_end"]["p50_ms"]
        theirs = []
        for run in range(runs + 5):
            start = time.perf_counter()
            session.run(None, inputs)
            if run >= 5:
                theirs.append((time.perf_counter() - start) * 1e3)
        ratios.append((ours / statistics.median(theirs), ours, statistics.median(theirs)))
    return sorted(ratios)[len(ratios) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--watus", default="target/release/watus-build")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()

    failed = False
    print("| model | output | relative error | ours p50 ms | onnxruntime p50 ms | ours / onnxruntime |")
    print("|---|---|---|---|---|---|")
    for model in arguments.models:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))  # as many as the CPU reference takes
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        inputs = seeded_inputs(session)
        with tempfile.TemporaryDirectory() as folder:
            errors = list(relative_errors(arguments.watus, model, session, inputs, pathlib.Path(folder)))
        speed = "| | | |"
        if not arguments.check:
            r, ours, theirs = ratio(arguments.watus, model, session, inputs, arguments.rounds, arguments.runs)
            speed = f"| {ours:.2f} | {theirs:.2f} | {r:.2f} |"
        for name, error in errors:
            print(f"| {model} | {name} | {error:.1e} {speed}")
            failed |= not error <= TOLERANCE
    print(f"\nonnxruntime {onnxruntime.__version__}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
