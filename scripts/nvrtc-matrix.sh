#!/usr/bin/env bash
# Compiles the kernels of language models with NVRTC of every CUDA that a JetPack has, and prints what came of it as Markdown
# tables: version by architecture, and registers, spills and shared memory on an Orin.
#
# usage: scripts/nvrtc-matrix.sh [VERSION...]           default: 11.7 11.8 12.2 12.6 12.9 13.0
#        scripts/nvrtc-matrix.sh --wheels VERSION...    only brings the wheels (300 MB for all)
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
wheels=${XDG_DATA_HOME:-$HOME/.local/share}/watus-build/nvrtc
only=
[ "${1:-}" != --wheels ] || { only=yes; shift; }
[ $# -gt 0 ] || set -- 11.7 11.8 12.2 12.6 12.9 13.0

folders=()
for version in "$@"; do
  case $version in
    11.7) packages=(nvidia-cuda-nvrtc-cu11==11.7.99) ;;
    # The oldest ptxas on the index that runs everywhere; 11.4's is not there.
    11.8) packages=(nvidia-cuda-nvrtc-cu11==11.8.89 nvidia-cuda-nvcc-cu11==11.8.89) ;;
    12.2) packages=(nvidia-cuda-nvrtc-cu12==12.2.140) ;;
    12.6) packages=(nvidia-cuda-nvrtc-cu12==12.6.85 nvidia-cuda-nvcc-cu12==12.6.85) ;;
    12.9) packages=(nvidia-cuda-nvrtc-cu12==12.9.86) ;;
    13.0) packages=(nvidia-cuda-nvrtc==13.0.88) ;;
    *) echo "no wheel is known for $version: add it to $0" >&2; exit 2 ;;
  esac
  folder=$wheels/$version
  if [ ! -e "$folder/.complete" ]; then
    echo "setup: ${packages[*]} to $folder" >&2
    rm -rf "$folder"
    python3 -m venv "$wheels/pip" >&2
    "$wheels/pip/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" "${packages[@]}" >&2
    touch "$folder/.complete"
  fi
  folders+=("$folder")
done
[ -z "$only" ] || exit 0

assemblers=()
for folder in "${folders[@]}"; do
  ptxas=$folder/nvidia/cuda_nvcc/bin/ptxas
  [ ! -e "$ptxas" ] || assemblers+=(--ptxas "$ptxas")
done
python3 "$scripts/nvrtc.py" matrix "${folders[@]}" "${assemblers[@]}"
