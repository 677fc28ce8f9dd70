#!/usr/bin/env bash
# The demo: a chat model, a detector and two face classifiers from recipes to engines, their verification and answers.
#
# usage: demo.sh      in a folder of yours: recipes/ comes from the package unless it is there, engines/ is made
#   WATUS_BUILD names another watus-build than the one in PATH.
set -euo pipefail
program=${WATUS_BUILD:-watus-build}
if [ ! -d recipes ]; then
  # Beside this script in a package, a folder up in the sources. Copied, since locks of revisions are kept beside recipes.
  here=$(dirname "$(realpath "$0")")
  for folder in "$here/recipes" "$here/../recipes"; do
    if [ -d "$folder" ]; then
      cp -r "$folder" recipes || { echo "demo.sh: run it in a folder where you may write" >&2; exit 1; }
      break
    fi
  done
fi
# A package's own, for machines without TensorRT: TensorRT-RTX (90 MB, the first time) into ~/.local/share/watus-build.
setup=$(dirname "$(realpath "$0")")/setup-tensorrt.sh
if [ -z "${WATUS_BUILD:-}${WATUS_TENSORRT_LIB:-}" ]; then "$setup" --libraries; fi
"$program" build recipes/smollm2-135m.yaml recipes/yolo11n-seg.yaml recipes/gender.yaml recipes/age.yaml
"$program" verify engines/smollm2-135m engines/yolo11n-seg engines/gender engines/age
"$program" run engines/smollm2-135m "What is the capital of France?"
"$program" run engines/gender recipes/images/face.png
"$program" run engines/age recipes/images/face.png
"$program" run engines/yolo11n-seg engines/yolo11n-seg/images/bus.jpg --annotated engines
