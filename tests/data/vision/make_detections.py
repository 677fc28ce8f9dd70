"""Makes detections.json: outputs of detectors that choose their boxes themselves, and what Ultralytics' predictors make of
them; and classify-rect.npy: ../../../recipes/images/face.png as its classifiers with sides of 20 and 28 pixels take it.

    python3 make_detections.py        needs: ultralytics 8.4, torch, torchvision, pillow, numpy

Each case: `boxes` (as the manifest has it), `classes`, `picture` (height, width), `output` (rows), `found`: [[class, score,
[left, top, right, bottom]], …].
"""

import json
import pathlib
import types

import numpy as np
import torch
from PIL import Image
from ultralytics.data.augment import classify_transforms
from ultralytics.models.rtdetr import RTDETRPredictor
from ultralytics.models.yolo.detect import DetectionPredictor

HERE = pathlib.Path(__file__).parent
SIZE, CONFIDENCE = 64, 0.25


def found(kind, output, picture, classes):
    predictor = kind.__new__(kind)
    names = {i: str(i) for i in range(classes)}
    predictor.args = types.SimpleNamespace(conf=CONFIDENCE, iou=0.7, classes=None, agnostic_nms=False, max_det=300, task="detect")
    predictor.model = types.SimpleNamespace(names=names, end2end=True)
    predictor.batch = [["picture"]]
    original = np.zeros((*picture, 3), np.uint8)
    [result] = predictor.postprocess(torch.tensor([output]), torch.zeros(1, 3, SIZE, SIZE), [original])
    boxes = result.boxes
    return [[int(c), float(s), [round(float(v), 4) for v in box]] for c, s, box in zip(boxes.cls, boxes.conf, boxes.xyxy)]


def main():
    random = np.random.default_rng(5)
    cases = []
    for picture in [(64, 128), (90, 60), (64, 64)]:
        rows = []
        for score in [0.95, 0.9, 0.6, 0.26, 0.25, 0.1]:
            left, top = random.uniform(-4, 40, 2)
            rows.append([left, top, left + random.uniform(2, 30), top + random.uniform(2, 30), score, float(random.integers(3))])
        output = np.float32(rows).tolist()
        cases.append({"boxes": "final", "classes": 3, "picture": picture, "output": output,
                      "found": found(DetectionPredictor, output, picture, 3)})
        rows = []
        for score in [0.95, 0.6, 0.26, 0.25, 0.1]:
            rows.append([*random.uniform(0, 1, 2), *random.uniform(0.05, 0.6, 2), score, float(random.integers(3))])
        output = np.float32(rows).tolist()
        cases.append({"boxes": "queries", "classes": 3, "picture": picture, "output": output,
                      "found": found(RTDETRPredictor, output, picture, 3)})
    (HERE / "detections.json").write_text("[\n " + ",\n ".join(map(json.dumps, cases)) + "\n]\n")
    face = Image.open(HERE / "../../../recipes/images/face.png").convert("RGB")
    np.save(HERE / "classify-rect.npy", classify_transforms((20, 28))(face)[None].numpy())
    print([len(case["found"]) for case in cases])


if __name__ == "__main__":
    main()
