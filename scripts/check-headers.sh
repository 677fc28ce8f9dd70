#!/usr/bin/env bash
# Compiles the C++ shim (syntax and types only) against several TensorRT header sets.
#
# usage: scripts/check-headers.sh [FOLDER...]
#   Without folders: the sets scripts/setup-tensorrt.sh --all-headers unpacked. Run `cargo build` first: the shim
#   includes what cxx generates there.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -eq 0 ]; then
  base=${XDG_DATA_HOME:-$HOME/.local/share}/watus-build/headers-0.9.1
  [ -d "$base" ] || { echo "run scripts/setup-tensorrt.sh --all-headers first" >&2; exit 1; }
  set -- "$base"/TRT-RTX-1.[4-7] "$base"/TRT-Enterprise-11.4
fi
# The newest bridge, whichever profile made it: older builds leave theirs lying about.
bridge=watus-shim/src/bridge.rs.h
generated=$(ls -t "${CARGO_TARGET_DIR:-target}"/*/build/watus-shim-*/out/cxxbridge/include/$bridge 2>/dev/null | head -n 1)
generated=${generated%"/$bridge"}
[ -n "$generated" ] || { echo "no generated bridge: run cargo build first (with TensorRT headers)" >&2; exit 1; }

# The generated header includes ours by the crate's name: let that be this checkout, whoever filled the target folder.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD/cpp" "$scratch/watus-shim"

failed=0
for folder in "$@"; do
  if [ ! -e "$folder/NvInfer.h" ]; then
    echo "FAIL $folder: no NvInfer.h"; failed=1; continue
  fi
  verdict=ok
  for file in cpp/src/*.cc; do
    if ! ${CXX:-g++} -std=c++17 -Wall -Wextra -Werror -Wno-deprecated-declarations -fsyntax-only \
        -Icpp/include -Icpp/stub -I"$scratch" -I"$generated" -isystem "$folder" "$file"; then
      verdict="FAIL ($file)"; failed=1
    fi
  done
  echo "$(basename "$folder"): $verdict"
done
exit $failed
