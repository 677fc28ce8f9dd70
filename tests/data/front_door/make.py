"""Two engine directories whose answers can be worked out by hand, for documentation tests and tests/front_door.rs: they have a
model for the CPU reference, and no engine.

    python make.py

needs onnx, onnxruntime, numpy and PIL, and prints what onnxruntime says of the picture.

detector    a YOLO of two classes, two pictures at once: 4 x 8 cells of 8 x 8 pixels, each a box. A cell is "red" by its mean of
            red - green - blue (0 to 1), "blue" by blue - red - green.
classifier  three classes, one to three pictures at once: eight times the mean of each channel (0 to 1) are the logits.
blobs.png   64 x 32, black; a square of (230, 0, 0) in the cell at 1, 1 (column, row), one of (0, 0, 153) at 5, 2.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

HERE = Path(__file__).parent
HEIGHT, WIDTH, CELL = 32, 64, 8
BATCH = 2


def save(folder: Path, nodes: list, inputs: list, outputs: list, constants: dict) -> None:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")


def tensor(name: str, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def spec(name: str, shape: list) -> dict:
    return {"name": name, "dtype": "float32", "shape": shape}


def detector(folder: Path) -> dict:
    rows, columns = HEIGHT // CELL, WIDTH // CELL
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    side = np.full(rows * columns, CELL, np.float32)
    boxes = np.stack([CELL * x.ravel() + CELL / 2, CELL * y.ravel() + CELL / 2, side, side])
    nodes = [
        helper.make_node("AveragePool", ["images"], ["means"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Conv", ["means", "weights"], ["differences"], kernel_shape=[1, 1]),
        helper.make_node("Clip", ["differences", "zero", "one"], ["scores"]),
        helper.make_node("Reshape", ["scores", "shape"], ["rows"]),
        helper.make_node("Concat", ["boxes", "rows"], ["output0"], axis=1),
    ]
    constants = {
        "weights": np.array([[1, -1, -1], [-1, -1, 1]], np.float32).reshape(2, 3, 1, 1),
        "zero": np.float32(0),
        "one": np.float32(1),
        "shape": np.array([BATCH, 2, rows * columns], np.int64),
        "boxes": np.repeat(boxes[None], BATCH, 0),
    }
    taken, given = [BATCH, 3, HEIGHT, WIDTH], [BATCH, 6, rows * columns]
    save(folder, nodes, [tensor("images", taken)], [tensor("output0", given)], constants)
    yolo = {
        "task": "detect", "names": ["red", "blue"], "stride": CELL, "size": [HEIGHT, WIDTH], "confidence": 0.25, "iou": 0.7,
        "max_detections": 300, "metadata": False, "about": {},
    }
    return {"kind": "yolo", "inputs": [spec("images", taken)], "outputs": [spec("output0", given)], "yolo": yolo}


def classifier(folder: Path) -> dict:
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("Mul", ["means", "eight"], ["logits"]),
    ]
    taken, given = [None, 3, 8, 8], [None, 3]
    save(folder, nodes, [tensor("pixels", taken)], [tensor("logits", given)], {"eight": np.float32(8)})
    preprocess = {"size": [8, 8], "mean": [0.0, 0.0, 0.0], "std": [255.0, 255.0, 255.0]}
    dims = {bound: [count, 3, 8, 8] for bound, count in [("min", 1), ("opt", 2), ("max", 3)]}
    return {
        "kind": "classifier",
        "inputs": [spec("pixels", taken)],
        "outputs": [spec("logits", given)],
        "profile": [{"name": "pixels", **dims}],
        "classifier": {
            "preprocess": preprocess, "labels": ["red", "green", "blue"], "output": "logits", "class_values": None,
        },
    }


def finish(folder: Path, contents: dict) -> None:
    """The rest of an engine directory, with a text in the engine's place."""
    name = folder.name
    engine = folder / f"{name}.engine"
    engine.write_text("There is no engine here: make.py has written a model for the CPU reference alone.\n")
    record = lambda path: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    manifest = {
        "format": 2, "name": name, **contents, "engine": engine.name, "model": "model.onnx", "tool": "watus-build 0.1.0",
        "key": {}, "tensorrt": {"family": "rtx", "major": 1, "minor": 6, "patch": 1}, "device": None, "l4t": None,
        "precision": "fp32", "tf32": False, "source": "path:make.py",
        "verify": {"seeds": 1, "images": [], "tolerance": 0.001},
        "build": {"seconds": 0.0, "peak_memory_bytes": 0, "skipped_tactics": 0, "warnings": []},
        "files": {path.name: record(path) for path in (engine, folder / "model.onnx")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def main() -> None:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[8:16, 8:16] = (230, 0, 0)
    picture[16:24, 40:48] = (0, 0, 153)
    Image.fromarray(picture).save(HERE / "blobs.png")
    for make in (detector, classifier):
        folder = HERE / make.__name__
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        finish(folder, make(folder))
    pixels = (picture.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    run = lambda name, value: onnxruntime.InferenceSession(HERE / name / "model.onnx").run(None, {value[0]: value[1]})[0]
    found = run("detector", ("images", np.repeat(pixels, BATCH, 0)))[0]
    for anchor in np.flatnonzero(found[4:].max(0) > 0.25):
        print("detector", found[:, anchor])
    square = np.full((1, 3, 8, 8), 0, np.float32)
    square[0] = np.array([51, 102, 204], np.float32).reshape(3, 1, 1) / 255
    logits = run("classifier", ("pixels", square))[0]
    print("classifier of (51, 102, 204)", logits, np.exp(logits) / np.exp(logits).sum())


main()
