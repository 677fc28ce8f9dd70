"""Whether rewritten graphs compute what they did, in onnxruntime: compare.py FOLDER FILE

FOLDER is what cases.py wrote, FILE the name beside each model.onnx. Where onnxruntime computes neither, or not even the original
rightly, there is nothing to compare; where it computes the rewritten graph alone, the expected outputs judge. Prints what
differs; exits with 1 if anything does."""

import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime

onnxruntime.set_default_logger_severity(4)
folder, file = pathlib.Path(sys.argv[1]), sys.argv[2]


def differs(path, case):
    """What is wrong with a model's outputs, or None; and whether it computes any."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options)
        names = [value.name for value in session.get_inputs()]
        inputs = [np.load(path.parent / f"in_{at}.npy") for at in range(case["inputs"])]
        given = [value.name for value in onnx.load(path.parent / "model.onnx").graph.input]
        found = session.run(None, {name: value for name, value in zip(given, inputs) if name in names})
    except Exception as error:
        return str(error)[:300], False
    for at, have in enumerate(found):
        want = np.load(path.parent / f"out_{at}.npy")
        if (have.dtype, have.shape) != (want.dtype, want.shape):
            return f"output {at} is {have.dtype}{have.shape}, was {want.dtype}{want.shape}", True
        half = want.dtype == np.float16
        close = np.allclose(have.astype(float), want.astype(float), rtol=1e-2 if half else 1e-3, atol=1e-2 if half else 1e-5, equal_nan=True)
        if not close:
            return f"output {at} differs", True
    return None, True


def of_other_types(what):
    """An older opset, or onnxruntime, has an operator for fewer types: no mistake of what was rewritten."""
    return "Type Error" in what or "NOT_IMPLEMENTED" in what


# Nobody's random numbers are another's.
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}

counts, wrong = {"same": 0, "not comparable": 0}, []
for case in json.loads((folder / "cases.json").read_text()):
    path = folder / case["group"] / case["name"] / file
    if not path.exists() or RANDOM & set(case["operators"]):
        continue
    what, computed = differs(path, case)
    if what is None:
        counts["same"] += 1
        continue
    before, computed_before = differs(path.with_name("model.onnx"), case)
    # An original that onnxruntime does not take at all (`layout` of LSTM) is no excuse for other outputs.
    excused = before is not None and (computed_before or not computed)
    if of_other_types(what) or excused:
        counts["not comparable"] += 1
    else:
        wrong.append(f"{case['group']}/{case['name']}: {what}")
print(file, counts)
print("\n".join(wrong))
sys.exit(bool(wrong))
