#!/usr/bin/env bash
# Compiles the kernels of language models for packages, so that no machine needs NVRTC: every file the program may ask for
# (src/cuda_executor/decode_kernel/variants.txt), for compute capability 8.0, in PTX 7.4, which CUDA 11.4's driver (JetPack 5.1) takes.
#
# usage: scripts/kernels-ptx.sh OUT
#   The program looks for OUT as ../lib/watus-build/kernels beside itself, /usr/lib/watus-build/kernels, or WATUS_KERNELS.
#   NVRTC 11.8 compiles; its `.version` 7.8 is written down to 7.4, and ptxas, which refuses what is newer than `.version`,
#   assembles every file for 8.0 and 8.7. Six minutes of one core; needs the network the first time.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '5,6s/^# //p' "$0" >&2; exit 2; }
scripts=$(cd "$(dirname "$0")" && pwd)
wheels=${XDG_DATA_HOME:-$HOME/.local/share}/watus-build/nvrtc
"$scripts/nvrtc-matrix.sh" --wheels 11.8
python3 "$scripts/nvrtc.py" ptx "$wheels/11.8" --ptxas "$wheels/11.8/nvidia/cuda_nvcc/bin/ptxas" --out "$1"
