#!/usr/bin/env bash
# Makes a Python environment with the packages that tests compare against. Prints its python. Needed for tests alone.
set -euo pipefail
folder=${XDG_DATA_HOME:-$HOME/.local/share}/watus-build/oracles-5
packages=(onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6 clang-format==23.1.5 nvidia-cuda-nvrtc-cu11==11.8.89
  nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-nvrtc==13.0.88
  openai==3.57.0 'pydantic-ai-slim[openai]==2.68.0' selenium==4.51.0)
if [ ! -e "$folder/.complete" ]; then
  echo "setup: making a Python environment for the tests in $folder" >&2
  rm -rf "$folder"
  python3 -m venv "$folder" >&2
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" >&2
  # Its reader of engine files is wanted, not torch and what else it runs on.
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps ultralytics==8.4.190 >&2
  touch "$folder/.complete"
fi
echo "$folder/bin/python"
