"""Writes single operators with inputs and right outputs, for tests/node_tests.rs: cases.py FOLDER

Two groups: `node` are ONNX's own node tests, `onnxruntime` are older opsets, attributes, types and contributed operators that
those do not reach, with what onnxruntime answers. FOLDER/GROUP/NAME holds model.onnx, inputs and outputs as .npy; cases.json
says in which order, and what could not be written.
"""

import json
import pathlib
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

warnings.filterwarnings("ignore")
onnxruntime.set_default_logger_severity(4)
# What read_npy of the project reads.
TYPES = {"float32", "float16", "int8", "uint8", "int32", "int64", "bool"}


def tensor(value):
    """As an array; None for sequences and maps."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.ndarray) or np.isscalar(value) else None


def write(folder, group, name, model, inputs, outputs, rtol, atol):
    """A line of cases.json."""
    case = {"group": group, "name": name, "rtol": rtol, "atol": atol, "inputs": len(inputs), "outputs": len(outputs)}
    case["operators"] = sorted({node.op_type for node in model.graph.node})
    tensors = [tensor(value) for value in inputs + outputs]
    strange = [None if value is None else value.dtype.name for value in tensors if value is None or value.dtype.name not in TYPES]
    if strange:
        return {**case, "left_out": "no tensor" if None in strange else strange[0]}
    place = folder / group / name
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(model.SerializeToString())
    names = [f"in_{at}" for at in range(len(inputs))] + [f"out_{at}" for at in range(len(outputs))]
    for name, value in zip(names, tensors):
        np.save(place / name, value.copy(order="C"))
    return case


def node_tests(folder):
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        initialized = {tensor.name for tensor in case.model.graph.initializer} if case.model else set()
        if not case.data_sets or initialized & {value.name for value in case.model.graph.input}:
            continue
        inputs, outputs = case.data_sets[0]
        yield write(folder, "node", case.name, case.model, list(inputs), list(outputs), case.rtol, case.atol)


class Compared:
    """Graphs whose right outputs onnxruntime computes, unoptimised."""

    def __init__(self, folder):
        self.folder, self.random, self.cases = folder, np.random.default_rng(7), []

    def normal(self, *shape):
        return self.random.standard_normal(shape).astype(np.float32)

    def whole(self, low, high, shape, dtype=np.int64):
        return self.random.integers(low, high, shape).astype(dtype)

    def graph(self, name, nodes, inputs, constants=(), opset=17, outputs=("y0",), domain=""):
        given = {key: value for key, value in inputs.items() if value is not None and key not in constants}
        values = [helper.make_tensor_value_info(key, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape) for key, value in given.items()]
        tensors = [numpy_helper.from_array(inputs[key], key) for key in constants]
        made = [helper.make_empty_tensor_value_info(key) for key in outputs]
        opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
        ir = 8 if opset <= 18 else 10 if opset <= 23 else 12
        model = helper.make_model(helper.make_graph(nodes, name, values, made, tensors), opset_imports=opsets, ir_version=ir)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        try:
            right = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, given)
        except Exception as error:
            self.cases.append({"group": "onnxruntime", "name": name, "left_out": f"onnxruntime: {str(error)[:80]}"})
            return
        for output, value in zip(model.graph.output, right):
            output.CopyFrom(helper.make_tensor_value_info(output.name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape))
        half = any(value.dtype == np.float16 for value in right)
        self.cases.append(write(self.folder, "onnxruntime", name, model, list(given.values()), right, 1e-3, 1e-2 if half else 1e-5))

    def op(self, name, op, inputs, attributes={}, constants=(), opset=17, outputs=1, domain=""):
        made = [f"y{at}" for at in range(outputs)]
        names = [key if value is not None else "" for key, value in inputs.items()]
        node = helper.make_node(op, names, made, name="N", domain=domain, **attributes)
        self.graph(name, [node], inputs, constants, opset, made, domain)


def ints(*values):
    return np.array(values, np.int64)


def floats(*values):
    return np.array(values, np.float32)


def scalar(value, dtype=np.float32):
    return np.array(value, dtype)


def windows(c):
    x = c.normal(1, 3, 9, 7)
    for auto in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        for stride in ([1, 1], [2, 3]):
            for kernel in ([2, 3], [3, 2]):
                tag = f"{auto}_{stride[0]}_{kernel[0]}"
                common = {"kernel_shape": kernel, "strides": stride, "auto_pad": auto}
                if auto == "NOTSET":
                    common["pads"] = [1, 0, 1, 1]
                c.op(f"conv_{tag}", "Conv", {"x": x, "w": c.normal(4, 3, *kernel), "b": c.normal(4)}, common)
                c.op(f"conv_transpose_{tag}", "ConvTranspose", {"x": x, "w": c.normal(3, 4, *kernel)}, common)
                for ceil in (0, 1):
                    c.op(f"max_pool_{tag}_{ceil}", "MaxPool", {"x": x}, {**common, "ceil_mode": ceil}, opset=12)
                    for count in (0, 1):
                        kind = {**common, "ceil_mode": ceil, "count_include_pad": count}
                        c.op(f"average_pool_{tag}_{ceil}_{count}", "AveragePool", {"x": x}, kind, opset=19)
    c.op("max_pool_strides", "MaxPool", {"x": x}, {"kernel_shape": [3, 3]})
    c.op("max_pool_1d", "MaxPool", {"x": c.normal(1, 3, 9)}, {"kernel_shape": [3]})
    c.op("max_pool_negative", "MaxPool", {"x": -np.abs(x) - 5}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})
    c.op("conv_1d", "Conv", {"x": c.normal(1, 3, 9), "w": c.normal(4, 3, 3)}, {"auto_pad": "SAME_LOWER", "strides": [2]})
    c.op("conv_3d", "Conv", {"x": c.normal(1, 2, 5, 5, 5), "w": c.normal(3, 2, 3, 3, 3)})
    c.op("conv_groups", "Conv", {"x": c.normal(1, 4, 5, 5), "w": c.normal(8, 2, 3, 3)}, {"group": 2, "dilations": [2, 1]})
    c.op("conv_transpose_plain", "ConvTranspose", {"x": x, "w": c.normal(3, 4, 3, 3)})
    kind = {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}
    c.op("conv_transpose_groups", "ConvTranspose", {"x": c.normal(1, 4, 5, 5), "w": c.normal(4, 2, 3, 3)}, kind)
    c.op("global_average_3d", "GlobalAveragePool", {"x": c.normal(1, 3, 5, 4, 3)})


def reductions(c):
    y = np.abs(c.normal(2, 3, 4))
    for op in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"):
        op = f"Reduce{op}"
        for keep in (0, 1):
            for axes in (None, [0, -1], []):
                for noop in (0, 1):
                    inputs = {"x": y} if axes is None else {"x": y, "a": np.array(axes, np.int64)}
                    kind = {"keepdims": keep, "noop_with_empty_axes": noop}
                    c.op(f"{op}_{keep}_{axes}_{noop}", op, inputs, kind, [key for key in inputs if key == "a"], 18)
            c.op(f"{op}_11_{keep}", op, {"x": y}, {"keepdims": keep, "axes": [1]}, opset=11)
        for dtype in (np.int32, np.int64):
            c.op(f"{op}_{np.dtype(dtype).name}", op, {"x": c.whole(1, 5, (2, 3), dtype)}, {"axes": [1]}, opset=11)
    for op in ("ArgMax", "ArgMin"):
        for axis in (0, 1, -1):
            for last in (0, 1):
                for keep in (0, 1):
                    kind = {"axis": axis, "select_last_index": last, "keepdims": keep}
                    c.op(f"{op}_{axis}_{last}_{keep}", op, {"x": c.whole(0, 3, (4, 5), np.float32)}, kind)
        for dtype in (np.int32, np.uint8):
            c.op(f"{op}_{np.dtype(dtype).name}", op, {"x": c.whole(0, 3, (4, 5), dtype)}, {"axis": 1})
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        for opset in (9, 11, 13):
            for axis in (None, 0, 1, 2, -1):
                c.op(f"{op}_{opset}_{axis}", op, {"x": y}, {} if axis is None else {"axis": axis}, opset=opset)
    pooled = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Softmax", ["p"], ["y0"])]
    c.graph("squeezenet_end", pooled, {"x": c.normal(1, 5, 4, 4)}, opset=9)


def elementwise(c):
    types = {"f32": np.float32, "f16": np.float16, "i8": np.int8, "u8": np.uint8, "i32": np.int32, "i64": np.int64, "b": np.bool_}
    for a, source in types.items():
        values = np.array([0, 1, 2, 3, 100, 0.5, 1.5, 2.5] if a[0] in "fub" else [0, 1, 2, -1, 3, 100, -128])
        for b, target in types.items():
            kind = {"to": helper.np_dtype_to_tensor_dtype(np.dtype(target))}
            c.op(f"cast_{a}_{b}", "Cast", {"x": values.astype(source)}, kind)
            c.op(f"cast_like_{a}_{b}", "CastLike", {"x": values.astype(source), "l": np.ones(1, target)}, opset=15)
    c.op("cast_negative_truth", "Cast", {"x": floats(-0.5, 0.0, np.nan, np.inf)}, {"to": 9})
    through = lambda *last: [helper.make_node("Cast", ["x"], ["b"], to=9), *last]
    c.graph("cast_then_not", through(helper.make_node("Not", ["b"], ["y0"])), {"x": floats(0, 2, 0.5, -1)})
    c.graph("cast_then_number", through(helper.make_node("Cast", ["b"], ["y0"], to=7)), {"x": ints(0, 2, 3, -1)})
    left, right = ints(7, -7, 7, -7, 0, 5), ints(2, 2, -2, -2, 3, 5)
    for name in ("i32", "i64", "f32", "i8"):
        a, b = left.astype(types[name]), right.astype(types[name])
        for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Equal", "Greater", "LessOrEqual"):
            c.op(f"{op}_{name}", op, {"a": a, "b": b})
        c.op(f"Pow_{name}", "Pow", {"a": a, "b": np.abs(b)})
        c.op(f"Mod_{name}", "Mod", {"a": a, "b": b}, {"fmod": int(name == "f32")})
        for op in ("Abs", "Neg", "Sign"):
            c.op(f"{op}_{name}", op, {"a": a})
    c.op("pow_mixed", "Pow", {"a": floats(1.5, 2, 3), "b": ints(2, 3, -1)})
    values = floats(0, -0.5, 0.5, 1.5, 2.5, -1.5, -2.5, 100, -100, np.inf, -np.inf)
    for op in (
        "Round Floor Ceil Sign Abs Erf Exp Sigmoid Tanh Softplus Softsign Elu Selu LeakyRelu HardSigmoid HardSwish Relu Reciprocal"
        " IsNaN IsInf Celu Mish ThresholdedRelu Shrink Atan Sinh Asinh"
    ).split():
        c.op(f"values_{op}", op, {"x": values[:-2] if op == "Mish" else values}, opset=18)
    c.op("is_inf_positive", "IsInf", {"x": floats(np.inf, -np.inf, 1)}, {"detect_negative": 0})
    c.op("is_inf_negative", "IsInf", {"x": floats(np.inf, -np.inf, 1)}, {"detect_positive": 0})
    for op, kind in (("Elu", {"alpha": 2.0}), ("Selu", {"alpha": 2.0, "gamma": 1.5}), ("Celu", {"alpha": 2.0}), ("ThresholdedRelu", {"alpha": 0.5}), ("Shrink", {"lambd": 0.4, "bias": 0.1}), ("Gelu", {"approximate": "tanh"}), ("HardSigmoid", {"alpha": 0.3, "beta": 0.4})):
        c.op(f"attributes_{op}", op, {"x": c.normal(20)}, kind, opset=20)
    c.op("clip_crossed", "Clip", {"x": c.normal(10), "low": scalar(1), "high": scalar(-1)})
    c.op("clip_6", "Clip", {"x": c.normal(10)}, {"min": -0.5}, opset=6)
    # Beyond int32: refused, or right.
    c.op("int64_constant", "Add", {"a": ints(1, 2), "k": ints(2**31 + 5)}, constants=["k"])
    c.op("int64_product", "Mul", {"a": ints(70000), "b": ints(70000)})
    c.op("int64_sum", "ReduceSum", {"a": np.full(4, 2**30, np.int64)}, opset=13)
    c.op("int64_cast", "Cast", {"a": floats(3e9)}, {"to": 7})
    c.op("int64_fits", "Mul", {"a": ints(-3, 40000), "b": ints(7, 40000)})
    c.op("int32_wraps", "Mul", {"a": scalar(70000, np.int32), "b": scalar(70000, np.int32)})


def products(c):
    for a, b in (((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 2, 3), (3,)), ((3,), (2, 3, 4)), ((2, 2, 3), (3, 4)), ((2, 3), (5, 3, 4))):
        c.op(f"matmul_{len(a)}_{len(b)}_{a[0]}", "MatMul", {"a": c.normal(*a), "b": c.normal(*b)})
    for bias in ((), (4,), (2, 1), (2, 4)):
        kind = {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}
        c.op(f"gemm_{len(bias)}_{sum(bias)}", "Gemm", {"a": c.normal(3, 2), "b": c.normal(4, 3), "c": c.normal(*bias)}, kind)
    for at, (equation, *shapes) in enumerate((("bij,bjk->bik", (2, 2, 3), (2, 3, 4)), ("ii->i", (3, 3)), ("bhid,bhjd->bhij", (1, 2, 3, 4), (1, 2, 5, 4)), ("...ij,...jk->...ik", (2, 2, 3), (2, 3, 4)), ("ij,jk", (2, 3), (3, 4)))):
        c.op(f"einsum_{at}", "Einsum", {chr(97 + i): c.normal(*shape) for i, shape in enumerate(shapes)}, {"equation": equation})
    c.op("matmul_integer", "MatMulInteger", {"a": c.whole(0, 255, (2, 3), np.uint8), "b": c.whole(-9, 9, (3, 4), np.int8), "z": scalar(3, np.uint8)}, opset=10)
    c.op("conv_integer", "ConvInteger", {"x": c.whole(0, 9, (1, 2, 5, 5), np.uint8), "w": c.whole(0, 9, (3, 2, 3, 3), np.uint8), "z": scalar(1, np.uint8)}, opset=10)


def resizes(c):
    transformations = "half_pixel asymmetric align_corners pytorch_half_pixel half_pixel_symmetric tf_crop_and_resize".split()
    roundings = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    for mode in ("nearest", "linear", "cubic"):
        for kind in transformations:
            for rounding in roundings if mode == "nearest" else (None,):
                for scale in (2.0, 1.7, 3.0, None):
                    attributes = {"mode": mode, "coordinate_transformation_mode": kind}
                    if rounding:
                        attributes["nearest_mode"] = rounding
                    inputs = {"x": c.normal(1, 2, 5, 6), "roi": None, "scales": None, "sizes": None}
                    if kind == "tf_crop_and_resize":
                        inputs["roi"] = floats(0, 0, 0.2, 0.1, 1, 1, 0.8, 0.9)
                    if scale is None:
                        inputs["sizes"] = ints(1, 2, 7, 4)
                    else:
                        inputs["scales"] = floats(1, 1, scale, scale)
                        del inputs["sizes"]
                    constants = [key for key in inputs if key != "x" and inputs[key] is not None]
                    opset = 19 if kind == "half_pixel_symmetric" else 13
                    c.op(f"resize_{mode}_{kind}_{rounding}_{scale}", "Resize", inputs, attributes, constants, opset)
    for shape in ((1, 5), (1, 2, 3, 4, 5)):
        for mode in ("nearest", "linear"):
            scales = np.ones(len(shape), np.float32)
            scales[-1] = 2
            c.op(f"resize_rank_{len(shape)}_{mode}", "Resize", {"x": c.normal(*shape), "roi": None, "s": scales}, {"mode": mode}, ["s"], 13)
    c.op("resize_nhwc", "Resize", {"x": c.normal(1, 5, 6, 2), "roi": None, "s": floats(1, 2, 2, 1)}, {"mode": "nearest"}, ["s"], 13)
    c.op("resize_uint8", "Resize", {"x": c.whole(0, 255, (1, 2, 4, 4), np.uint8), "roi": None, "s": floats(1, 1, 2, 2)}, {"mode": "nearest"}, ["s"], 13)
    kind = {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5}
    c.op("resize_exclude", "Resize", {"x": c.normal(1, 1, 5, 6), "roi": None, "s": floats(1, 1, 1.5, 0.7)}, kind, ["s"], 13)
    c.op("resize_axes", "Resize", {"x": c.normal(1, 2, 5, 6), "roi": None, "s": floats(0.5, 2)}, {"mode": "linear", "axes": [2, 3]}, ["s"], 18)
    for mode in ("nearest", "linear"):
        c.op(f"resize_10_{mode}", "Resize", {"x": c.normal(1, 2, 5, 6), "s": floats(1, 1, 2, 2)}, {"mode": mode}, ["s"], 10)
        c.op(f"upsample_7_{mode}", "Upsample", {"x": c.normal(1, 2, 5, 6)}, {"mode": mode, "scales": [1.0, 1.0, 2.0, 1.5]}, opset=7)
        c.op(f"upsample_9_{mode}", "Upsample", {"x": c.normal(1, 2, 5, 6), "s": floats(1, 1, 2, 1.5)}, {"mode": mode}, ["s"], 9)


def recurrent(c):
    for direction in ("forward", "reverse", "bidirectional"):
        n = 1 + (direction == "bidirectional")
        for lengths in (None, [5, 3], [5, 5]):
            given = None if lengths is None else np.array(lengths, np.int32)
            constants = ["w", "r"] + ([] if given is None else ["l"])
            tag = f"{direction}_{lengths and lengths[1]}"
            inputs = {"x": c.normal(5, 2, 3), "w": c.normal(n, 16, 3), "r": c.normal(n, 16, 4), "b": c.normal(n, 32), "l": given, "h": c.normal(n, 2, 4), "c": c.normal(n, 2, 4)}
            c.op(f"lstm_{tag}", "LSTM", inputs, {"hidden_size": 4, "direction": direction}, constants, outputs=3)
            for before in (0, 1):
                inputs = {"x": c.normal(5, 2, 3), "w": c.normal(n, 12, 3), "r": c.normal(n, 12, 4), "b": c.normal(n, 24), "l": given}
                kind = {"hidden_size": 4, "direction": direction, "linear_before_reset": before}
                c.op(f"gru_{tag}_{before}", "GRU", inputs, kind, constants, outputs=2)
    inputs = {"x": c.normal(5, 2, 3), "w": c.normal(1, 16, 3), "r": c.normal(1, 16, 4)}
    c.op("lstm_clip", "LSTM", inputs, {"hidden_size": 4, "clip": 0.1})
    c.op("lstm_activations", "LSTM", inputs, {"hidden_size": 4, "activations": ["HardSigmoid", "Tanh", "Tanh"]})
    inputs |= {"b": None, "l": None, "h": None, "c": None, "p": c.normal(1, 12)}
    c.op("lstm_peepholes", "LSTM", inputs, {"hidden_size": 4})


def boxes(c):
    for images, classes in ((1, 1), (1, 3), (2, 1), (2, 2)):
        corner, size = c.random.random((images, 20, 2)) * 0.6, c.random.random((images, 20, 2)) * 0.6
        corners = np.concatenate([corner, corner + size], 2).astype(np.float32)
        corners[:, ::3] = corners[:, ::3][..., [2, 1, 0, 3]]
        for center in (0, 1):
            for most in (0, 2, 100):
                inputs = {"b": corners, "s": c.random.random((images, classes, 20)).astype(np.float32), "m": ints(most), "o": floats(0.4), "t": floats(0.2)}
                c.op(f"nms_{center}_{images}_{classes}_{most}", "NonMaxSuppression", inputs, {"center_point_box": center}, ["m", "o", "t"])
    scores = {"b": corners[:1], "s": (c.random.random((1, 1, 20)) - 0.5).astype(np.float32)}
    c.op("nms_defaults", "NonMaxSuppression", scores)
    c.op("nms_no_thresholds", "NonMaxSuppression", {**scores, "m": ints(2**40)}, constants=["m"])
    c.op("nms_equal_scores", "NonMaxSuppression", {"b": corners[:1], "s": np.full((1, 1, 20), 0.5, np.float32), "m": ints(50), "o": floats(0.4)}, constants=["m", "o"])


def layouts(c):
    y = c.normal(2, 3, 4)
    for largest in (0, 1):
        c.op(f"top_k_{largest}", "TopK", {"x": c.whole(0, 4, (3, 8), np.float32), "k": ints(5)}, {"largest": largest}, opset=11, outputs=2)
    c.op("top_k_9", "TopK", {"x": c.normal(3, 8)}, {"axis": 1, "k": 3}, opset=9, outputs=2)
    for mode in ("constant", "reflect", "edge", "wrap"):
        for pads in ((0, 1, 2, 0, 1, 0), (0, -1, 0, 0, 0, -1)):
            c.op(f"pad_{mode}_{pads[1]}", "Pad", {"x": y, "p": ints(*pads)}, {"mode": mode}, ["p"], 19)
    c.op("pad_axes", "Pad", {"x": y, "p": ints(1, 2, 0, 1), "v": scalar(3), "a": ints(-1, 0)}, {}, ["p", "v", "a"], 18)
    c.op("pad_2", "Pad", {"x": y}, {"pads": [0, 1, 0, 0, 0, 1], "value": 2.0}, opset=2)
    for start, end, step in ((-1, -100, -1), (5, 0, -2), (1, 2**63 - 1, 1), (100, 200, 1), (-(2**62), 2, 1), (3, -(2**63), -1)):
        inputs = {"x": c.normal(2, 6), "s": ints(start), "e": ints(end), "a": ints(1), "p": ints(step)}
        c.op(f"slice_{start}_{step}", "Slice", inputs, constants=["s", "e", "a", "p"])
    c.op("slice_9", "Slice", {"x": c.normal(2, 6)}, {"starts": [0, 1], "ends": [9, -1]}, opset=9)
    c.op("split_18", "Split", {"x": c.normal(7, 2)}, {"num_outputs": 3}, opset=18, outputs=3)
    c.op("split_11", "Split", {"x": c.normal(6, 2)}, {"split": [1, 5]}, opset=11, outputs=2)
    c.op("squeeze_11", "Squeeze", {"x": c.normal(1, 2, 1)}, {"axes": [0]}, opset=11)
    c.op("unsqueeze_11", "Unsqueeze", {"x": c.normal(2)}, {"axes": [0, 2]}, opset=11)
    for kind in ("none", "add", "mul", "max", "min"):
        c.op(f"scatter_elements_{kind}", "ScatterElements", {"x": c.normal(3, 3), "i": np.array([[0, 2, -1], [0, 1, 2]]) if kind != "none" else np.array([[0, 2, 1], [0, 1, 2]]), "u": c.normal(2, 3)}, {"axis": 1, "reduction": kind}, opset=18)
        c.op(f"scatter_nd_{kind}", "ScatterND", {"x": c.normal(4, 3), "i": np.array([[0], [-1], [2 if kind == "none" else 0]]), "u": c.normal(3, 3)}, {"reduction": kind}, opset=18)
    c.op("one_hot", "OneHot", {"i": ints(0, -1, 2, 7), "d": ints(4), "v": floats(0.5, 2)}, constants=["d"])
    c.op("one_hot_floats", "OneHot", {"i": floats(0, 1, 2), "d": scalar(4), "v": floats(0, 1)}, {"axis": 0}, ["d"])
    for block, op, mode in ((2, "DepthToSpace", "DCR"), (2, "DepthToSpace", "CRD"), (2, "SpaceToDepth", None)):
        c.op(f"{op}_{mode}", op, {"x": c.normal(2, 8, 2, 4)}, {"blocksize": block, **({"mode": mode} if mode else {})})
    c.op("reverse_sequence", "ReverseSequence", {"x": c.normal(3, 4), "l": ints(1, 2, 4)}, {"batch_axis": 0, "time_axis": 1})
    for opset in (7, 12, 13):
        for outputs in (1, 2):
            c.op(f"dropout_{opset}_{outputs}", "Dropout", {"x": y}, opset=opset, outputs=outputs)
    c.op("dropout_input", "Dropout", {"x": y, "r": scalar(0.5), "t": scalar(False, np.bool_)}, constants=["r", "t"], opset=13)
    n = helper.make_node
    c.graph("sequence", [n("SplitToSequence", ["x"], ["s"], axis=0), n("SequenceInsert", ["s", "z", "i"], ["t"]), n("SequenceErase", ["t", "k"], ["u"]), n("ConcatFromSequence", ["u"], ["y0"], axis=0), n("SequenceAt", ["u", "i"], ["y1"]), n("SequenceLength", ["u"], ["y2"])], {"x": c.normal(4, 6), "z": c.normal(1, 6), "i": scalar(1, np.int64), "k": scalar(-1, np.int64)}, outputs=("y0", "y1", "y2"))


def normalisations(c):
    x, y = c.normal(2, 4, 3, 5), c.normal(2, 3, 4)
    for opset in (7, 9, 15):
        inputs = {"x": x, "s": c.normal(4), "b": c.normal(4), "m": c.normal(4), "v": np.abs(c.normal(4))}
        c.op(f"batch_norm_{opset}", "BatchNormalization", inputs, {"epsilon": 0.1}, opset=opset)
    for axis in (0, 1, -1):
        shape = y.shape[axis:]
        c.op(f"layer_norm_{axis}", "LayerNormalization", {"x": y, "s": c.normal(*shape), "b": c.normal(*shape)}, {"axis": axis}, outputs=3)
    c.op("group_norm_18", "GroupNormalization", {"x": x, "s": c.normal(2), "b": c.normal(2)}, {"num_groups": 2}, opset=18)
    c.op("group_norm_21", "GroupNormalization", {"x": x, "s": c.normal(4), "b": c.normal(4)}, {"num_groups": 2, "epsilon": 0.1}, opset=21)
    c.op("lrn", "LRN", {"x": c.normal(2, 6, 3, 3)}, {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 2.0})
    c.op("lrn_defaults", "LRN", {"x": c.normal(1, 6, 3, 3) * 9}, {"size": 5})
    c.op("mean_variance", "MeanVarianceNormalization", {"x": x})
    c.op("mean_variance_axes", "MeanVarianceNormalization", {"x": x}, {"axes": [1, 2]})
    for p in (1, 2):
        c.op(f"lp_norm_{p}", "LpNormalization", {"x": y}, {"p": p, "axis": 0})
    halves = floats(0, 0.25, 0.5, 0.75, 1, 1.25, -0.25, -0.75, 100, -100, 12.35)
    for dtype in (np.uint8, np.int8):
        name = np.dtype(dtype).name
        c.op(f"quantize_{name}", "QuantizeLinear", {"x": halves, "s": scalar(0.5), "z": scalar(3, dtype)}, constants=["s", "z"])
        c.op(f"quantize_255_{name}", "QuantizeLinear", {"x": floats(0, 2, -3, -2.5, 1.34, 0.5), "s": scalar(5 / 255), "z": scalar(3, dtype)}, constants=["s", "z"])
        c.op(f"dequantize_{name}", "DequantizeLinear", {"x": np.arange(5).astype(dtype), "s": scalar(0.5), "z": scalar(3, dtype)}, constants=["s", "z"])
    c.op("quantize_plain", "QuantizeLinear", {"x": halves, "s": scalar(0.5)})
    c.op("quantize_axis", "QuantizeLinear", {"x": y, "s": np.abs(c.normal(3)), "z": np.array([1, 2, 3], np.uint8)})
    c.op("dequantize_axis", "DequantizeLinear", {"x": c.whole(0, 9, (2, 3, 4), np.int8), "s": np.abs(c.normal(3)), "z": np.array([1, 2, 3], np.int8)})
    c.op("quantize_dynamically", "DynamicQuantizeLinear", {"x": c.normal(40)}, opset=11, outputs=3)


def contributed(c):
    z, domain = c.normal(2, 3, 8), "com.microsoft"
    c.op("bias_gelu", "BiasGelu", {"x": z, "b": c.normal(8)}, domain=domain)
    for op, kind in (("FastGelu", {}), ("Gelu", {}), ("QuickGelu", {"alpha": 1.5})):
        c.op(f"microsoft_{op}", op, {"x": z}, kind, domain=domain)
    skip = {"x": z, "s": c.normal(2, 3, 8), "g": c.normal(8), "b": c.normal(8)}
    c.op("skip_layer_norm", "SkipLayerNormalization", skip, {"epsilon": 1e-5}, domain=domain)
    c.op("skip_rms_norm", "SkipSimplifiedLayerNormalization", {key: skip[key] for key in "xsg"}, {"epsilon": 1e-5}, domain=domain)
    c.op("rms_norm", "SimplifiedLayerNormalization", {"x": z, "g": c.normal(8)}, {"epsilon": 1e-5, "axis": -1})
    heads = {"q": z, "k": c.normal(2, 3, 8), "v": c.normal(2, 3, 8)}
    c.op("attention_heads", "MultiHeadAttention", {**heads, "b": c.normal(24)}, {"num_heads": 2}, domain=domain)
    c.op("attention_causal", "MultiHeadAttention", heads, {"num_heads": 2, "unidirectional": 1}, domain=domain)
    c.op("attention_mask", "MultiHeadAttention", {**heads, "b": None, "m": np.array([[1, 1, 0], [1, 1, 1]], np.int32)}, {"num_heads": 2}, domain=domain)
    packed = {"x": c.normal(2, 32), "w": c.whole(0, 255, (8, 1, 16), np.uint8), "s": c.normal(8)}
    for level in (0, 4):
        kind = {"K": 32, "N": 8, "bits": 4, "block_size": 32, "accuracy_level": level}
        c.op(f"matmul_4_bits_{level}", "MatMulNBits", packed, kind, ["w", "s"], domain=domain)
    c.op("rotary", "RotaryEmbedding", {"x": c.normal(1, 3, 8), "p": np.array([[0, 1, 2]]), "c": c.normal(5, 2), "s": c.normal(5, 2)}, {"num_heads": 2}, domain=domain)


def parser_readings(c):
    """What TensorRT's parser reads otherwise than ONNX, beyond ONNX's own node tests."""
    x, signed = c.normal(1, 3, 9, 7), c.normal(2, 3)
    for opset in (11, 17):
        kind = {"kernel_shape": [3, 3], "strides": [3, 4], "pads": [0, 1, 1, 2], "ceil_mode": 1, "count_include_pad": 1}
        c.op(f"average_pool_ceil_{opset}", "AveragePool", {"x": x}, kind, opset=opset)
    c.op("max_pool_ceil_1d", "MaxPool", {"x": c.normal(1, 2, 8)}, {"kernel_shape": [2], "strides": [3], "pads": [1, 1], "ceil_mode": 1}, opset=12)
    for op in ("L1", "L2", "SumSquare"):
        c.op(f"Reduce{op}_signed", f"Reduce{op}", {"x": signed}, {"noop_with_empty_axes": 1}, opset=18)
    c.op("dropout_10_2", "Dropout", {"x": signed}, opset=10, outputs=2)
    c.op("dropout_nan", "Dropout", {"x": floats(np.nan, 1)}, opset=13, outputs=2)
    c.op("triu_batch", "Trilu", {"x": c.normal(2, 3, 4), "k": scalar(1, np.int64)}, constants=["k"])
    for op in ("GreaterOrEqual", "LessOrEqual"):
        c.op(f"{op}_nan", op, {"a": np.array([[np.nan, 1, 2], [3, np.nan, 0]], np.float32), "b": floats(1, np.nan, 2)})
    for kind in ("half_pixel", "asymmetric"):
        for mode in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
            attributes = {"mode": "nearest", "coordinate_transformation_mode": kind, "nearest_mode": mode}
            c.op(f"resize_long_{kind}_{mode}", "Resize", {"x": c.normal(1, 1, 40, 30), "roi": None, "s": floats(1, 1, 1.7, 3)}, attributes, ["s"], 13)


def main():
    folder = pathlib.Path(sys.argv[1])
    compared = Compared(folder)
    for group in (windows, reductions, elementwise, products, resizes, recurrent, boxes, layouts, normalisations, contributed, parser_readings):
        group(compared)
    cases = compared.cases + list(node_tests(folder))
    (folder / "cases.json").write_text(json.dumps(cases))


main()
