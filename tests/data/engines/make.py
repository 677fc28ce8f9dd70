"""Engine directories' manifests as watus-build 0.1.0 of format 1 wrote them, one of each kind, and the model of the first.

    python make.py WATUS_BUILD

WATUS_BUILD is a program that writes format 1 (commit d73bb9f), on a machine without a GPU, with TensorRT-RTX 1.6.1. The model
needs onnx; the manifests stay as the program writes them.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent


def model() -> None:
    """y = x w * gain, with a batch that is open and a gain that the recipe gives."""
    weights = (np.arange(12, dtype=np.float32).reshape(4, 3) - 5) / 7
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Mul", ["p", "gain"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4]),
            helper.make_tensor_value_info("gain", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), HERE / "onnx.onnx")


def main() -> None:
    model()
    program = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in sorted(HERE.glob("*.yaml")):
            # Paths in a manifest are as they were given.
            built = subprocess.run(
                [program, "build", "--output", scratch, recipe.relative_to(HERE)], cwd=HERE, capture_output=True, text=True
            )
            print(built.stdout, built.stderr)
            built.check_returncode()
            shutil.copy(Path(scratch) / recipe.stem / "manifest.json", HERE / f"{recipe.stem}.json")
    (HERE / "watus.lock").unlink(missing_ok=True)


main()
