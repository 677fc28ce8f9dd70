"""A YOLO engine by watus-build in Ultralytics, as if Ultralytics had exported it.

    watus-build build recipes/yolo12s.yaml
    python3 ultralytics_engine.py engines/yolo12s/yolo12s.engine bus.jpg      needs: ultralytics, tensorrt, torch with CUDA

The engine begins with the metadata that Ultralytics' own exporter writes (task, names, image size, stride), so nothing has
to be said here. For trtexec, DeepStream and others: `watus-build strip FILE.engine`, or `raw: true` in the recipe.
"""

import sys

from ultralytics import YOLO

model = YOLO(sys.argv[1])
for result in model.predict(sys.argv[2], device=0):
    for box in result.boxes:
        left, top, right, bottom = (round(value) for value in box.xyxy[0].tolist())
        print(f"{result.names[int(box.cls)]} {float(box.conf):.2f} at {left},{top} to {right},{bottom}")
    result.save("annotated.jpg")
