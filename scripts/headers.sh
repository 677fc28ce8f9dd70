#!/usr/bin/env bash
# Brings TensorRT's headers that the shims of packages are compiled with: 10.3 (opens 10.3 to 10.16) and 11.1 (11.1 and later).
# Prints NAME=FOLDER for each, as scripts/build-shims.sh takes them.
#
# usage: scripts/headers.sh OUT [--from TENSORRT ONNX-TENSORRT]
#   From GitHub, file by file; or, with --from, from local clones of NVIDIA/TensorRT and onnx/onnx-tensorrt, bare ones too.
#
# Every file is held to its sha256 (scripts/headers.sha256). All are Apache-2.0 by their SPDX lines; those of 8.5 and 8.6 are
# proprietary, so they are not here: /usr/include/aarch64-linux-gnu of a JetPack 5 or 6.0 has them.
set -euo pipefail
usage() { sed -n '5,6s/^# //p' "$0" >&2; exit 2; }
[ $# -ge 1 ] || usage
out=$1 tensorrt='' onnx=''
case "${2:-}" in
  '') ;;
  --from) [ $# -eq 4 ] || usage; tensorrt=$3 onnx=$4 ;;
  *) usage ;;
esac
pins=$(cd "$(dirname "$0")" && pwd)/headers.sha256

# Tags may be moved, commits cannot: NVIDIA/TensorRT v10.3.0 and v11.1, onnx-tensorrt release/10.1-GA, whose parser 10.3 has.
commit_of() {
  case $1 in
    trt10/NvOnnxParser.h) echo onnx/onnx-tensorrt 96e781103cfc4adf4a6bb557e94bac8e693f6f4c "${1#trt10/}" ;;
    trt10/*) echo NVIDIA/TensorRT c5b9de37f7ef9034e2efc621c664145c7c12436e "include/${1#trt10/}" ;;
    trt11/*) echo NVIDIA/TensorRT 82d1dca801c8318a5605399d5240780d0679e4e1 "include/${1#trt11/}" ;;
  esac
}

bring() { # OWNER/NAME COMMIT PATH
  if [ -z "$tensorrt" ]; then
    curl --fail --silent --show-error --location --retry 3 "https://raw.githubusercontent.com/$1/$2/$3"
  elif [ "$1" = NVIDIA/TensorRT ]; then
    git -C "$tensorrt" show "$2:$3"
  else
    git -C "$onnx" show "$2:$3"
  fi
}

mkdir -p "$out"
whole() { (cd "$1" && grep -v '^#' "$pins" | sha256sum --check --quiet --strict) > /dev/null 2>&1; }
if ! whole "$out"; then
  scratch=$(mktemp -d "$out/.headers-XXXXXX")
  trap 'rm -rf "$scratch"' EXIT
  while read -r _ file; do
    mkdir -p "$scratch/$(dirname "$file")"
    read -r repository commit path < <(commit_of "$file")
    bring "$repository" "$commit" "$path" > "$scratch/$file" || { echo "$repository $commit has no $path, or cannot be reached" >&2; exit 1; }
  done < <(grep -v '^#' "$pins")
  (cd "$scratch" && grep -v '^#' "$pins" | sha256sum --check --quiet --strict >&2) || { echo "a header has the wrong sha256" >&2; exit 1; }
  for name in trt10 trt11; do
    rm -rf "${out:?}/$name"
    mv "$scratch/$name" "$out/$name"
  done
fi
for name in trt10 trt11; do echo "$name=$(realpath "$out/$name")"; done
